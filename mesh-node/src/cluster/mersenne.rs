//! The Mersenne Twister (Matsumoto and Nishimura 1998, `std::mt19937`). Bounded-load hashing draws its
//! alternatives from it, seeded with the key's hash: with another generator the same key would overflow to
//! another host than with Envoy.

const N: usize = 624;
const M: usize = 397;

/// The generator's state; some 2.5 KB, made only when a host is overloaded.
pub(crate) struct Mersenne {
    state: [u32; N],
    at: usize,
}

impl Mersenne {
    pub(crate) fn new(seed: u32) -> Self {
        let mut state = [seed; N];
        for i in 1..N {
            let before = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, at: N }
    }

    fn next(&mut self) -> u32 {
        if self.at == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twist;
            }
            self.at = 0;
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Uniform over `0..n`.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        let slice = (1u64 << 32) / u64::from(n);
        loop {
            let drawn = (u64::from(self.next()) / slice) as u32;
            if drawn < n {
                return drawn;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_one_that_the_c_plus_plus_standard_requires() {
        // [rand.predef]: the 10,000th number of a default-constructed mt19937.
        let mut mersenne = Mersenne::new(5489);
        for _ in 1..10_000 {
            mersenne.next();
        }
        assert_eq!(mersenne.next(), 4_123_659_995);
    }

    #[test]
    fn numbers_below_a_bound_are_below_it() {
        let mut mersenne = Mersenne::new(1);
        let drawn: Vec<u32> = (0..1000).map(|_| mersenne.below(3)).collect();
        assert!((0..3).all(|n| drawn.iter().filter(|d| **d == n).count() > 250));
        assert_eq!(mersenne.below(1), 0);
    }
}
