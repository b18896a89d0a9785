//! The checksum of a row: CRC-32C over the table's name and every value with its type
//! and length, so that a flipped bit, a swapped column or a row of another table shows.

use rusqlite::types::ValueRef;

/// A checksum that is being worked out.
///
/// ```
/// use ironbus::engine::store::Checksum;
///
/// let sum = |name: &str| Checksum::of("person").text(name).integer(7).finish();
/// assert_eq!(sum("Ada"), sum("Ada"));
/// assert_ne!(sum("Ada"), sum("Adb"));
/// ```
#[derive(Clone, Debug)]
pub struct Checksum {
    sum: u32,
    /// Short values are summed up together: most of a row's are short.
    short: [u8; BUFFER],
    length: usize,
}

const BUFFER: usize = 128;

impl Checksum {
    /// Of a row of this table, no value yet.
    pub fn of(table: &str) -> Self {
        Self {
            sum: crc32c::crc32c(table.as_bytes()),
            short: [0; BUFFER],
            length: 0,
        }
    }

    /// With an integer.
    pub fn integer(&mut self, value: i64) -> &mut Self {
        self.short(1, value.to_le_bytes())
    }

    /// With a floating-point number.
    pub fn real(&mut self, value: f64) -> &mut Self {
        self.short(2, value.to_bits().to_le_bytes())
    }

    /// With a text.
    pub fn text(&mut self, value: &str) -> &mut Self {
        self.long(3, value.as_bytes())
    }

    /// With bytes.
    pub fn blob(&mut self, value: &[u8]) -> &mut Self {
        self.long(4, value)
    }

    /// With a NULL.
    pub fn null(&mut self) -> &mut Self {
        self.short(0, [0; 8])
    }

    /// With a text or a NULL.
    pub fn maybe_text(&mut self, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(value),
            None => self.null(),
        }
    }

    /// With a floating-point number or a NULL.
    pub fn maybe_real(&mut self, value: Option<f64>) -> &mut Self {
        match value {
            Some(value) => self.real(value),
            None => self.null(),
        }
    }

    /// With a value as SQLite gives it.
    pub fn value(&mut self, value: ValueRef<'_>) -> &mut Self {
        match value {
            ValueRef::Null => self.null(),
            ValueRef::Integer(value) => self.integer(value),
            ValueRef::Real(value) => self.real(value),
            ValueRef::Text(value) => self.long(3, value),
            ValueRef::Blob(value) => self.blob(value),
        }
    }

    /// The sum, as it is stored.
    pub fn finish(&mut self) -> i64 {
        self.sum_up();
        i64::from(self.sum)
    }

    fn short(&mut self, tag: u8, value: [u8; 8]) -> &mut Self {
        self.add(&[tag]);
        self.add(&value);
        self
    }

    fn long(&mut self, tag: u8, value: &[u8]) -> &mut Self {
        self.short(tag, (value.len() as u64).to_le_bytes());
        self.add(value);
        self
    }

    fn add(&mut self, bytes: &[u8]) {
        if self.length + bytes.len() > BUFFER {
            self.sum_up();
            if bytes.len() > BUFFER {
                self.sum = crc32c::crc32c_append(self.sum, bytes);
                return;
            }
        }
        self.short[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    fn sum_up(&mut self) {
        self.sum = crc32c::crc32c_append(self.sum, &self.short[..self.length]);
        self.length = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flip_of_a_bit_shows() {
        let text = b"an event's payload".to_vec();
        let sum = Checksum::of("event").blob(&text).finish();
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(Checksum::of("event").blob(&flipped).finish(), sum);
        }
    }

    #[test]
    fn how_the_values_are_cut_does_not_count() {
        for length in [0, 1, 100, 119, 120, 127, 128, 129, 500] {
            let text = "x".repeat(length);
            let mut row = Checksum::of("t");
            row.integer(1).text(&text).integer(2).null();
            let mut bytes = b"t".to_vec();
            for (tag, number) in [(1, 1), (3, length as u64)] {
                bytes.push(tag);
                bytes.extend(u64::to_le_bytes(number));
            }
            bytes.extend(text.bytes());
            bytes.extend([1, 2, 0, 0, 0, 0, 0, 0, 0]);
            bytes.extend([0; 9]);
            assert_eq!(row.finish(), i64::from(crc32c::crc32c(&bytes)), "{length}");
        }
    }

    #[test]
    fn where_a_value_ends_and_what_it_is_count() {
        let sum = |a: &str, b: &str| Checksum::of("t").text(a).text(b).finish();
        assert_ne!(sum("ab", "c"), sum("a", "bc"));
        assert_ne!(
            Checksum::of("t").integer(0).finish(),
            Checksum::of("t").null().finish()
        );
        assert_ne!(
            Checksum::of("t").text("x").finish(),
            Checksum::of("t").blob(b"x").finish()
        );
        assert_ne!(
            Checksum::of("t").text("x").finish(),
            Checksum::of("u").text("x").finish()
        );
    }

    #[test]
    fn values_from_sqlite_have_the_sum_of_what_was_written() {
        let read = Checksum::of("t")
            .value(ValueRef::Integer(-1))
            .value(ValueRef::Real(0.5))
            .value(ValueRef::Text(b"x"))
            .value(ValueRef::Blob(b"y"))
            .value(ValueRef::Null)
            .finish();
        let written = Checksum::of("t")
            .integer(-1)
            .real(0.5)
            .text("x")
            .blob(b"y")
            .null()
            .finish();
        assert_eq!(read, written);
    }
}
