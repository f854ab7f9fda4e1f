//! Path templates (`envoy.path.match.uri_template`) as regular expressions: `*` is one segment, `**` any number of
//! them (only at the end), `{name}` and `{name=pattern}` are the same with a name.

use regex::Regex;

/// One segment, as RFC 3986 section 3.3 has it.
const SEGMENT: &str = "[a-zA-Z0-9-._~%!$&'()+,;:@=]+";
const SEGMENTS: &str = "[a-zA-Z0-9-._~%!$&'()+,;:@=/]*";

/// Compiles a template. The error says what is wrong with it.
pub(super) fn compile(template: &str) -> Result<Regex, String> {
    let wrong = |what: &str| format!("{template:?} is not a path template: {what}");
    let rest = template.strip_prefix('/').ok_or_else(|| wrong("it must begin with /"))?;
    let mut expression = String::from("^");
    let mut ended = false;
    for part in split(rest).ok_or_else(|| wrong("a brace is not closed"))? {
        if ended {
            return Err(wrong("** must be last"));
        }
        expression.push('/');
        let (prefix, pattern, suffix) = match (part.find('{'), part.rfind('}')) {
            (Some(open), Some(close)) if open < close => {
                let pattern = part[open + 1..close].split_once('=').map_or("*", |(_, pattern)| pattern);
                (&part[..open], pattern, &part[close + 1..])
            }
            (None, None) => ("", part, ""),
            _ => return Err(wrong("braces do not match")),
        };
        expression.push_str(&regex::escape(prefix));
        for (i, step) in pattern.split('/').enumerate() {
            if i > 0 {
                expression.push('/');
            }
            match step {
                "*" => expression.push_str(SEGMENT),
                "**" => {
                    expression.push_str(SEGMENTS);
                    ended = true;
                }
                literal if literal.contains('*') => return Err(wrong("* must stand alone in its segment")),
                literal => expression.push_str(&regex::escape(literal)),
            }
        }
        expression.push_str(&regex::escape(suffix));
    }
    expression.push('$');
    Regex::new(&expression).map_err(|_| wrong("it is too long"))
}

/// Segments; those within braces stay together. `None`: a brace is not closed.
fn split(path: &str) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0u32);
    for (at, byte) in path.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.checked_sub(1)?,
            b'/' if depth == 0 => {
                parts.push(&path[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&path[start..]);
    (depth == 0).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_one_segment_and_two_are_all_that_follow() {
        let table = [
            ("/api/*/items/**", "/api/v1/items/1/2", true),
            ("/api/*/items/**", "/api/v1/items/", true),
            ("/api/*/items/**", "/api/v1/x/items/1", false),
            ("/api/*", "/api/", false),
            ("/a/{id}/b", "/a/7/b", true),
            ("/a/{path=x/*}", "/a/x/7", true),
            ("/a/v{n}.json", "/a/v2.json", true),
            ("/a.b", "/axb", false),
        ];
        for (template, path, expected) in table {
            assert_eq!(compile(template).unwrap().is_match(path), expected, "{template} {path}");
        }
        for wrong in ["a", "/a/**/b", "/a/b*", "/a/{x"] {
            assert!(compile(wrong).is_err(), "{wrong}");
        }
    }
}
