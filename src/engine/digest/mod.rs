//! Canonical JSON, byte for byte as CPython's `json.dumps` writes it, and its SHA-256.
//! Only the primitives: whoever knows the payload's types walks it and calls these. They
//! append to a buffer that the caller reuses, and allocate nothing else.

use sha2::{Digest as _, Sha256};

pub use hashing::Hashing;
pub use number::{write_f64, write_i64, write_u64};
pub use text::{is_plain, write_code_points, write_latin1, write_str};

mod hashing;
mod number;
mod text;

/// A SHA-256 digest: the identity of a key, or of an event's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
// Aligned, so that it is copied in words: at an odd place each copy waits for the one before.
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

/// Appends the beginning of a chunk: to copy all of it, which is known to the compiler, and to cut
/// it costs less than to call a function that copies so many bytes.
#[inline(always)]
pub fn write_start<const N: usize>(out: &mut Vec<u8>, chunk: &[u8; N], length: usize) {
    let end = out.len() + length;
    out.extend_from_slice(chunk);
    out.truncate(end);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

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
}
