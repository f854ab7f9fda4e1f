//! How names of headers are written. Inside the proxy they are lower case; a peer that cares gets them as they
//! came (`PreserveCaseFormatterConfig`) or in `Proper-Case`.

use std::sync::Arc;

use crate::model::network::KeepCase;

/// The names of a message as they came. In the extensions of a message whose codec was told to keep them, whoever
/// writes the message on by HTTP/1 writes them so again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OriginalNames {
    /// The first spelling of each name that has an upper case letter.
    names: Arc<[Box<[u8]>]>,
    /// `formatter_type_on_envoy_headers`: names that did not come are written as `Proper-Case`.
    proper_rest: bool,
}

impl OriginalNames {
    pub(super) fn of(lines: &[httparse::Header<'_>], keep: KeepCase) -> Self {
        let mut names: Vec<Box<[u8]>> = Vec::new();
        for name in lines.iter().map(|line| line.name.as_bytes()) {
            if !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                names.push(name.into());
            }
        }
        Self { names: names.into(), proper_rest: keep.proper_rest }
    }
}

/// How names are written.
#[derive(Debug, Clone, Copy, Default)]
pub enum HeaderCase<'a> {
    /// As Envoy does by default.
    #[default]
    Lower,
    Proper,
    Original(&'a OriginalNames),
}

impl<'a> HeaderCase<'a> {
    /// Names that came with the message count more than the codec's own way.
    pub(super) fn of(extensions: &'a http::Extensions, proper: bool) -> Self {
        match extensions.get() {
            Some(names) => Self::Original(names),
            None if proper => Self::Proper,
            None => Self::Lower,
        }
    }

    /// Appends a name, which is given in lower case.
    pub(super) fn write(self, out: &mut Vec<u8>, name: &str) {
        match self {
            Self::Lower => out.extend_from_slice(name.as_bytes()),
            Self::Proper => proper(out, name),
            Self::Original(original) => {
                let came = original.names.iter().find(|came| came.eq_ignore_ascii_case(name.as_bytes()));
                match came {
                    Some(came) => out.extend_from_slice(came),
                    None if original.proper_rest => proper(out, name),
                    None => out.extend_from_slice(name.as_bytes()),
                }
            }
        }
    }
}

fn proper(out: &mut Vec<u8>, name: &str) {
    let mut start = true;
    out.extend(name.bytes().map(|byte| {
        let written = if start { byte.to_ascii_uppercase() } else { byte };
        start = !byte.is_ascii_alphanumeric();
        written
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_they_came_and_others_as_configured() {
        let line = |name| httparse::Header { name, value: b"" };
        let lines = [line("X-ABC-def"), line("x-Abc-DEF"), line("plain")];
        for (proper_rest, rest) in [(false, "x-added"), (true, "X-Added")] {
            let names = OriginalNames::of(&lines, KeepCase { proper_rest });
            let mut extensions = http::Extensions::new();
            extensions.insert(names);
            let case = HeaderCase::of(&extensions, true);
            for (name, expected) in [("x-abc-def", "X-ABC-def"), ("plain", "plain"), ("x-added", rest)] {
                let mut out = Vec::new();
                case.write(&mut out, name);
                assert_eq!(out, expected.as_bytes());
            }
        }
    }
}
