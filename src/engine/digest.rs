//! SHA-256 digests of keys.
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of the concatenation of the parts.
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        parts.iter().for_each(|part| hash.update(part));
        Self(hash.finalize().into())
    }

    /// The first half, which is what an index keeps.
    pub fn short(&self) -> [u8; 16] {
        self.0[..16].try_into().expect("half of it")
    }
}
