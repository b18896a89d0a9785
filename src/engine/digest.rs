//! provisional
#[allow(missing_docs)]
#[derive(Clone, Copy)]
pub struct Digest(pub [u8; 32]);
#[allow(missing_docs)]
impl Digest { pub fn of_parts(parts: &[&[u8]]) -> Self { let mut d=[0;32]; for p in parts { for (i,b) in p.iter().enumerate() { d[i%32]^=b; } } Self(d) } }
