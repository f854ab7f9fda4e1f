//! The source of chance for balancing, so that tests can say what chance brings.

/// Uniform random numbers, from any thread.
pub trait Random: Send + Sync + std::fmt::Debug {
    /// The next number, uniform over all of `u64`.
    fn next(&self) -> u64;
}

/// A generator per thread; not for secrets.
#[derive(Debug, Default)]
pub struct ThreadRandom;

impl Random for ThreadRandom {
    fn next(&self) -> u64 {
        fastrand::u64(..)
    }
}
