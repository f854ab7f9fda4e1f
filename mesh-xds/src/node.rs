//! A configuration file as a tree that remembers its lines, so that every error can name its place.
//!
//! YAML (anchors and merge keys too) and JSON give the same tree. Scalars keep their text: what it means
//! depends on the field that it is for, which this module must not know.

use std::collections::HashMap;
use std::fmt;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::problem::Problem;

/// Aliases may repeat a part many times; a file that grows beyond this many nodes is refused.
const MAX_NODES: usize = 1_000_000;
/// Depth at which a file is refused, long before the stack ends.
const MAX_DEPTH: usize = 128;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// 1 is the first; 0 where it is not known (JSON).
    pub line: u32,
    pub content: Content,
}

/// What a [`Node`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Null,
    /// Text, and whether it stood without quotes (a number, `true`, a word).
    Scalar(String, bool),
    List(Vec<Node>),
    /// In file order, without duplicates.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// Reads YAML or JSON.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        // JSON is YAML but for details of escapes; what is not JSON gets YAML's error, which has a place.
        if text.trim_start().starts_with('{')
            && let Ok(node) = serde_json::from_str(text)
        {
            return Ok(node);
        }
        Loader::default().load(text)
    }

    /// The entry of a map.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.content {
            Content::Map(entries) => entries.iter().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The entries of a map; none if it is not a map.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Node)> {
        let entries = match &self.content {
            Content::Map(entries) => entries.as_slice(),
            _ => &[],
        };
        entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The line of the deepest node on a path such as `static_resources.clusters[2].name`.
    pub fn line_of(&self, path: &str) -> u32 {
        let mut node = self;
        let mut line = self.line;
        for step in path.split(['.', '[']) {
            let next = match (step.strip_suffix(']'), &node.content) {
                (Some(index), Content::List(items)) => index.parse().ok().and_then(|i: usize| items.get(i)),
                (None, Content::Map(_)) => node.get(step),
                _ => None,
            };
            let Some(next) = next else { break };
            node = next;
            line = if node.line == 0 { line } else { node.line };
        }
        line
    }

    /// What it is, for messages.
    pub fn describe(&self) -> String {
        match &self.content {
            Content::Null => "null".to_owned(),
            Content::Scalar(text, true) => text.clone(),
            Content::Scalar(text, false) => format!("{text:?}"),
            Content::List(_) => "a list".to_owned(),
            Content::Map(_) => "a map".to_owned(),
        }
    }
}

#[derive(Default)]
struct Loader {
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

type Events<'a, 'b> = &'b mut Parser<'a, saphyr_parser::StrInput<'a>>;

impl Loader {
    fn load(mut self, text: &str) -> Result<Node, Problem> {
        let mut events = Parser::new_from_str(text);
        let mut root = None;
        loop {
            let (event, span) = next(&mut events)?;
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
                _ if root.is_some() => {
                    return Err(at(span, "a second YAML document; keep one in this file"));
                }
                event => root = Some(self.node(event, span, &mut events, 0)?),
            }
        }
        root.ok_or_else(|| Problem::new("", "the file is empty; it must hold a map"))
    }

    fn node(
        &mut self,
        event: Event<'_>,
        span: Span,
        events: Events<'_, '_>,
        depth: usize,
    ) -> Result<Node, Problem> {
        let line = u32::try_from(span.start.line()).unwrap_or(0);
        self.nodes += 1;
        if self.nodes > MAX_NODES || depth > MAX_DEPTH {
            return Err(at(span, "too large or too deeply nested; use fewer aliases and levels"));
        }
        let (content, anchor) = match event {
            Event::Alias(id) => return self.alias(id, span),
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let content = if null { Content::Null } else { Content::Scalar(text.into_owned(), plain) };
                (content, anchor)
            }
            Event::SequenceStart(.., anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match next(events)? {
                        (Event::SequenceEnd, _) => break,
                        (event, span) => items.push(self.node(event, span, events, depth + 1)?),
                    }
                }
                (Content::List(items), anchor)
            }
            Event::MappingStart(.., anchor, _) => (self.map(events, depth)?, anchor),
            other => return Err(at(span, &format!("unexpected YAML {other:?}"))),
        };
        let node = Node { line, content };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, id: usize, span: Span) -> Result<Node, Problem> {
        let node = self.anchors.get(&id).ok_or_else(|| at(span, "an alias to something around it"))?;
        self.nodes += count(node);
        if self.nodes > MAX_NODES {
            return Err(at(span, "aliases make the file too large; use fewer"));
        }
        Ok(node.clone())
    }

    fn map(&mut self, events: Events<'_, '_>, depth: usize) -> Result<Content, Problem> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = next(events)?;
            if event == Event::MappingEnd {
                break;
            }
            let key = self.node(event, span, events, depth + 1)?;
            let Content::Scalar(key, plain) = key.content else {
                return Err(at(span, "a key must be text"));
            };
            let (event, value_span) = next(events)?;
            let mut value = self.node(event, value_span, events, depth + 1)?;
            if plain && key == "<<" {
                merged.extend(merge_sources(value, span)?);
                continue;
            }
            if entries.iter().any(|(known, _)| *known == key) {
                return Err(at(span, &format!("key {key:?} is given twice; keep one")));
            }
            // A block's errors belong to the line of its key.
            if !matches!(value.content, Content::Scalar(..)) {
                value.line = u32::try_from(span.start.line()).unwrap_or(0);
            }
            entries.push((key, value));
        }
        for (key, value) in merged {
            if !entries.iter().any(|(known, _)| *known == key) {
                entries.push((key, value));
            }
        }
        Ok(Content::Map(entries))
    }
}

/// The entries that a merge key (`<<`) adds; the first of a list wins.
fn merge_sources(value: Node, span: Span) -> Result<Vec<(String, Node)>, Problem> {
    let problem = || at(span, "a merge key (<<) takes a map or a list of maps");
    match value.content {
        Content::Map(entries) => Ok(entries),
        Content::List(items) => {
            let maps = items.into_iter().map(|item| match item.content {
                Content::Map(entries) => Ok(entries),
                _ => Err(problem()),
            });
            Ok(maps.collect::<Result<Vec<_>, _>>()?.concat())
        }
        _ => Err(problem()),
    }
}

fn count(node: &Node) -> usize {
    1 + match &node.content {
        Content::List(items) => items.iter().map(count).sum(),
        Content::Map(entries) => entries.iter().map(|(_, v)| count(v)).sum::<usize>(),
        _ => 0,
    }
}

fn next<'a>(events: Events<'a, '_>) -> Result<(Event<'a>, Span), Problem> {
    match events.next_event() {
        Some(Ok(event)) => Ok(event),
        Some(Err(error)) => Err(Problem {
            path: String::new(),
            line: u32::try_from(error.marker().line()).unwrap_or(0),
            message: format!("not valid YAML: {} (column {})", error.info(), error.marker().col() + 1),
        }),
        None => Err(Problem::new("", "not valid YAML: the file ends too early")),
    }
}

fn at(span: Span, message: &str) -> Problem {
    Problem {
        path: String::new(),
        line: u32::try_from(span.start.line()).unwrap_or(0),
        message: message.to_owned(),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(JsonVisitor).map(|content| Node { line: 0, content })
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Scalar(value.to_string(), true))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Scalar(value.to_string(), true))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Scalar(value.to_string(), true))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Content, E> {
        Ok(Content::Scalar(value.to_string(), true))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Scalar(value.to_owned(), false))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Content::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Node>()? {
            if entries.iter().any(|(known, _)| *known == key) {
                return Err(A::Error::custom(format!("key {key:?} is given twice")));
            }
            entries.push((key, value));
        }
        Ok(Content::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(node: &Node) -> &str {
        match &node.content {
            Content::Scalar(text, _) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn anchors_and_merge_keys_repeat_parts_and_own_keys_win() {
        let text = "base: &b {a: 1, b: 2}\nuse:\n  <<: *b\n  b: 3\nlist: [*b]\n";
        let root = Node::parse(text).unwrap();
        let used = root.get("use").unwrap();
        assert_eq!((scalar(used.get("a").unwrap()), scalar(used.get("b").unwrap())), ("1", "3"));
        assert!(matches!(&root.get("list").unwrap().content, Content::List(l) if l.len() == 1));
    }

    #[test]
    fn yaml_and_json_read_as_the_same_tree() {
        let json = r#"{"a": {"b": [1, true, null, "x\ud83d\ude00"]}}"#;
        let yaml = "a:\n  b: [1, true, ~, \"x😀\"]\n";
        fn without_lines(mut node: Node) -> Node {
            node.line = 0;
            match &mut node.content {
                Content::List(items) => items.iter_mut().for_each(|i| *i = without_lines(i.clone())),
                Content::Map(entries) => {
                    entries.iter_mut().for_each(|(_, v)| *v = without_lines(v.clone()));
                }
                _ => {}
            }
            node
        }
        assert_eq!(without_lines(Node::parse(json).unwrap()), without_lines(Node::parse(yaml).unwrap()));
    }

    #[test]
    fn the_line_of_a_path_is_that_of_its_deepest_known_part() {
        let root = Node::parse("a:\n  b:\n  - c: 1\n  - c: 2\n").unwrap();
        assert_eq!(root.line_of("a.b[1].c"), 4);
        assert_eq!(root.line_of("a.b[1].missing"), 4);
        assert_eq!(root.line_of("a"), 1);
    }

    #[test]
    fn syntax_errors_name_their_line() {
        for (text, line, part) in [
            ("a: 1\na: 2\n", 2, "key \"a\" is given twice"),
            ("a: [1\nb: 2\n", 2, "not valid YAML"),
            ("a: 1\n---\nb: 2\n", 3, "second YAML document"),
            ("x: *nope\n", 1, "not valid YAML"),
            ("", 0, "empty"),
        ] {
            let problem = Node::parse(text).unwrap_err();
            assert_eq!(problem.line, line, "{text:?}: {problem:?}");
            assert!(problem.message.contains(part), "{text:?}: {problem:?}");
        }
    }

    #[test]
    fn aliases_that_multiply_are_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..10 {
            let list = vec![format!("*a{}", i - 1); 10].join(", ");
            text += &format!("a{i}: &a{i} [{list}]\n");
        }
        assert!(Node::parse(&text).unwrap_err().message.contains("too large"));
    }
}
