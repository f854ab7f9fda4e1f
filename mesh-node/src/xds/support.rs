//! Which fields of which messages are honoured, which are ignored, and that all others are refused by name.
//!
//! One table, so that no converter has to name what it does not read, and nothing is skipped in silence. A
//! message that is not in the table is refused where it stands: a filter that is not understood rejects its
//! listener.

use mesh_xds::SetField;
use mesh_xds::prost::{Message, Name};

use super::error::XdsError;

/// A message (of Envoy's without `envoy.`), the fields that are honoured, and those that are ignored because they
/// change nothing that a peer or a pod could notice.
pub(super) type Row = (&'static str, &'static str, &'static str);

/// What [`check`] found besides errors.
#[derive(Debug, Default)]
pub struct Ignored {
    /// Full paths of fields that are set and ignored.
    pub paths: Vec<String>,
}

/// Checks every field that is set in `message`; `at` is the path of the message.
pub(super) fn check<T: Message + Name>(at: &str, message: &T, ignored: &mut Ignored) -> Result<(), XdsError> {
    let mut error = None;
    mesh_xds::visit(message, &mut |set| {
        if error.is_some() {
            return false;
        }
        match verdict(set) {
            Verdict::Honoured => return true,
            Verdict::Ignored => ignored.paths.push(join(at, set.path)),
            Verdict::Refused => {
                let path = join(at, set.path);
                error = Some(if set.field == "@type" {
                    XdsError::Extension { path, name: set.message.to_owned() }
                } else {
                    XdsError::Unsupported { path }
                });
            }
        }
        false
    });
    error.map_or(Ok(()), Err)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Honoured,
    Ignored,
    Refused,
}

fn verdict(set: SetField<'_>) -> Verdict {
    match of_field(set.message, set.field) {
        Verdict::Refused if set.empty && row(set.message).is_some() => Verdict::Ignored,
        verdict => verdict,
    }
}

/// What the table says of a field; `@type` stands for the message itself.
pub(super) fn of_field(message: &str, field: &str) -> Verdict {
    let Some((_, honoured, ignored)) = row(message) else { return Verdict::Refused };
    let lists = |list: &str| list.split(' ').any(|f| f == field);
    if field == "@type" || lists(honoured) {
        Verdict::Honoured
    } else if lists(ignored) {
        Verdict::Ignored
    } else {
        Verdict::Refused
    }
}

fn row(message: &str) -> Option<&'static Row> {
    let name = message.strip_prefix("envoy.").unwrap_or(message);
    rows().find(|(of, ..)| *of == name)
}

/// The whole table.
fn rows() -> impl Iterator<Item = &'static Row> {
    super::supported::ROWS.iter().chain(super::supported_filters::ROWS)
}

fn join(at: &str, path: &str) -> String {
    if at.is_empty() { path.to_owned() } else { format!("{at}.{path}") }
}

#[cfg(test)]
mod tests {
    use super::rows;

    /// The table as documentation. Written by `MESH_WRITE_DOCS=1 cargo test -p mesh-node support`.
    fn page() -> String {
        let mut page = include_str!("support.md").to_owned();
        page.push_str("\n| message (`envoy.…`) | honoured | ignored |\n| --- | --- | --- |\n");
        for (message, honoured, ignored) in rows() {
            let list = |fields: &str| fields.split_whitespace().collect::<Vec<_>>().join(", ");
            page.push_str(&format!("| `{message}` | {} | {} |\n", list(honoured), list(ignored)));
        }
        page.push_str(&super::super::istio_fields::section());
        page
    }

    #[test]
    fn the_documented_table_is_the_one_that_is_enforced() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/xds-support.md");
        if std::env::var_os("MESH_WRITE_DOCS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == page(),
            "docs/xds-support.md is old: MESH_WRITE_DOCS=1 cargo test -p mesh-node support"
        );
    }

    #[test]
    fn every_message_and_field_of_the_table_exists() {
        for (message, honoured, ignored) in rows() {
            let fields =
                mesh_xds::fields_of(&format!("envoy.{message}")).or_else(|| mesh_xds::fields_of(message));
            let fields = fields.unwrap_or_else(|| panic!("no message envoy.{message}"));
            let listed: Vec<_> =
                honoured.split(' ').chain(ignored.split(' ')).filter(|f| !f.is_empty()).collect();
            for (index, field) in listed.iter().enumerate() {
                assert!(fields.contains(field), "envoy.{message} has no field {field}");
                assert!(!listed[..index].contains(field), "envoy.{message}.{field} is listed twice");
            }
        }
    }
}
