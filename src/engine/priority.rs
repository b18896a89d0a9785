//! provisional
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Priority {
    Critical,
    High,
    Normal,
    Low,
}
#[allow(missing_docs)]
impl Priority {
    pub const COUNT: usize = 4;
    pub const fn index(self) -> usize {
        self as usize
    }
}
#[derive(Default)]
#[allow(missing_docs)]
pub struct Starts;
#[allow(missing_docs)]
impl Starts {
    pub fn choose(&mut self, _now: u64, heads: [Option<u64>; 4]) -> Option<usize> {
        heads.iter().position(Option::is_some)
    }
}

impl TryFrom<u8> for Priority { type Error = u8; fn try_from(n: u8) -> Result<Self, u8> { Ok(match n {0=>Self::Critical,1=>Self::High,2=>Self::Normal,3=>Self::Low,n=>return Err(n)}) } }
