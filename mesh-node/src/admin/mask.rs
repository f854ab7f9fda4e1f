//! Field masks over messages shown as JSON.

use serde_json::{Map, Value};

/// Keeps only the fields that one of `paths` (dotted) names; `None` if none of them leads to a field. A path
/// ends at a repeated field, as in protobuf; `@type` always stays.
pub fn apply(message: &Value, paths: &[&str]) -> Option<Value> {
    let object = message.as_object()?;
    let mut kept = Map::new();
    for (name, value) in object {
        let below: Vec<&str> = paths
            .iter()
            .filter_map(|path| path.strip_prefix(name.as_str()))
            .filter_map(|rest| if rest.is_empty() { Some("") } else { rest.strip_prefix('.') })
            .collect();
        if below.contains(&"") {
            kept.insert(name.clone(), value.clone());
        } else if !below.is_empty()
            && let Some(part) = apply(value, &below)
        {
            kept.insert(name.clone(), part);
        }
    }
    if kept.is_empty() {
        return None;
    }
    if let Some(type_url) = object.get("@type") {
        kept.insert("@type".to_owned(), type_url.clone());
    }
    Some(Value::Object(kept))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_named_fields_stay() {
        let message = json!({ "@type": "t", "node": { "id": "n", "cluster": "c" }, "list": [{ "a": 1 }] });
        assert_eq!(apply(&message, &["node.id"]), Some(json!({ "@type": "t", "node": { "id": "n" } })));
        assert_eq!(apply(&message, &["list"]), Some(json!({ "@type": "t", "list": [{ "a": 1 }] })));
        assert_eq!(apply(&message, &["list.a"]), None);
        assert_eq!(apply(&message, &["no", "nod"]), None);
    }
}
