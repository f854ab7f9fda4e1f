//! Query parameters of an administration request.

/// Decoded parameters in order.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (decoded(name), decoded(value)))
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| &**value)
    }

    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The `filter` parameter as a regular expression; the error is Envoy's text.
    pub fn regex(&self, name: &str) -> Result<Option<regex::Regex>, String> {
        self.get(name)
            .map(regex::Regex::new)
            .transpose()
            .map_err(|error| format!("Invalid re2 regex: {}", error.to_string().replace('\n', " ")))
    }
}

/// Percent-decoding; `+` stays, as in Envoy.
fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        let hex = |at: usize| after.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (byte, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            _ => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_found_by_name() {
        let query = Query::parse(Some("filter=%5Ecluster%5C.a%7C%7C&usedonly&x=%4&filter=b"));
        assert_eq!(query.get("filter"), Some("^cluster\\.a||"));
        assert!(query.has("usedonly"));
        assert_eq!(query.get("x"), Some("%4"));
        assert!(Query::parse(None).is_empty());
    }
}
