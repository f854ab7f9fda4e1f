//! Envoy v3 messages: typed, and strictly read from YAML and JSON.
