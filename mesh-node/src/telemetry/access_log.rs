//! Access logs: one line for each finished stream, as text or JSON, appended to a buffered file, or one entry for a
//! server.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;

use super::format::{
    Context, Missing, RequestHead, UpstreamView, Value, evaluate, truncated, value, write_json,
};
use super::log_file::LogFile;
use super::log_filter::LogFilter;
use super::remote_log::RemoteLog;
use super::stream_info::StreamInfo;
use crate::model::format::{Format, Part};

/// One configured access log.
#[derive(Debug)]
pub struct AccessLog {
    pub output: Output,
    /// Streams that it does not want are not told.
    pub filter: Option<LogFilter>,
}

/// Where a finished stream is told.
#[derive(Debug)]
pub enum Output {
    File(Arc<LogFile>, LogFormat),
    Server(Arc<RemoteLog>),
}

/// How a line looks.
#[derive(Debug, Clone, PartialEq)]
pub struct LogFormat {
    pub layout: Layout,
    /// `omit_empty_values`: what has no value is left out, not written as `-` or `null`.
    pub omit_empty: bool,
}

/// Text or JSON.
#[derive(Debug, Clone, PartialEq)]
pub enum Layout {
    /// Ends with a line feed if the format does.
    Text(Format),
    /// One object for each line, keys sorted (`json_format`).
    Json(BTreeMap<String, JsonFormat>),
}

/// A value of a JSON format.
#[derive(Debug, Clone, PartialEq)]
pub enum JsonFormat {
    /// A format of one operator alone keeps the operator's type; a missing value is `null`.
    Format(Format),
    /// A number, boolean or null of the configuration.
    Literal(serde_json::Value),
    List(Vec<JsonFormat>),
    Object(BTreeMap<String, JsonFormat>),
}

thread_local! {
    /// Reused for each line of a worker.
    static LINE: RefCell<String> = const { RefCell::new(String::new()) };
}

impl AccessLog {
    /// Writes the line of a finished stream. Never waits: a line that finds the buffer full is counted and
    /// dropped.
    pub fn log(
        &self,
        info: &StreamInfo,
        request: Option<&RequestHead>,
        response: Option<&HeaderMap>,
        trailers: Option<&HeaderMap>,
        upstream: Option<UpstreamView<'_>>,
    ) {
        let (file, format) = match &self.output {
            Output::File(file, format) => (file, format),
            Output::Server(log) => return log.log(info, request),
        };
        let request = request.map(Into::into);
        let context = Context { info, request, response, trailers, upstream, local_reply: None };
        if self.filter.as_ref().is_some_and(|filter| !filter.wants(&context)) {
            return;
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            format.write(&context, line);
            file.append(line.as_bytes());
        });
    }
}

impl LogFormat {
    /// Appends the text, or the object and the end of its line.
    pub fn write(&self, context: &Context<'_>, out: &mut String) {
        let missing = if self.omit_empty { Missing::Empty } else { Missing::Dash };
        match &self.layout {
            Layout::Text(format) => evaluate(format, context, missing, out),
            Layout::Json(object) => {
                write_object(object, context, missing, out);
                out.push('\n');
            }
        }
    }
}

impl JsonFormat {
    fn write(&self, context: &Context<'_>, missing: Missing, out: &mut String) {
        match self {
            Self::Format(format) => write_format(format, context, missing, out),
            Self::Literal(value) => write_json(value, out),
            Self::List(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    item.write(context, missing, out);
                }
                out.push(']');
            }
            Self::Object(object) => write_object(object, context, missing, out),
        }
    }

    /// One operator that has no value.
    fn is_empty(&self, context: &Context<'_>) -> bool {
        let Self::Format(format) = self else { return false };
        match format.parts.as_slice() {
            [Part::Operator { operator, .. }] => value(operator, context) == Value::Missing,
            _ => false,
        }
    }
}

fn write_object(
    object: &BTreeMap<String, JsonFormat>,
    context: &Context<'_>,
    missing: Missing,
    out: &mut String,
) {
    out.push('{');
    let mut first = true;
    for (key, format) in object {
        if missing == Missing::Empty && format.is_empty(context) {
            continue;
        }
        if !first {
            out.push(',');
        }
        first = false;
        write_string(key, out);
        out.push(':');
        format.write(context, missing, out);
    }
    out.push('}');
}

fn write_format(format: &Format, context: &Context<'_>, missing: Missing, out: &mut String) {
    if let [Part::Operator { operator, max_length }] = format.parts.as_slice() {
        return match value(operator, context) {
            Value::Missing => out.push_str("null"),
            Value::Number(number) => out.push_str(itoa::Buffer::new().format(number)),
            Value::Text(text) => write_string(truncated(&text, *max_length), out),
            Value::Json(value) => write_json(&value, out),
            Value::Typed(text) => write_string(text, out),
        };
    }
    let mut text = String::new();
    evaluate(format, context, missing, &mut text);
    write_string(&text, out);
}

fn write_string(text: &str, out: &mut String) {
    // A string always has a JSON form.
    out.push_str(&serde_json::to_string(text).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::super::format::tests::{head, plain, req, stream, text};
    use super::*;
    use crate::model::format::{Operator, Plain};

    fn line(format: &LogFormat) -> String {
        let mut info = stream();
        info.response_code = Some(200);
        info.protocol = Some(http::Version::HTTP_11);
        info.bytes_sent = 5;
        let head = head();
        let context = Context { request: Some((&head).into()), ..Context::of(&info) };
        let mut out = String::new();
        format.write(&context, &mut out);
        out
    }

    #[test]
    fn a_text_line_is_what_envoy_writes() {
        let start = Part::Operator { operator: Operator::StartTime(None), max_length: None };
        let parts = vec![
            text("["),
            start,
            text("] \""),
            req(":method"),
            text(" "),
            req(":path"),
            text(" "),
            plain(Plain::Protocol),
            text("\" "),
            plain(Plain::ResponseCode),
            text(" "),
            plain(Plain::ResponseFlags),
            text(" "),
            plain(Plain::UpstreamHost),
            text("\n"),
        ];
        assert_eq!(
            line(&LogFormat { layout: Layout::Text(Format { parts }), omit_empty: false }),
            "[2016-12-15T16:07:39.250Z] \"GET /p?q HTTP/1.1\" 200 - -\n"
        );
    }

    #[test]
    fn json_keeps_the_types_of_single_operators() {
        let format = |parts| JsonFormat::Format(Format { parts });
        let object = BTreeMap::from([
            ("z".to_owned(), format(vec![plain(Plain::ResponseCode)])),
            ("a".to_owned(), format(vec![req("x-none")])),
            ("mixed".to_owned(), format(vec![text("x"), req("x-none"), text("\"y")])),
            ("flags".to_owned(), format(vec![plain(Plain::ResponseFlags)])),
            (
                "n".to_owned(),
                JsonFormat::List(vec![
                    JsonFormat::Literal(1.into()),
                    JsonFormat::Literal(serde_json::Value::Null),
                    JsonFormat::Object(BTreeMap::from([("y".to_owned(), format(vec![req(":path")]))])),
                ]),
            ),
        ]);
        assert_eq!(
            line(&LogFormat { layout: Layout::Json(object), omit_empty: false }),
            "{\"a\":null,\"flags\":\"-\",\"mixed\":\"x-\\\"y\",\"n\":[1,null,{\"y\":\"/p?q\"}],\"z\":200}\n"
        );
    }
}
