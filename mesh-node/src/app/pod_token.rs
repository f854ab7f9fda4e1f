//! The token that a pod's sidecar shows its control plane, kept fresh for as long as the pod is enrolled.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_xds::client::Credentials;

use crate::kubernetes::{Bearer, Tokens};

/// Between attempts to get one, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A shorter life would mean to ask all the time.
const SHORTEST: Duration = Duration::from_secs(30);

/// The token that the pod's streams show; none until the API gave one.
#[derive(Default)]
pub struct PodToken(Mutex<Option<String>>);

impl PodToken {
    fn set(&self, token: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
    }
}

impl fmt::Debug for PodToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the secret.
        f.debug_struct("PodToken").finish_non_exhaustive()
    }
}

impl Credentials for PodToken {
    fn metadata(&self) -> Result<Vec<(String, String)>, String> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(token) => Ok(vec![("authorization".to_owned(), format!("Bearer {token}"))]),
            None => Err("the Kubernetes API has given no token for the pod yet".to_owned()),
        }
    }
}

/// Sees to it that there is a good one.
pub struct Keeper {
    pub tokens: Tokens,
    pub pod: Bearer,
    pub shown: Arc<PodToken>,
}

impl Keeper {
    /// Returns when there is a token, with the time after which it is to be renewed. Says once why there is none.
    pub async fn renew(&self) -> Duration {
        let (mut wait, mut told) = (AGAIN.0, None);
        loop {
            match self.tokens.of(&self.pod).await {
                Ok(token) => {
                    self.shown.set(token.secret);
                    return token.renew_after.max(SHORTEST);
                }
                Err(error) => {
                    let message = error.to_string();
                    if told.as_ref() != Some(&message) {
                        tracing::error!("{message}");
                    }
                    told = Some(message);
                }
            }
            tokio::time::sleep(wait).await;
            wait = AGAIN.1.min(wait * 2);
        }
    }

    /// Renews it again and again.
    pub async fn keep(&self, mut renew_after: Duration) {
        loop {
            tokio::time::sleep(renew_after).await;
            renew_after = self.renew().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_shown_as_istio_expects_it_and_never_in_a_log() {
        let shown = PodToken::default();
        assert!(shown.metadata().unwrap_err().contains("no token"));
        shown.set("secret".to_owned());
        assert_eq!(shown.metadata().unwrap(), [("authorization".to_owned(), "Bearer secret".to_owned())]);
        assert!(!format!("{shown:?}").contains("secret"));
    }
}
