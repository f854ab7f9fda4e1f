//! The hash functions that consistent hashing shares with Envoy: the same key must come to the same host,
//! whichever of the two proxies a client goes through.

use twox_hash::XxHash64;

/// The seed of libstdc++'s `std::hash`, which Envoy uses with `MURMUR_HASH_2`.
const MURMUR_SEED: u64 = 0xc70f_6907;
const MURMUR_FACTOR: u64 = 0xc6a4_a793_5bd1_e995;

/// xxHash64 of one key.
pub fn xxhash64(key: &[u8], seed: u64) -> u64 {
    XxHash64::oneshot(seed, key)
}

/// xxHash64 of several values: each is hashed with the hash of those before it as seed.
pub fn xxhash64_all<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    values.into_iter().fold(0, |seed, value| xxhash64(value, seed))
}

/// 64-bit MurmurHash2 as in libstdc++ (`MurmurHash64A`).
pub fn murmur2(key: &[u8]) -> u64 {
    let mix = |value: u64| value ^ (value >> 47);
    let mut hash = MURMUR_SEED ^ (key.len() as u64).wrapping_mul(MURMUR_FACTOR);
    let mut words = key.chunks_exact(8);
    for word in &mut words {
        let word = word.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
        hash ^= mix(word.wrapping_mul(MURMUR_FACTOR)).wrapping_mul(MURMUR_FACTOR);
        hash = hash.wrapping_mul(MURMUR_FACTOR);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        hash ^= rest.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
        hash = hash.wrapping_mul(MURMUR_FACTOR);
    }
    mix(mix(hash).wrapping_mul(MURMUR_FACTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of Envoy's own tests (`test/common/common/hash_test.cc`).
    #[test]
    fn the_hashes_are_those_of_envoy() {
        assert_eq!(xxhash64(b"foo", 0), 3_728_699_739_546_630_719);
        assert_eq!(xxhash64(b"bar", 0), 5_234_164_152_756_840_025);
        assert_eq!(xxhash64(b"", 0), 17_241_709_254_077_376_921);
        assert_eq!(murmur2(b"foo"), 9_631_199_822_919_835_226);
        assert_eq!(murmur2(b"bar"), 11_474_628_671_133_349_555);
        assert_eq!(murmur2(b"foo\nbar"), 16_306_510_975_912_980_159);
    }

    #[test]
    fn the_hash_of_one_value_is_that_of_the_value() {
        assert_eq!(xxhash64_all([&b"foo"[..]]), xxhash64(b"foo", 0));
        assert_ne!(xxhash64_all([&b"a"[..], b"b"]), xxhash64_all([&b"b"[..], b"a"]));
    }
}
