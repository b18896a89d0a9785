//! provisional
#![allow(missing_docs)]
use super::digest::Digest;
pub struct Idempotency<W>(std::marker::PhantomData<fn(W)>);
pub enum Claim<'a, W> {
    Duplicate,
    Pending(PendingClaim<'a, W>),
    Vacant(Vacant<'a, W>),
}
pub struct PendingClaim<'a, W>(&'a Idempotency<W>);
pub struct Vacant<'a, W>(&'a Idempotency<W>);
impl<W> Idempotency<W> {
    pub fn new(_ttl_ns: u64, _max_keys: usize, _seed: u64) -> Self {
        Self(std::marker::PhantomData)
    }
    pub fn claim(&self, _d: &Digest, _now: u64) -> Claim<'_, W> {
        Claim::Vacant(Vacant(self))
    }
    pub fn commit(&self, _d: &Digest, _now: u64) -> Vec<W> {
        Vec::new()
    }
    pub fn release(&self, _d: &Digest) -> Vec<W> {
        Vec::new()
    }
    pub fn len(&self) -> usize {
        0
    }
    pub fn evicted(&self) -> u64 {
        0
    }
}
impl<W> Vacant<'_, W> {
    pub fn commit(self, _now: u64) {}
    pub fn hold(self) {}
}
impl<W> PendingClaim<'_, W> {
    pub fn join(self, _w: W) {}
}
