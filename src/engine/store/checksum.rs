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
#[derive(Clone, Copy, Debug)]
pub struct Checksum(u32);

impl Checksum {
    /// Of a row of this table, no value yet.
    pub fn of(table: &str) -> Self {
        Self(crc32c::crc32c(table.as_bytes()))
    }

    /// With an integer.
    #[must_use]
    pub fn integer(self, value: i64) -> Self {
        self.short(1, value.to_le_bytes())
    }

    /// With a floating-point number.
    #[must_use]
    pub fn real(self, value: f64) -> Self {
        self.short(2, value.to_bits().to_le_bytes())
    }

    /// With a text.
    #[must_use]
    pub fn text(self, value: &str) -> Self {
        self.long(3, value.as_bytes())
    }

    /// With bytes.
    #[must_use]
    pub fn blob(self, value: &[u8]) -> Self {
        self.long(4, value)
    }

    /// With a NULL.
    #[must_use]
    pub fn null(self) -> Self {
        self.short(0, [0; 8])
    }

    /// With a text or a NULL.
    #[must_use]
    pub fn maybe_text(self, value: Option<&str>) -> Self {
        value.map_or_else(|| self.null(), |value| self.text(value))
    }

    /// With a floating-point number or a NULL.
    #[must_use]
    pub fn maybe_real(self, value: Option<f64>) -> Self {
        value.map_or_else(|| self.null(), |value| self.real(value))
    }

    /// With a value as SQLite gives it.
    #[must_use]
    pub fn value(self, value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => self.null(),
            ValueRef::Integer(value) => self.integer(value),
            ValueRef::Real(value) => self.real(value),
            ValueRef::Text(value) => self.long(3, value),
            ValueRef::Blob(value) => self.blob(value),
        }
    }

    /// The sum, as it is stored.
    pub fn finish(self) -> i64 {
        i64::from(self.0)
    }

    fn short(self, tag: u8, value: [u8; 8]) -> Self {
        let mut bytes = [tag; 9];
        bytes[1..].copy_from_slice(&value);
        Self(crc32c::crc32c_append(self.0, &bytes))
    }

    fn long(self, tag: u8, value: &[u8]) -> Self {
        let head = self.short(tag, (value.len() as u64).to_le_bytes());
        Self(crc32c::crc32c_append(head.0, value))
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
            .value(ValueRef::Null);
        let written = Checksum::of("t")
            .integer(-1)
            .real(0.5)
            .text("x")
            .blob(b"y")
            .null();
        assert_eq!(read.finish(), written.finish());
    }
}
