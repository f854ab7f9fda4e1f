//! String, header and query parameter matchers.

use regex::Regex;

use mesh_xds::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use mesh_xds::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use mesh_xds::pb::envoy::config::route::v3::{HeaderMatcher as HeaderProto, QueryParameterMatcher};
use mesh_xds::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use mesh_xds::pb::envoy::r#type::matcher::v3::{
    RegexMatchAndSubstitute, RegexMatcher, StringMatcher as StringProto,
};

use super::error::{At, XdsError};
use crate::model::matcher::{
    HeaderKey, HeaderMatchKind, HeaderMatcher, QueryMatchKind, QueryMatcher, StringMatcher, StringPattern,
};

/// A matcher of a whole string.
pub(super) fn string(at: At<'_>, proto: &StringProto) -> Result<StringMatcher, XdsError> {
    let fold = |text: &String| if proto.ignore_case { text.to_ascii_lowercase() } else { text.clone() };
    let not_empty = |name: &str, text: &String| {
        if text.is_empty() { Err(at.field(name).invalid("must not be empty")) } else { Ok(fold(text)) }
    };
    let pattern = match &proto.match_pattern {
        Some(MatchPattern::Exact(text)) => StringPattern::Exact(fold(text)),
        Some(MatchPattern::Prefix(text)) => StringPattern::Prefix(not_empty("prefix", text)?),
        Some(MatchPattern::Suffix(text)) => StringPattern::Suffix(not_empty("suffix", text)?),
        Some(MatchPattern::Contains(text)) => StringPattern::Contains(not_empty("contains", text)?),
        Some(MatchPattern::SafeRegex(regex)) => {
            if proto.ignore_case {
                let message = "has no effect on safe_regex; begin the expression with (?i)";
                return Err(at.field("ignore_case").invalid(message));
            }
            StringPattern::Regex(whole(at.field("safe_regex"), regex)?)
        }
        Some(MatchPattern::Custom(_)) => return Err(at.field("custom").unsupported()),
        None => return Err(at.invalid("needs one of exact, prefix, suffix, safe_regex, contains")),
    };
    Ok(StringMatcher { pattern, ignore_case: proto.ignore_case })
}

/// A regular expression that must match the whole value, as RE2's `FullMatch`.
pub(super) fn whole(at: At<'_>, proto: &RegexMatcher) -> Result<Regex, XdsError> {
    compile(at, proto, &format!("^(?:{})$", proto.regex))
}

fn compile(at: At<'_>, proto: &RegexMatcher, pattern: &str) -> Result<Regex, XdsError> {
    if proto.regex.is_empty() {
        return Err(at.field("regex").invalid("must not be empty"));
    }
    Regex::new(pattern).map_err(|error| {
        // The last line says what is wrong; those before draw it.
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        at.field("regex").invalid(format!("{:?} is not a regular expression: {reason}", proto.regex))
    })
}

/// A rewrite: expression and substitution, with `\N` as `${N}` and `$` escaped.
pub(super) fn rewrite(at: At<'_>, proto: &RegexMatchAndSubstitute) -> Result<(Regex, String), XdsError> {
    let pattern = proto.pattern.as_ref().ok_or_else(|| at.field("pattern").invalid("is required"))?;
    let regex = compile(at.field("pattern"), pattern, &pattern.regex)?;
    let at = at.field("substitution");
    let mut out = String::new();
    let mut letters = proto.substitution.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some('\\') => out.push('\\'),
                Some(digit @ '0'..='9') if usize::from(digit as u8 - b'0') < regex.captures_len() => {
                    out.push_str(&format!("${{{digit}}}"));
                }
                Some(digit @ '0'..='9') => {
                    return Err(at.invalid(format!("names group {digit}, which the pattern does not have")));
                }
                _ => return Err(at.invalid("a backslash must be followed by a digit or a backslash")),
            },
            '$' => out.push_str("$$"),
            letter => out.push(letter),
        }
    }
    Ok((regex, out))
}

/// The header that a matcher looks at.
pub(super) fn header_key(at: At<'_>, name: &str) -> Result<HeaderKey, XdsError> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":method" => HeaderKey::Method,
        ":authority" | "host" => HeaderKey::Authority,
        ":scheme" => HeaderKey::Scheme,
        ":path" => HeaderKey::Path,
        ":status" => HeaderKey::Status,
        name => HeaderKey::Name(super::headers::name(at, name)?),
    })
}

/// All header matchers of a list.
pub(super) fn headers(at: At<'_>, protos: &[HeaderProto]) -> Result<Vec<HeaderMatcher>, XdsError> {
    protos.iter().enumerate().map(|(i, proto)| header(at.index(i), proto)).collect()
}

pub(super) fn header(at: At<'_>, proto: &HeaderProto) -> Result<HeaderMatcher, XdsError> {
    let plain = |pattern| HeaderMatchKind::Value(StringMatcher { pattern, ignore_case: false });
    let kind = match &proto.header_match_specifier {
        None => HeaderMatchKind::Present(true),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => HeaderMatchKind::Present(*present),
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => {
            HeaderMatchKind::Value(string(at.field("string_match"), matcher)?)
        }
        Some(HeaderMatchSpecifier::RangeMatch(range)) => HeaderMatchKind::Range(range.start, range.end),
        Some(HeaderMatchSpecifier::ExactMatch(text)) => plain(StringPattern::Exact(text.clone())),
        Some(HeaderMatchSpecifier::PrefixMatch(text)) => plain(StringPattern::Prefix(text.clone())),
        Some(HeaderMatchSpecifier::SuffixMatch(text)) => plain(StringPattern::Suffix(text.clone())),
        Some(HeaderMatchSpecifier::ContainsMatch(text)) => plain(StringPattern::Contains(text.clone())),
        Some(HeaderMatchSpecifier::SafeRegexMatch(regex)) => {
            plain(StringPattern::Regex(whole(at.field("safe_regex_match"), regex)?))
        }
    };
    Ok(HeaderMatcher {
        name: header_key(at.field("name"), &proto.name)?,
        kind,
        invert: proto.invert_match,
        treat_missing_as_empty: proto.treat_missing_header_as_empty,
    })
}

/// All query parameter matchers of a list.
pub(super) fn queries(at: At<'_>, protos: &[QueryParameterMatcher]) -> Result<Vec<QueryMatcher>, XdsError> {
    let one = |(i, proto): (usize, &QueryParameterMatcher)| {
        let at = at.index(i);
        let kind = match &proto.query_parameter_match_specifier {
            Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
                QueryMatchKind::Value(string(at.field("string_match"), matcher)?)
            }
            Some(QueryParameterMatchSpecifier::PresentMatch(present)) => QueryMatchKind::Present(*present),
            None => QueryMatchKind::Present(true),
        };
        Ok(QueryMatcher { name: proto.name.clone(), kind })
    };
    protos.iter().enumerate().map(one).collect()
}
