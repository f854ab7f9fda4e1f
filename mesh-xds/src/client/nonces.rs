//! The nonces of one type on one stream. A server must never use one twice: an ACK would not say of what.

use std::collections::VecDeque;

/// As many as a server could still have in flight, and more.
const REMEMBERED: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Nonces(VecDeque<String>);

impl Nonces {
    /// False if it was used before. Servers without nonces send none at all.
    pub(super) fn take(&mut self, nonce: &str) -> bool {
        if nonce.is_empty() {
            return true;
        }
        if self.0.iter().any(|used| used == nonce) {
            return false;
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(nonce.to_owned());
        true
    }
}
