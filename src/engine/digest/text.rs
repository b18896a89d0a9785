//! Strings in JSON: quoted, and everything but printable ASCII escaped (`ensure_ascii=True`).

use super::write_start;

/// Writes a string.
#[inline]
pub fn write_str(out: &mut Vec<u8>, text: &str) {
    if !write_plain(out, text.as_bytes()) {
        write_code_points(out, text.chars().map(u32::from));
    }
}

/// The same for a string in Latin-1, of which ASCII is a part.
#[inline]
pub fn write_latin1(out: &mut Vec<u8>, text: &[u8]) {
    if !write_plain(out, text) {
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

/// Writes a string that needs no escape; false: it does, and nothing is written.
#[inline]
fn write_plain(out: &mut Vec<u8>, text: &[u8]) -> bool {
    if text.len() > 6 {
        return write_long_plain(out, text);
    }
    // With its quotes it fits into one number.
    const QUOTE: u64 = b'"' as u64;
    const BLANKS: u64 = u64::from_le_bytes([b' '; 8]);
    let bits = 8 * text.len();
    let word = little_endian(text);
    let plain = is_plain_word(word | BLANKS << bits);
    if plain {
        let quoted = QUOTE << 8 << bits | word << 8 | QUOTE;
        write_start(out, &quoted.to_le_bytes(), text.len() + 2);
    }
    plain
}

#[inline(never)]
fn write_long_plain(out: &mut Vec<u8>, text: &[u8]) -> bool {
    let plain = is_plain(text);
    if plain {
        out.reserve(text.len() + 2);
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
    }
    plain
}

/// At most eight bytes as a number.
#[inline]
fn little_endian(text: &[u8]) -> u64 {
    let word = |bytes: &[u8; 4]| u64::from(u32::from_le_bytes(*bytes));
    match (text.first_chunk(), text.last_chunk()) {
        // The two may overlap, and agree where they do.
        (Some(first), Some(last)) => word(first) | word(last) << (8 * (text.len() - 4)),
        _ => text
            .iter()
            .rev()
            .fold(0, |word, &byte| word << 8 | u64::from(byte)),
    }
}

/// Whether no byte needs an escape: printable ASCII without quote and backslash.
#[inline]
pub fn is_plain(text: &[u8]) -> bool {
    let (words, rest) = text.as_chunks::<8>();
    words
        .iter()
        .all(|word| is_plain_word(u64::from_le_bytes(*word)))
        && rest
            .iter()
            .all(|&byte| (0x20..0x7F).contains(&byte) && byte != b'"' && byte != b'\\')
}

/// The same for eight bytes at once. Each test sets the high bit of a byte that fails it; a borrow
/// or carry into the next byte can only come from one that has failed already.
#[inline]
fn is_plain_word(word: u64) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    let below = |word: u64, bound: u64| word.wrapping_sub(bound * ONES) & !word;
    // One bit turned, the quote comes to stand beside the controls, and nothing else does.
    let control_or_quote = below(word ^ (0x02 * ONES), 0x21);
    let backslash = below(word ^ (u64::from(b'\\') * ONES), 1);
    let delete = word.wrapping_add(ONES);
    (word | control_or_quote | backslash | delete) & HIGH == 0
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

    proptest! {
        /// Of every length, with what it is appended to left as it was.
        #[test]
        fn plain_text_is_quoted(before in "[a-z]{0,40}", text in "[ !#-\\[\\]-~]{0,60}") {
            let mut out = before.clone().into_bytes();
            write_str(&mut out, &text);
            prop_assert_eq!(String::from_utf8(out).unwrap(), format!("{before}\"{text}\""));
        }

        #[test]
        fn plain_is_what_needs_no_escape(bytes in proptest::collection::vec(0x1C..0x80_u8, 0..40)) {
            let plain = bytes.iter().all(|&byte| (0x20..0x7F).contains(&byte) && byte != b'"' && byte != b'\\');
            prop_assert_eq!(is_plain(&bytes), plain);
        }
    }
}
