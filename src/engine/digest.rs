//! Canonical JSON, byte for byte as CPython's `json.dumps` writes it, and its SHA-256.
//! Only the primitives: whoever knows the payload's types walks it and calls these. They
//! append to a buffer that the caller reuses, and allocate nothing else.

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest: the identity of a key, or of an event's content.
// Aligned, so that it is copied in words: at an odd place each copy waits for the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(align(8))]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of these bytes.
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

    /// The first half: as much as an index in memory keeps. Two of a million million keys
    /// share it with a probability of about 1 in 10^15.
    #[inline]
    pub fn short(&self) -> [u8; 16] {
        self.0.as_chunks().0[0]
    }
}

/// Writes a string in quotes, everything but printable ASCII escaped (`ensure_ascii=True`).
#[inline]
pub fn write_str(out: &mut Vec<u8>, text: &str) {
    if is_plain(text.as_bytes()) {
        write_plain(out, text.as_bytes());
    } else {
        write_code_points(out, text.chars().map(u32::from));
    }
}

/// The same for a string in Latin-1, of which ASCII is a part.
#[inline]
pub fn write_latin1(out: &mut Vec<u8>, text: &[u8]) {
    if is_plain(text) {
        write_plain(out, text);
    } else {
        write_code_points(out, text.iter().map(|&byte| u32::from(byte)));
    }
}

/// The same for a string that is not UTF-8, by its code points. Surrogates stand for
/// themselves, as they do in CPython.
pub fn write_code_points(out: &mut Vec<u8>, code_points: impl Iterator<Item = u32>) {
    out.push(b'"');
    for code_point in code_points {
        match code_point {
            0x22 => out.extend_from_slice(b"\\\""),
            0x5C => out.extend_from_slice(b"\\\\"),
            0x20..0x7F => out.push(code_point as u8),
            0x08 => out.extend_from_slice(b"\\b"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0A => out.extend_from_slice(b"\\n"),
            0x0C => out.extend_from_slice(b"\\f"),
            0x0D => out.extend_from_slice(b"\\r"),
            0..=0xFFFF => write_utf16_unit(out, code_point as u16),
            _ => {
                let above = code_point - 0x1_0000;
                write_utf16_unit(out, 0xD800 | (above >> 10) as u16);
                write_utf16_unit(out, 0xDC00 | (above & 0x3FF) as u16);
            }
        }
    }
    out.push(b'"');
}

fn write_utf16_unit(out: &mut Vec<u8>, unit: u16) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digit = |shift: u16| HEX[usize::from(unit >> shift & 0xF)];
    out.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
}

#[inline]
fn write_plain(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text);
    out.push(b'"');
}

/// Whether no byte needs an escape: printable ASCII without quote and backslash.
#[inline]
fn is_plain(text: &[u8]) -> bool {
    let (words, rest) = text.as_chunks::<8>();
    words
        .iter()
        .all(|word| is_plain_word(u64::from_le_bytes(*word)))
        && rest
            .iter()
            .all(|&byte| (0x20..0x7F).contains(&byte) && byte != b'"' && byte != b'\\')
}

/// The same for eight bytes at once. Each test sets the high bit of a byte that fails it; a
/// borrow into the next byte can only come from one that has failed already.
#[inline]
fn is_plain_word(word: u64) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    let zero_in = |word: u64| word.wrapping_sub(ONES) & !word;
    let control = word.wrapping_sub(0x20 * ONES) & !word;
    let quote = zero_in(word ^ (u64::from(b'"') * ONES));
    let backslash = zero_in(word ^ (u64::from(b'\\') * ONES));
    let delete = zero_in(word ^ (0x7F * ONES));
    (word | control | quote | backslash | delete) & HIGH == 0
}

/// Writes an integer that fits.
#[inline]
pub fn write_i64(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    write_u64(out, value.unsigned_abs());
}

/// Writes an integer that fits.
#[inline]
pub fn write_u64(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// Writes a finite float as `float.__repr__` does: the shortest digits that read back as the
/// same float, with an exponent below 1e-04 and from 1e+16 on.
#[inline]
pub fn write_f64(out: &mut Vec<u8>, value: f64) {
    debug_assert!(
        value.is_finite(),
        "JSON has no form for it; the caller has refused it"
    );
    if write_short_decimal(out, value) {
        return;
    }
    let mut buffer = ryu::Buffer::new();
    let text = buffer.format_finite(value).as_bytes();
    let magnitude = value.abs();
    if (1e-4..1e16).contains(&magnitude) || magnitude == 0.0 {
        out.extend_from_slice(text);
    } else {
        write_with_exponent(out, text);
    }
}

/// Writes a float that has at most four decimals, as prices and sensor readings do; false: it has
/// more, or is out of range. Less than half the time of finding the shortest digits.
///
/// Why the digits are the shortest ones: both operands of the division are exact, so it is
/// rounded once, and the decimal `scaled / 10,000` reads back as `value`. It has at most 15
/// significant digits, and no two decimals of at most 15 digits read as the same float.
#[inline]
fn write_short_decimal(out: &mut Vec<u8>, value: f64) -> bool {
    const SCALE: u64 = 10_000;
    let magnitude = value.abs();
    if !(0.001..1e9).contains(&magnitude) {
        return false;
    }
    let scaled = (magnitude * SCALE as f64 + 0.5) as u64;
    if scaled as f64 / SCALE as f64 != magnitude {
        return false;
    }
    if value < 0.0 {
        out.push(b'-');
    }
    write_u64(out, scaled / SCALE);
    let mut decimals = *b".0000";
    let mut rest = scaled % SCALE;
    let mut length = 2;
    for place in (1..decimals.len()).rev() {
        let digit = (rest % 10) as u8;
        rest /= 10;
        decimals[place] += digit;
        if digit != 0 {
            length = length.max(place + 1);
        }
    }
    out.extend_from_slice(&decimals[..length]);
    true
}

/// From the forms `0.000012`, `1.2e-7` and `1e16` to `1.2e-05`, `1.2e-07` and `1e+16`.
#[cold]
fn write_with_exponent(out: &mut Vec<u8>, text: &[u8]) {
    let (mantissa, exponent) = match text.iter().position(|&byte| byte == b'e') {
        Some(at) => (&text[..at], read_exponent(&text[at + 1..])),
        None => (text, 0),
    };
    let point = mantissa.iter().position(|&byte| byte == b'.');
    let negative = mantissa[0] == b'-';
    // The digits without the sign, the point and the zeros in front of the first.
    let mut digits = [0; 24];
    let mut count = 0;
    let mut leading = 0;
    for &byte in mantissa.iter().filter(|byte| byte.is_ascii_digit()) {
        if count == 0 && byte == b'0' {
            leading += 1;
        } else {
            digits[count] = byte;
            count += 1;
        }
    }
    let whole = point.unwrap_or(mantissa.len()) - usize::from(negative);
    let exponent = exponent + whole as i32 - leading - 1;

    if negative {
        out.push(b'-');
    }
    out.push(digits[0]);
    if count > 1 {
        out.push(b'.');
        out.extend_from_slice(&digits[1..count]);
    }
    out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
    if exponent.abs() < 10 {
        out.push(b'0');
    }
    write_u64(out, u64::from(exponent.unsigned_abs()));
}

fn read_exponent(text: &[u8]) -> i32 {
    let (sign, digits) = match text.split_first() {
        Some((b'-', digits)) => (-1, digits),
        _ => (1, text),
    };
    sign * digits
        .iter()
        .fold(0, |value, &byte| value * 10 + i32::from(byte - b'0'))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("all output is ASCII")
    }

    #[test]
    fn floats_look_like_python_s() {
        let cases: [(f64, &str); 22] = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-19.99, "-19.99"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e15, "1000000000000000.0"),
            (9999999999999998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (-1e16, "-1e+16"),
            (1.2345678901234568e16, "1.2345678901234568e+16"),
            (1e22, "1e+22"),
            (1e100, "1e+100"),
            (f64::MAX, "1.7976931348623157e+308"),
            (0.0001, "0.0001"),
            (0.00010000000000000002, "0.00010000000000000002"),
            (0.00009999999999999999, "9.999999999999999e-05"),
            (0.00001, "1e-05"),
            (-0.0000123, "-1.23e-05"),
            (1.5e-7, "1.5e-07"),
            (1e-10, "1e-10"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
            (5e-324, "5e-324"),
        ];
        for (value, expected) in cases {
            assert_eq!(written(|out| write_f64(out, value)), expected);
        }
    }

    #[test]
    fn integers_at_the_borders() {
        for value in [0, 1, -1, 9, 10, -10, 99, 100, i64::MAX, i64::MIN] {
            assert_eq!(written(|out| write_i64(out, value)), value.to_string());
        }
        assert_eq!(
            written(|out| write_u64(out, u64::MAX)),
            u64::MAX.to_string()
        );
    }

    #[test]
    fn every_byte_is_escaped_or_not_wherever_it_stands() {
        for byte in 0..0x80_u8 {
            let expected = match byte {
                b'"' => "\\\"".to_owned(),
                b'\\' => "\\\\".to_owned(),
                b'\n' => "\\n".to_owned(),
                b'\r' => "\\r".to_owned(),
                b'\t' => "\\t".to_owned(),
                0x08 => "\\b".to_owned(),
                0x0C => "\\f".to_owned(),
                0x20..0x7F => char::from(byte).to_string(),
                _ => format!("\\u{byte:04x}"),
            };
            for (before, after) in [
                ("", ""),
                ("abc", "defg"),
                ("12345678", "12345678"),
                ("~~~~~~~", "!"),
            ] {
                let text = format!("{before}{}{after}", char::from(byte));
                let expected = format!("\"{before}{expected}{after}\"");
                assert_eq!(written(|out| write_str(out, &text)), expected);
                assert_eq!(written(|out| write_latin1(out, text.as_bytes())), expected);
            }
        }
        assert_eq!(
            written(|out| write_str(out, "é€😀")),
            "\"\\u00e9\\u20ac\\ud83d\\ude00\""
        );
        assert_eq!(
            written(|out| write_code_points(out, [0xD800].into_iter())),
            "\"\\ud800\""
        );
    }

    #[test]
    fn the_digest_is_sha_256() {
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let digest = Digest::of(b"abc");
        assert_eq!(
            digest
                .0
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>(),
            expected
        );
        assert_eq!(digest, Digest::of_parts(&[b"a", b"", b"bc"]));
        assert_eq!(digest.short(), digest.0[..16]);
    }

    proptest! {
        /// The quick way and the general one agree wherever both have an answer.
        #[test]
        fn short_decimals_are_the_shortest_digits(scaled in 0..20_000_000_000_000_u64, places in 0..6, up: bool) {
            let value = scaled as f64 / 10_f64.powi(places);
            for value in [value, value.next_down(), -value.next_up(), if up { value.trunc() } else { -value }] {
                let mut quick = Vec::new();
                if write_short_decimal(&mut quick, value) {
                    let mut buffer = ryu::Buffer::new();
                    prop_assert_eq!(quick, buffer.format_finite(value).as_bytes());
                }
            }
        }

        #[test]
        fn floats_read_back(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            let text = written(|out| write_f64(out, value));
            prop_assert_eq!(text.parse::<f64>().expect("a float").to_bits(), bits);
        }

        #[test]
        fn plain_is_what_needs_no_escape(bytes in proptest::collection::vec(0x1C..0x80_u8, 0..40)) {
            let plain = bytes.iter().all(|&byte| (0x20..0x7F).contains(&byte) && byte != b'"' && byte != b'\\');
            prop_assert_eq!(is_plain(&bytes), plain);
        }
    }
}
