//! Values of runtime keys, as Envoy reads them (`Runtime::SnapshotImpl`).

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use super::Fraction;

/// Values by key.
pub type Values = BTreeMap<String, Value>;

/// One value: what it is as each of the types that somebody may ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// As pages show it.
    pub text: String,
    integer: Option<u64>,
    number: Option<f64>,
    flag: Option<bool>,
    fraction: Option<Fraction>,
}

/// A type that a value may be.
pub trait Of: Copy {
    fn of(value: &Value) -> Option<Self>;
}

impl Of for u64 {
    fn of(value: &Value) -> Option<Self> {
        value.integer
    }
}

impl Of for f64 {
    fn of(value: &Value) -> Option<Self> {
        value.number
    }
}

impl Of for bool {
    fn of(value: &Value) -> Option<Self> {
        value.flag
    }
}

/// Whole numbers are percentages, those above a hundred are "always".
impl Of for Fraction {
    fn of(value: &Value) -> Option<Self> {
        let of_number = |percent: u64| (u32::try_from(percent).unwrap_or(100).min(100), 100);
        value.fraction.or_else(|| value.integer.map(of_number))
    }
}

impl Value {
    fn new(text: String) -> Self {
        Self { text, integer: None, number: None, flag: None, fraction: None }
    }

    fn of_number(text: String, number: f64) -> Self {
        // Also of one that is not whole, as in Envoy.
        let whole = (0.0..18_446_744_073_709_551_616.0).contains(&number);
        Self { integer: whole.then_some(number as u64), number: Some(number), ..Self::new(text) }
    }

    /// A value of a file, or of `/runtime_modify`: YAML.
    pub fn of_text(text: &str) -> Self {
        let parsed = serde_yaml_ng::from_str::<Json>(text).ok();
        parsed.and_then(|json| Self::of_json(&json, Some(text))).unwrap_or_else(|| Self::new(text.to_owned()))
    }

    /// `text`: as it was written.
    fn of_json(json: &Json, text: Option<&str>) -> Option<Self> {
        let text = |other: &dyn Fn() -> String| text.map_or_else(other, str::to_owned);
        Some(match json {
            Json::Bool(flag) => Self { flag: Some(*flag), ..Self::new(text(&|| flag.to_string())) },
            Json::Number(number) => {
                let number = number.as_f64()?;
                Self::of_number(text(&|| written(number)), number)
            }
            Json::String(string) => Self::of_string(text(&|| string.clone()), string),
            Json::Object(fields) => {
                Self { fraction: fraction(fields), ..Self::new(text(&|| json.to_string())) }
            }
            Json::Null | Json::Array(_) => return None,
        })
    }

    /// A string may be written for another type.
    fn of_string(text: String, string: &str) -> Self {
        let trimmed = string.trim();
        if let Some(number) = trimmed.parse::<f64>().ok().filter(|number| number.is_finite()) {
            return Self::of_number(text, number);
        }
        let flag = [("true", true), ("false", false)];
        let flag =
            flag.into_iter().find(|(name, _)| trimmed.eq_ignore_ascii_case(name)).map(|(_, flag)| flag);
        Self { flag, ..Self::new(text) }
    }
}

/// As Envoy shows it: whole numbers with six digits at most (C's `%g`).
fn written(number: f64) -> String {
    if number.fract() != 0.0 || number.abs() < 1e6 {
        return number.to_string();
    }
    let text = format!("{number:.5e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e+{exponent:0>2}", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// A `FractionalPercent`; its denominator is a hundred unless it says otherwise.
fn fraction(fields: &Map<String, Json>) -> Option<Fraction> {
    let known = fields.keys().all(|key| key == "numerator" || key == "denominator");
    let numerator = match fields.get("numerator") {
        None => 0,
        Some(value) => u32::try_from(value.as_u64().or_else(|| whole(value.as_f64()?))?).ok()?,
    };
    let denominator = match fields.get("denominator") {
        None => 100,
        Some(Json::String(name)) => match name.as_str() {
            "HUNDRED" => 100,
            "TEN_THOUSAND" => 10_000,
            "MILLION" => 1_000_000,
            _ => return None,
        },
        Some(number) => match whole(number.as_f64()?)? {
            0 => 100,
            1 => 10_000,
            2 => 1_000_000,
            _ => return None,
        },
    };
    known.then_some((numerator, denominator))
}

fn whole(number: f64) -> Option<u64> {
    (number >= 0.0 && number.fract() == 0.0).then_some(number as u64)
}

/// The values of a struct: fields of structs in it are keys with dots, but for those of a `FractionalPercent`.
///
/// # Errors
/// The key of a value that cannot be one.
pub fn flattened(fields: &Map<String, Json>) -> Result<Values, String> {
    let mut values = Values::new();
    for (key, json) in fields {
        walk(key.clone(), json, &mut values)?;
    }
    Ok(values)
}

fn walk(key: String, json: &Json, values: &mut Values) -> Result<(), String> {
    match json {
        Json::Object(fields)
            if !fields.is_empty()
                && !fields.contains_key("numerator")
                && !fields.contains_key("denominator") =>
        {
            for (inner, json) in fields {
                walk(format!("{key}.{inner}"), json, values)?;
            }
        }
        json => {
            let value = Value::of_json(json, None).ok_or_else(|| key.clone())?;
            values.insert(key, value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_is_what_it_can_be_read_as() {
        let of = |text: &str| Value::of_text(text);
        assert_eq!(u64::of(&of("7")), Some(7));
        assert_eq!((u64::of(&of("-7")), f64::of(&of("-7"))), (None, Some(-7.0)));
        assert_eq!((u64::of(&of("2.5")), f64::of(&of("2.5"))), (Some(2), Some(2.5)));
        assert_eq!((bool::of(&of("true")), bool::of(&of("\"False\""))), (Some(true), Some(false)));
        assert_eq!(Fraction::of(&of("250")), Some((100, 100)));
        assert_eq!(Fraction::of(&of("{numerator: 3, denominator: TEN_THOUSAND}")), Some((3, 10_000)));
        assert_eq!(Fraction::of(&of("{numerator: 3, denominator: DOZEN}")), None);
        assert_eq!((of("hello").text.as_str(), u64::of(&of("hello"))), ("hello", None));
    }

    #[test]
    fn numbers_are_shown_as_envoy_shows_them() {
        let all =
            [0.0, 2.5, -3.0, 100_000.0, 1_000_000.0, 1_234_567.0, 120_000_000.0, 123_456_789_012.0, 0.001];
        let shown = ["0", "2.5", "-3", "100000", "1e+06", "1.23457e+06", "1.2e+08", "1.23457e+11", "0.001"];
        assert_eq!(all.map(written), shown);
    }

    #[test]
    fn structs_are_keys_with_dots_and_lists_are_refused() {
        let fields = json!({ "a": { "b": { "c": 1 } }, "d.e": "x", "f": { "numerator": 4.0 }, "g": {} });
        let values = flattened(fields.as_object().unwrap()).unwrap();
        assert_eq!(values.keys().collect::<Vec<_>>(), ["a.b.c", "d.e", "f", "g"]);
        assert_eq!(Fraction::of(&values["f"]), Some((4, 100)));
        for bad in [json!({ "a": { "b": [1] } }), json!({ "a": { "b": null } })] {
            assert_eq!(flattened(bad.as_object().unwrap()).unwrap_err(), "a.b");
        }
    }
}
