//! provisional
#[allow(missing_docs)]
#[derive(Clone, Copy)]
pub struct Digest(pub [u8; 32]);
