//! Numbers in JSON, as the `repr` of Python's `int` and `float` writes them.

use super::write_start;

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
pub fn write_u64(out: &mut Vec<u8>, value: u64) {
    const LOW: u64 = 100_000_000;
    if value >= LOW {
        write_u64(out, value / LOW);
        out.extend_from_slice(&(eight_digits(value % LOW) | ZEROS).to_le_bytes());
        return;
    }
    let digits = eight_digits(value);
    // The last digit counts even where it is a zero.
    let zeros = (digits | 1 << 56).trailing_zeros() / 8;
    let shown = (digits | ZEROS) >> (8 * zeros);
    write_start(out, &shown.to_le_bytes(), 8 - zeros as usize);
}

const ZEROS: u64 = u64::from_le_bytes([b'0'; 8]);

/// The eight digits of a number that has no more, as bytes from 0 to 9, the first one lowest: split into
/// halves, quarters and digits, all parts of one size at once.
#[inline]
fn eight_digits(value: u64) -> u64 {
    let halves = (value / 10_000) | ((value % 10_000) << 32);
    // A division by 100 of numbers below 10,000, and one by 10 of numbers below 100.
    let hundreds = ((halves * 10_486) >> 20) & 0x7F_0000_007F;
    let quarters = hundreds | ((halves - 100 * hundreds) << 16);
    let tens = ((quarters * 103) >> 10) & 0x0F_000F_000F_000F;
    tens | ((quarters - 10 * tens) << 8)
}

/// Writes a finite float as `float.__repr__` does: the shortest digits that read back as the
/// same float, with an exponent below 1e-04 and from 1e+16 on.
#[inline]
pub fn write_f64(out: &mut Vec<u8>, value: f64) {
    debug_assert!(
        value.is_finite(),
        "JSON has no form for it; the caller has refused it"
    );
    if !write_short_decimal(out, value) {
        write_shortest(out, value);
    }
}

#[inline(never)]
fn write_shortest(out: &mut Vec<u8>, value: f64) {
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
    // Through a signed number, which the processor converts by itself.
    let scaled = (magnitude * SCALE as f64 + 0.5) as i64;
    if scaled as f64 / SCALE as f64 != magnitude {
        return false;
    }
    let scaled = scaled as u64;
    if value < 0.0 {
        out.push(b'-');
    }
    if scaled < 1_000 * SCALE {
        // Three digits, the point and four decimals, in one number. How many of them count is found
        // beside the digits and not from them: what is written next waits for it.
        let before = u32::from(scaled < 100 * SCALE) + u32::from(scaled < 10 * SCALE);
        let ends_in_zeros = |power: u32| u32::from((scaled as u32).is_multiple_of(power));
        let after = ends_in_zeros(10) + ends_in_zeros(100) + ends_in_zeros(1_000);
        let digits = eight_digits(scaled);
        let (whole, decimals) = ((digits >> 8) & 0xFF_FFFF, digits >> 32 << 32);
        let shown = (u64::from_le_bytes(*b"000.0000") | whole | decimals) >> (8 * before);
        write_start(out, &shown.to_le_bytes(), (8 - before - after) as usize);
    } else {
        write_u64(out, scaled / SCALE);
        let decimals = (eight_digits(scaled % SCALE) >> 32) as u32;
        let text = u64::from_le_bytes(*b".0000\0\0\0") | u64::from(decimals) << 8;
        // The first always counts.
        let zeros = (decimals | 1).leading_zeros() / 8;
        write_start(out, &text.to_le_bytes(), 5 - zeros as usize);
    }
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

        /// The same below a thousand, where the whole number and the decimals are written at once.
        #[test]
        fn so_are_small_ones(scaled in 0..20_000_000_u64, places in 0..6) {
            let value = scaled as f64 / 10_f64.powi(places);
            for value in [value, -value, value / 1_000.0, value.min(999.9999), value.min(1000.0).next_up()] {
                let mut quick = Vec::new();
                if write_short_decimal(&mut quick, value) {
                    let mut buffer = ryu::Buffer::new();
                    prop_assert_eq!(quick, buffer.format_finite(value).as_bytes());
                }
            }
        }

        #[test]
        fn integers_of_every_length(value: u64, bits in 0_u32..64) {
            let value = value >> bits;
            prop_assert_eq!(written(|out| write_u64(out, value)), value.to_string());
            let value = -(value as i64 >> 1);
            prop_assert_eq!(written(|out| write_i64(out, value)), value.to_string());
        }

        #[test]
        fn floats_read_back(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            let text = written(|out| write_f64(out, value));
            prop_assert_eq!(text.parse::<f64>().expect("a float").to_bits(), bits);
        }
    }
}
