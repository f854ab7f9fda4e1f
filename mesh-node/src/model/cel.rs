//! Expressions of the Common Expression Language, as access logs and their filters use them: parsed once. What is
//! here has no idea of streams; `telemetry/` evaluates it.
//!
//! Left out of the language: macros other than `has`, maps and messages written out, and `dyn`.

use regex::Regex;

/// A parsed expression.
#[derive(Debug, Clone)]
pub enum Expr {
    Literal(Literal),
    /// One of [`ROOTS`].
    Root(&'static str),
    Select(Box<Expr>, String),
    Index(Box<Expr>, Box<Expr>),
    /// `has(a.b)`
    Has(Box<Expr>),
    List(Vec<Expr>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    /// Condition, then, else.
    Conditional(Box<[Expr; 3]>),
    Call(Function, Vec<Expr>),
    /// `matches` with a pattern that is known.
    Matches(Box<Expr>, Regex),
}

impl PartialEq for Expr {
    fn eq(&self, other: &Self) -> bool {
        // As they were written.
        format!("{self:?}") == format!("{other:?}")
    }
}

impl Eq for Expr {}

/// A value that is written out.
#[derive(Debug, Clone, PartialEq)]
pub enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(String),
}

/// Operators with two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    Or,
    And,
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// Functions and methods, with the object as first argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    Size,
    String,
    Int,
    Double,
    StartsWith,
    EndsWith,
    Contains,
    Duration,
}

const FUNCTIONS: [(&str, Function, usize); 9] = [
    ("size", Function::Size, 1),
    ("string", Function::String, 1),
    ("int", Function::Int, 1),
    ("uint", Function::Int, 1),
    ("double", Function::Double, 1),
    ("startsWith", Function::StartsWith, 2),
    ("endsWith", Function::EndsWith, 2),
    ("contains", Function::Contains, 2),
    ("duration", Function::Duration, 1),
];

/// What an expression may begin with (Envoy: "Attributes").
pub const ROOTS: [&str; 9] = [
    "request",
    "response",
    "connection",
    "upstream",
    "source",
    "destination",
    "metadata",
    "filter_state",
    "xds",
];

/// Operators by how strongly they bind, the weakest first.
const LEVELS: [&[(&str, Binary)]; 5] = [
    &[("||", Binary::Or)],
    &[("&&", Binary::And)],
    &[
        ("==", Binary::Equal),
        ("!=", Binary::Unequal),
        ("<=", Binary::LessOrEqual),
        (">=", Binary::GreaterOrEqual),
        ("<", Binary::Less),
        (">", Binary::Greater),
        ("in", Binary::In),
    ],
    &[("+", Binary::Add), ("-", Binary::Subtract)],
    &[("*", Binary::Multiply), ("/", Binary::Divide), ("%", Binary::Remainder)],
];

/// Expressions nest so deep at most.
const MAX_DEPTH: usize = 100;

/// Reads an expression.
///
/// # Errors
/// A line of text about the first thing that is not understood.
pub fn parse(text: &str) -> Result<Expr, String> {
    let mut parser = Parser { text, rest: text, depth: 0 };
    let expr = parser.expr()?;
    parser.skip();
    match parser.rest {
        "" => Ok(expr),
        _ => Err(parser.unexpected()),
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
    depth: usize,
}

impl Parser<'_> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn unexpected(&self) -> String {
        let at = self.text.len() - self.rest.len() + 1;
        match self.rest.chars().next() {
            Some(c) => format!("{:?}: {c:?} at character {at} is not understood", self.text),
            None => format!("{:?}: ends too early", self.text),
        }
    }

    /// Takes a sign or a word, if it comes next.
    fn takes(&mut self, token: &str) -> bool {
        self.skip();
        let Some(after) = self.rest.strip_prefix(token) else { return false };
        let word = |c: char| c.is_alphanumeric() || c == '_';
        if token.starts_with(word) && after.starts_with(word) {
            return false;
        }
        self.rest = after;
        true
    }

    fn needs(&mut self, token: &str) -> Result<(), String> {
        if self.takes(token) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn expr(&mut self) -> Result<Expr, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("{:?}: nested too deeply", self.text));
        }
        let condition = self.level(0)?;
        let expr = if self.takes("?") {
            let then = self.expr()?;
            self.needs(":")?;
            Expr::Conditional(Box::new([condition, then, self.expr()?]))
        } else {
            condition
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn level(&mut self, level: usize) -> Result<Expr, String> {
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.level(level + 1)?;
        while let Some((_, operator)) = operators.iter().find(|(sign, _)| self.takes(sign)) {
            let right = self.level(level + 1)?;
            left = Expr::Binary(*operator, Box::new(left), Box::new(right));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expr, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("{:?}: nested too deeply", self.text));
        }
        let expr = if self.takes("!") {
            Expr::Not(Box::new(self.unary()?))
        } else if self.takes("-") {
            Expr::Negative(Box::new(self.unary()?))
        } else {
            self.member()?
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn member(&mut self) -> Result<Expr, String> {
        let mut expr = self.primary()?;
        loop {
            if self.takes(".") {
                let name = self.word()?;
                expr = match self.takes("(") {
                    true => {
                        let mut arguments = vec![expr];
                        arguments.extend(self.arguments(")")?);
                        self.call(&name, arguments)?
                    }
                    false => Expr::Select(Box::new(expr), name),
                };
            } else if self.takes("[") {
                let key = self.expr()?;
                self.needs("]")?;
                expr = Expr::Index(Box::new(expr), Box::new(key));
            } else {
                return Ok(expr);
            }
        }
    }

    fn primary(&mut self) -> Result<Expr, String> {
        if self.takes("(") {
            let expr = self.expr()?;
            self.needs(")")?;
            return Ok(expr);
        }
        if self.takes("[") {
            return Ok(Expr::List(self.arguments("]")?));
        }
        self.skip();
        match self.rest.chars().next() {
            Some('"' | '\'') => self.string(false),
            Some('r') if self.rest[1..].starts_with(['"', '\'']) => {
                self.rest = &self.rest[1..];
                self.string(true)
            }
            Some('0'..='9') => self.number(),
            Some('a'..='z' | 'A'..='Z' | '_') => self.named(),
            _ => Err(self.unexpected()),
        }
    }

    fn named(&mut self) -> Result<Expr, String> {
        let name = self.word()?;
        match &*name {
            "true" => return Ok(Expr::Literal(Literal::Bool(true))),
            "false" => return Ok(Expr::Literal(Literal::Bool(false))),
            "null" => return Ok(Expr::Literal(Literal::Null)),
            _ => {}
        }
        if self.takes("(") {
            let arguments = self.arguments(")")?;
            return self.call(&name, arguments);
        }
        match ROOTS.iter().find(|root| **root == name) {
            Some(root) => Ok(Expr::Root(root)),
            None => {
                Err(format!("{:?}: {name} is not an attribute; there are {}", self.text, ROOTS.join(", ")))
            }
        }
    }

    fn call(&self, name: &str, mut arguments: Vec<Expr>) -> Result<Expr, String> {
        match (name, arguments.as_slice()) {
            ("has", [Expr::Select(..)]) => return Ok(Expr::Has(Box::new(arguments.remove(0)))),
            ("matches", [_, Expr::Literal(Literal::Text(pattern))]) => {
                let regex = Regex::new(pattern).map_err(|error| format!("{:?}: {error}", self.text))?;
                return Ok(Expr::Matches(Box::new(arguments.remove(0)), regex));
            }
            _ => {}
        }
        let known = FUNCTIONS.iter().find(|(known, _, count)| *known == name && *count == arguments.len());
        match known {
            Some((_, function, _)) => Ok(Expr::Call(*function, arguments)),
            None => Err(format!("{:?}: {name} is not a function that is known here", self.text)),
        }
    }

    fn arguments(&mut self, end: &str) -> Result<Vec<Expr>, String> {
        let mut arguments = Vec::new();
        while !self.takes(end) {
            arguments.push(self.expr()?);
            if !self.takes(",") {
                self.needs(end)?;
                break;
            }
        }
        Ok(arguments)
    }

    fn word(&mut self) -> Result<String, String> {
        self.skip();
        let end =
            self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(self.rest.len());
        if end == 0 {
            return Err(self.unexpected());
        }
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(word.to_owned())
    }

    fn number(&mut self) -> Result<Expr, String> {
        let end =
            self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        let whole = digits.trim_end_matches(['u', 'U']);
        let literal = match (whole.strip_prefix("0x"), whole.parse::<i64>(), digits.parse::<f64>()) {
            (Some(hex), ..) => i64::from_str_radix(hex, 16).ok().map(Literal::Int),
            (None, Ok(number), _) => Some(Literal::Int(number)),
            (None, Err(_), Ok(number)) => Some(Literal::Double(number)),
            (None, Err(_), Err(_)) => None,
        };
        let literal = literal.ok_or_else(|| self.unexpected())?;
        self.rest = rest;
        Ok(Expr::Literal(literal))
    }

    fn string(&mut self, raw: bool) -> Result<Expr, String> {
        let mut chars = self.rest.char_indices();
        let quote = chars.next().map_or('"', |(_, quote)| quote);
        let mut text = String::new();
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.rest = &self.rest[at + c.len_utf8()..];
                    return Ok(Expr::Literal(Literal::Text(text)));
                }
                '\\' if !raw => match chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, 'r')) => text.push('\r'),
                    Some((_, c)) => text.push(c),
                    None => {}
                },
                c => text.push(c),
            }
        }
        Err(format!("{:?}: a string does not end", self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_named_with_its_place() {
        for (text, expected) in [
            ("response.code >= ", "\"response.code >= \": ends too early"),
            ("respons.code", "\"respons.code\": respons is not an attribute; there are request, "),
            ("request.path ~ 'x'", "\"request.path ~ 'x'\": '~' at character 14 is not understood"),
            ("size(1, 2)", "\"size(1, 2)\": size is not a function that is known here"),
            ("'open", "\"'open\": a string does not end"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(parse(&"(".repeat(100_000)).unwrap_err().ends_with("nested too deeply"));
        assert!(parse(&"!".repeat(100_000)).unwrap_err().ends_with("nested too deeply"));
    }
}
