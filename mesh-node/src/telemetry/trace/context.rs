//! The identity of a span in headers: W3C Trace Context (`traceparent`, `tracestate`) and B3, in one header or
//! several. What does not parse is an error, never a guess: its request is not traced (as in Envoy).

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// Which span of which trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanContext {
    /// The upper half of a trace id of 128 bits.
    pub trace_high: Option<u64>,
    pub trace_low: u64,
    pub id: u64,
    pub parent: Option<u64>,
    pub sampled: bool,
    /// `tracestate`, passed on as it came.
    pub state: String,
    /// The parent is another process's.
    pub remote_parent: bool,
    pub form: Form,
}

/// How it passes from proxy to proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    #[default]
    W3c,
    B3,
    /// In one `b3` header.
    B3Single,
}

/// A header that names a trace cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed trace context")]
pub struct Malformed;

/// What a header says of sampling, and of the span that sent it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FromB3 {
    pub sampled: Option<bool>,
    pub context: Option<SpanContext>,
    /// There is a `b3` header.
    pub single: bool,
}

impl SpanContext {
    /// The first span of a trace.
    pub fn root(bits_128: bool, form: Form, sampled: bool) -> Self {
        let low = fastrand::u64(1..);
        Self {
            trace_high: bits_128.then(|| fastrand::u64(..)),
            trace_low: low,
            // Zipkin calls the first span as its trace.
            id: if form == Form::W3c { fastrand::u64(1..) } else { low },
            parent: None,
            sampled,
            state: String::new(),
            remote_parent: false,
            form,
        }
    }

    /// A span that this one began.
    pub fn child(&self, remote: bool) -> Self {
        Self { id: fastrand::u64(1..), parent: Some(self.id), remote_parent: remote, ..self.clone() }
    }

    /// 16 or 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        match self.trace_high {
            Some(high) => format!("{high:016x}{:016x}", self.trace_low),
            None => format!("{:016x}", self.trace_low),
        }
    }

    /// What access logs call the span: Envoy's Zipkin tracer has nothing to say.
    pub fn id_in_logs(&self) -> Option<String> {
        (self.form == Form::W3c).then(|| format!("{:016x}", self.id))
    }

    /// Reads `traceparent` and `tracestate`; `None`: there is none.
    ///
    /// # Errors
    /// It breaks W3C Trace Context section 3.2.
    pub fn from_w3c(headers: &HeaderMap) -> Result<Option<Self>, Malformed> {
        let Some(parent) = headers.get(TRACEPARENT) else { return Ok(None) };
        let parent = parent.to_str().map_err(|_| Malformed)?;
        let parts: Vec<&str> = parent.split('-').collect();
        let [version, trace, id, flags] = parts[..] else { return Err(Malformed) };
        if [version, trace, id, flags].map(str::len) != [2, 32, 16, 2] {
            return Err(Malformed);
        }
        hex(version)?;
        let (high, low, id) = (hex(&trace[..16])?, hex(&trace[16..])?, hex(id)?);
        if (high, low) == (0, 0) || id == 0 {
            return Err(Malformed);
        }
        let state = headers.get(TRACESTATE).and_then(|state| state.to_str().ok()).unwrap_or_default();
        Ok(Some(Self {
            trace_high: Some(high),
            trace_low: low,
            id,
            parent: None,
            sampled: hex(flags)? & 1 == 1,
            state: state.to_owned(),
            remote_parent: false,
            form: Form::W3c,
        }))
    }

    /// Reads B3; `sampled` of the context is what the headers say, or `default`.
    ///
    /// # Errors
    /// An id is no number, or the one header is not in form.
    pub fn from_b3(headers: &HeaderMap, default: bool) -> Result<FromB3, Malformed> {
        if let Some(single) = headers.get(B3) {
            return Self::from_b3_single(single.to_str().map_err(|_| Malformed)?, default);
        }
        let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let sampled = match text(B3_SAMPLED) {
            Some(said) => Some(said == "1" || said == "true"),
            None => (text(B3_FLAGS) == Some("1")).then_some(true),
        };
        let (Some(trace), Some(id)) = (text(B3_TRACE), text(B3_SPAN)) else {
            return Ok(FromB3 { sampled, ..FromB3::default() });
        };
        let (trace_high, trace_low) = trace_of(trace)?;
        let parent = text(B3_PARENT).filter(|parent| !parent.is_empty()).map(hex).transpose()?;
        let context = Self {
            trace_high,
            trace_low,
            id: hex(id)?,
            parent: parent.filter(|parent| *parent != 0),
            sampled: sampled.unwrap_or(default),
            state: String::new(),
            remote_parent: false,
            form: Form::B3,
        };
        Ok(FromB3 { sampled, context: Some(context), single: false })
    }

    /// `TRACE-SPAN[-SAMPLED[-PARENT]]`, or a sampling state alone.
    fn from_b3_single(text: &str, default: bool) -> Result<FromB3, Malformed> {
        let state = |text: &str| match text {
            "0" => Ok(false),
            "1" | "d" => Ok(true),
            _ => Err(Malformed),
        };
        let parts: Vec<&str> = text.split('-').collect();
        let (trace, id, sampled, parent) = match parts[..] {
            [sampled] => {
                return Ok(FromB3 { sampled: Some(state(sampled)?), context: None, single: true });
            }
            [trace, id] => (trace, id, None, None),
            [trace, id, sampled] => (trace, id, Some(sampled), None),
            [trace, id, sampled, parent] => (trace, id, Some(sampled), Some(parent)),
            _ => return Err(Malformed),
        };
        if ![16, 32].contains(&trace.len()) || id.len() != 16 || parent.is_some_and(|p| p.len() != 16) {
            return Err(Malformed);
        }
        let (trace_high, trace_low) = trace_of(trace)?;
        let sampled = sampled.map(state).transpose()?;
        let context = Self {
            trace_high,
            trace_low,
            id: hex(id)?,
            parent: parent.map(hex).transpose()?.filter(|parent| *parent != 0),
            sampled: sampled.unwrap_or(default),
            state: String::new(),
            remote_parent: false,
            form: Form::B3Single,
        };
        Ok(FromB3 { sampled, context: Some(context), single: true })
    }

    /// Writes `traceparent`.
    pub fn write_traceparent(&self, headers: &mut HeaderMap) {
        let high = self.trace_high.unwrap_or(0);
        let sampled = u8::from(self.sampled);
        set(
            headers,
            TRACEPARENT,
            &format!("00-{high:016x}{:016x}-{:016x}-{sampled:02x}", self.trace_low, self.id),
        );
    }

    /// Writes `traceparent` and `tracestate`, an empty one too.
    pub fn write_w3c(&self, headers: &mut HeaderMap) {
        self.write_traceparent(headers);
        set(headers, TRACESTATE, &self.state);
    }

    /// Writes B3 in the form that it came in.
    pub fn write_b3(&self, headers: &mut HeaderMap) {
        let sampled = if self.sampled { "1" } else { "0" };
        if self.form == Form::B3Single {
            let mut text = format!("{}-{:016x}-{sampled}", self.trace_id(), self.id);
            if let Some(parent) = self.parent {
                text.push_str(&format!("-{parent:016x}"));
            }
            return set(headers, B3, &text);
        }
        set(headers, B3_TRACE, &self.trace_id());
        set(headers, B3_SPAN, &format!("{:016x}", self.id));
        if let Some(parent) = self.parent {
            set(headers, B3_PARENT, &format!("{parent:016x}"));
        }
        set(headers, B3_SAMPLED, sampled);
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn trace_of(text: &str) -> Result<(Option<u64>, u64), Malformed> {
    if text.len() == 32 && text.is_ascii() {
        return Ok((Some(hex(&text[..16])?), hex(&text[16..])?));
    }
    Ok((None, hex(text)?))
}

fn hex(text: &str) -> Result<u64, Malformed> {
    if text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        u64::from_str_radix(text, 16).map_err(|_| Malformed)
    } else {
        Err(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn headers(of: &[(&'static str, &str)]) -> HeaderMap {
        of.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_w3c_trace_goes_on_with_its_state_and_a_new_parent() {
        let came = headers(&[
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("tracestate", "a=b"),
        ]);
        let from = SpanContext::from_w3c(&came).unwrap().unwrap();
        assert_eq!((from.trace_id().as_str(), from.id, from.sampled), (TRACE, 0xb7ad_6b71_6920_3331, true));
        let own = from.child(true);
        assert_eq!(own.parent, Some(from.id));
        let mut out = HeaderMap::new();
        own.write_w3c(&mut out);
        assert_eq!(out["traceparent"], format!("00-{TRACE}-{:016x}-01", own.id));
        assert_eq!(out["tracestate"], "a=b");
        assert_eq!(SpanContext::from_w3c(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn a_broken_context_is_told_apart_from_none() {
        for bad in [
            "garbage",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-011",
            "00-0af7651916cd43dd8448eb211c80319-+b7ad6b7169203331-01",
            "zz-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(SpanContext::from_w3c(&headers(&[("traceparent", bad)])), Err(Malformed), "{bad}");
        }
        for bad in
            ["", "2", "x-b7ad6b7169203331", "0af7651916cd43dd-b7ad6b7169203331-1-2-3", "0af7651916cd43dd-1"]
        {
            assert_eq!(SpanContext::from_b3(&headers(&[("b3", bad)]), true), Err(Malformed), "{bad}");
        }
        let bad = headers(&[("x-b3-traceid", "zzz"), ("x-b3-spanid", "1")]);
        assert_eq!(SpanContext::from_b3(&bad, true), Err(Malformed));
    }

    #[test]
    fn b3_is_written_in_the_form_in_which_it_came() {
        let single = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1-0020000000000001";
        let from = SpanContext::from_b3(&headers(&[("b3", single)]), false).unwrap();
        assert_eq!(from.sampled, Some(true));
        let mut out = HeaderMap::new();
        from.context.unwrap().write_b3(&mut out);
        assert_eq!((out["b3"].to_str().unwrap(), out.len()), (single, 1));
        let several =
            headers(&[("x-b3-traceid", "8448eb211c80319c"), ("x-b3-spanid", "1"), ("x-b3-sampled", "0")]);
        let from = SpanContext::from_b3(&several, true).unwrap();
        assert_eq!(from.sampled, Some(false));
        let mut out = HeaderMap::new();
        from.context.unwrap().write_b3(&mut out);
        assert_eq!(out["x-b3-traceid"], "8448eb211c80319c");
        assert_eq!(out["x-b3-spanid"], "0000000000000001");
        assert_eq!(out["x-b3-sampled"], "0");
        assert!(!out.contains_key("x-b3-parentspanid"));
    }

    #[test]
    fn a_sampling_state_without_a_trace_is_heard() {
        let said = |of: &[(&'static str, &str)]| SpanContext::from_b3(&headers(of), true).unwrap();
        assert_eq!(said(&[("b3", "0")]), FromB3 { sampled: Some(false), context: None, single: true });
        assert_eq!(said(&[("b3", "d")]).sampled, Some(true));
        assert_eq!(said(&[("x-b3-sampled", "true")]).sampled, Some(true));
        assert_eq!(said(&[("x-b3-flags", "1")]).sampled, Some(true));
        assert_eq!(said(&[]).sampled, None);
    }
}
