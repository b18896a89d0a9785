//! SHA-256 digests of keys, and the canonical JSON that a content key is the digest of.
//!
//! The writers here produce, byte for byte, what CPython's `json.dumps` writes with its
//! default separators and `ensure_ascii`. Keys that were stored by one implementation must
//! be found by the other.

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of one piece of bytes.
    #[inline]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Of the concatenation of the parts.
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        parts.iter().for_each(|part| hash.update(part));
        Self(hash.finalize().into())
    }

    /// The first half, which is what an index keeps.
    #[inline]
    pub fn short(&self) -> [u8; 16] {
        self.0[..16].try_into().expect("half of it")
    }
}

/// Stands for itself inside a JSON string. DEL does not.
#[inline]
const fn is_plain(byte: u8) -> bool {
    (byte >= b' ') & (byte <= b'~') & (byte != b'"') & (byte != b'\\')
}

/// How many bytes at the front stand for themselves.
#[inline]
fn plain_prefix(bytes: &[u8]) -> usize {
    // Whole blocks first, without a branch for each byte, so that the compiler can vectorise.
    const BLOCK: usize = 16;
    let blocks = bytes.chunks_exact(BLOCK);
    let plain = blocks
        .take_while(|block| block.iter().fold(true, |all, byte| all & is_plain(*byte)))
        .count()
        * BLOCK;
    let rest = &bytes[plain..];
    plain
        + rest
            .iter()
            .position(|byte| !is_plain(*byte))
            .unwrap_or(rest.len())
}

/// Writes a JSON string that is pure ASCII, quotes included.
#[inline]
pub fn write_str(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    let plain = plain_prefix(bytes);
    out.extend_from_slice(&bytes[..plain]);
    if plain < bytes.len() {
        write_escaped(out, &text[plain..]);
    }
    out.push(b'"');
}

#[cold]
fn write_escaped(out: &mut Vec<u8>, mut text: &str) {
    while let Some(character) = text.chars().next() {
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\x0c' => out.extend_from_slice(b"\\f"),
            '\x08' => out.extend_from_slice(b"\\b"),
            other => other
                .encode_utf16(&mut [0; 2])
                .iter()
                .for_each(|unit| write_unit(out, *unit)),
        }
        text = &text[character.len_utf8()..];
        let plain = plain_prefix(text.as_bytes());
        out.extend_from_slice(&text.as_bytes()[..plain]);
        text = &text[plain..];
    }
}

/// `\uXXXX`.
fn write_unit(out: &mut Vec<u8>, unit: u16) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digit = |shift: u16| HEX[usize::from(unit >> shift & 0xF)];
    out.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
}

/// Writes an unsigned integer in decimal.
#[inline]
pub fn write_u64(out: &mut Vec<u8>, mut number: u64) {
    // 20 digits hold u64::MAX.
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Writes a signed integer in decimal.
#[inline]
pub fn write_i64(out: &mut Vec<u8>, number: i64) {
    if number < 0 {
        out.push(b'-');
    }
    write_u64(out, number.unsigned_abs());
}

/// Writes a float as `float.__repr__` does: the shortest digits that read back as the same
/// float, in exponent form unless the point is at most 16 digits to the right, or at most
/// three zeros to the left, of the first digit. False, and nothing written, if it is not finite.
#[inline]
pub fn write_f64(out: &mut Vec<u8>, number: f64) -> bool {
    if !number.is_finite() {
        return false;
    }
    let mut buffer = ryu::Buffer::new();
    let text = buffer.format_finite(number);
    let magnitude = number.abs();
    // In this range both write the same, decimal, form.
    if (1e-4..1e16).contains(&magnitude) || magnitude == 0.0 {
        out.extend_from_slice(text.as_bytes());
    } else {
        write_exponent_form(out, text);
    }
    true
}

/// From ryu's `1.5e-7` or `0.000015` to Python's `1.5e-07` and `1.5e-05`.
#[cold]
fn write_exponent_form(out: &mut Vec<u8>, text: &str) {
    let (sign, text) = match text.strip_prefix('-') {
        Some(text) => ("-", text),
        None => ("", text),
    };
    out.extend_from_slice(sign.as_bytes());
    let exponent = match text.split_once('e') {
        Some((mantissa, exponent)) => {
            out.extend_from_slice(mantissa.as_bytes());
            exponent.parse::<i32>().expect("ryu writes a number")
        }
        None => {
            let fraction = text.strip_prefix("0.").expect("only for tiny numbers");
            let digits = fraction.trim_start_matches('0');
            out.extend_from_slice(&digits.as_bytes()[..1]);
            if digits.len() > 1 {
                out.push(b'.');
                out.extend_from_slice(&digits.as_bytes()[1..]);
            }
            -((fraction.len() - digits.len()) as i32 + 1)
        }
    };
    out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
    let exponent = u64::from(exponent.unsigned_abs());
    if exponent < 10 {
        out.push(b'0');
    }
    write_u64(out, exponent);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("JSON is text")
    }

    fn string(text: &str) -> String {
        written(|out| write_str(out, text))
    }

    fn float(number: f64) -> String {
        written(|out| assert!(write_f64(out, number)))
    }

    #[test]
    fn digests_are_sha_256() {
        let abc = Digest::of(b"abc");
        assert_eq!(abc.0[..4], [0xBA, 0x78, 0x16, 0xBF]);
        assert_eq!(abc, Digest::of_parts(&[b"a", b"", b"bc"]));
        assert_eq!(abc.short(), abc.0[..16]);
    }

    #[test]
    fn strings_are_escaped_as_python_does() {
        assert_eq!(string(""), r#""""#);
        assert_eq!(string("plain ~"), r#""plain ~""#);
        assert_eq!(
            string("\"\\/\n\r\t\u{c}\u{8}"),
            r#""\"\\/\n\r\t\f\b""#,
            "the slash stays"
        );
        assert_eq!(
            string("\0\u{1f}\u{7f}é\u{ffff}😀"),
            r#""\u0000\u001f\u007f\u00e9\uffff\ud83d\ude00""#
        );
        assert_eq!(
            string("0123456789abcdef0123456789abcdé9 abcdefghijklmnopqrstuvwxyz"),
            r#""0123456789abcdef0123456789abcd\u00e99 abcdefghijklmnopqrstuvwxyz""#
        );
    }

    #[test]
    fn floats_are_written_as_python_does() {
        for (number, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-19.99, "-19.99"),
            (1e-4, "0.0001"),
            (0.00012, "0.00012"),
            (9.999e-5, "9.999e-05"),
            (1e-5, "1e-05"),
            (-1.5e-5, "-1.5e-05"),
            (1.25e-10, "1.25e-10"),
            (5e-324, "5e-324"),
            (123456789012345.6, "123456789012345.6"),
            (1e15, "1000000000000000.0"),
            (9007199254740993.0, "9007199254740992.0"),
            (9999999999999998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (-1.2345e16, "-1.2345e+16"),
            (1e22, "1e+22"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
        ] {
            assert_eq!(float(number), text);
        }
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut out = Vec::new();
            assert!(!write_f64(&mut out, number) && out.is_empty());
        }
    }

    proptest! {
        #[test]
        fn integers_are_decimal(signed: i64, unsigned: u64) {
            prop_assert_eq!(written(|out| write_i64(out, signed)), signed.to_string());
            prop_assert_eq!(written(|out| write_u64(out, unsigned)), unsigned.to_string());
        }

        #[test]
        fn floats_read_back(number in any::<f64>().prop_filter("finite", |number| number.is_finite())) {
            let text = float(number);
            prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), number.to_bits());
            let decimal = (1e-4..1e16).contains(&number.abs()) || number == 0.0;
            prop_assert_eq!(text.contains('e'), !decimal, "{}", text);
            prop_assert!(decimal == text.contains('.') || !decimal, "{}", text);
        }

        #[test]
        fn strings_read_back(text: String) {
            let json = string(&text);
            prop_assert!(json.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            prop_assert_eq!(unescape(&json), text);
        }

        #[test]
        fn the_sum_of_the_parts(bytes: Vec<u8>, cut: prop::sample::Index) {
            let (head, tail) = bytes.split_at(cut.index(bytes.len() + 1));
            prop_assert_eq!(Digest::of(&bytes), Digest::of_parts(&[head, tail]));
        }
    }

    /// A JSON string's text, read in the plainest way.
    fn unescape(json: &str) -> String {
        let inner = &json[1..json.len() - 1];
        let mut units = Vec::new();
        let mut rest = inner.chars();
        while let Some(character) = rest.next() {
            let character = match character {
                '\\' => match rest.next().expect("something is escaped") {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    'f' => '\x0c',
                    'b' => '\x08',
                    'u' => {
                        let hex: String = rest.by_ref().take(4).collect();
                        units.push(u16::from_str_radix(&hex, 16).expect("four digits"));
                        continue;
                    }
                    other => other,
                },
                other => other,
            };
            units.extend_from_slice(character.encode_utf16(&mut [0; 2]));
        }
        String::from_utf16(&units).expect("whole surrogate pairs")
    }
}
