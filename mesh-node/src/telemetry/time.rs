//! Points in time as text, in UTC, by Envoy's `START_TIME` formats.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// ISO 8601 with milliseconds: `2016-12-15T16:07:39.000Z`.
pub fn iso8601_ms(time: SystemTime, out: &mut String) {
    let t = Civil::of(time);
    let ms = t.nanos / 1_000_000;
    let _ = write!(
        out,
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{ms:03}Z",
        t.year, t.month, t.day, t.hour, t.minute, t.second
    );
}

/// By an strftime format with Envoy's and absl's additions (`%3f`, `%f`, `%E3S`). An unknown conversion is
/// written as it stands.
pub fn strftime(time: SystemTime, format: &str, out: &mut String) {
    let t = Civil::of(time);
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = t.convert(rest, out);
        if length == 0 {
            out.push('%');
            rest = &rest[1..];
        } else {
            rest = &rest[length..];
        }
    }
    out.push_str(rest);
}

/// A point in time by the calendar, UTC.
struct Civil {
    seconds: u64,
    nanos: u32,
    year: i64,
    month: u32,
    day: u32,
    hour: u64,
    minute: u64,
    second: u64,
    /// 0 is Sunday.
    weekday: u64,
    /// 1 to 366.
    day_of_year: i64,
}

impl Civil {
    fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = since.as_secs();
        let days = (seconds / 86_400) as i64;
        let (year, month, day) = from_days(days);
        Self {
            seconds,
            nanos: since.subsec_nanos(),
            year,
            month,
            day,
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
            weekday: (days as u64 + 4) % 7,
            day_of_year: days - to_days(year, 1, 1) + 1,
        }
    }

    /// Writes the conversion at the start of `rest`; its length, or 0 if it is none.
    fn convert(&self, rest: &str, out: &mut String) -> usize {
        let bytes = rest.as_bytes();
        let digit = |at: usize| bytes.get(at).filter(|b| b.is_ascii_digit()).map(|b| usize::from(b - b'0'));
        if let (Some(digits @ 1..=9), Some(b'f')) = (digit(1), bytes.get(2)) {
            out.push_str(&format!("{:09}", self.nanos)[..digits]);
            return 3;
        }
        if let (Some(b'E'), Some(digits @ 1..=9), Some(b'S')) = (bytes.get(1), digit(2), bytes.get(3)) {
            let _ = write!(out, "{:02}.{}", self.second, &format!("{:09}", self.nanos)[..digits]);
            return 4;
        }
        let month = MONTHS[self.month as usize - 1];
        let weekday = DAYS[self.weekday as usize];
        let hour12 = (self.hour + 11) % 12 + 1;
        let _ = match bytes.get(1) {
            Some(b'Y') => write!(out, "{:04}", self.year),
            Some(b'C') => write!(out, "{:02}", self.year / 100),
            Some(b'y') => write!(out, "{:02}", self.year % 100),
            Some(b'm') => write!(out, "{:02}", self.month),
            Some(b'd') => write!(out, "{:02}", self.day),
            Some(b'e') => write!(out, "{:2}", self.day),
            Some(b'j') => write!(out, "{:03}", self.day_of_year),
            Some(b'H') => write!(out, "{:02}", self.hour),
            Some(b'I') => write!(out, "{hour12:02}"),
            Some(b'M') => write!(out, "{:02}", self.minute),
            Some(b'S') => write!(out, "{:02}", self.second),
            Some(b'f') => write!(out, "{:09}", self.nanos),
            Some(b's') => write!(out, "{}", self.seconds),
            Some(b'p') => write!(out, "{}", if self.hour < 12 { "AM" } else { "PM" }),
            Some(b'b' | b'h') => write!(out, "{}", &month[..3]),
            Some(b'B') => write!(out, "{month}"),
            Some(b'a') => write!(out, "{}", &weekday[..3]),
            Some(b'A') => write!(out, "{weekday}"),
            Some(b'w') => write!(out, "{}", self.weekday),
            Some(b'u') => write!(out, "{}", (self.weekday + 6) % 7 + 1),
            Some(b'T') => write!(out, "{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            Some(b'R') => write!(out, "{:02}:{:02}", self.hour, self.minute),
            Some(b'F') => write!(out, "{:04}-{:02}-{:02}", self.year, self.month, self.day),
            Some(b'D') => write!(out, "{:02}/{:02}/{:02}", self.month, self.day, self.year % 100),
            Some(b'Z') => write!(out, "UTC"),
            Some(b'z') => write!(out, "+0000"),
            Some(b'%') => write!(out, "%"),
            _ => return 0,
        };
        2
    }
}

/// Year, month and day of a count of days since 1970-01-01 (Gregorian calendar; years begin in March inside,
/// so that the leap day is the last).
fn from_days(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month as u32, day as u32)
}

/// The inverse of [`from_days`].
fn to_days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64, nanos: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, nanos)
    }

    #[test]
    fn the_default_start_time_is_envoys() {
        let mut out = String::new();
        iso8601_ms(at(1_481_818_059, 0), &mut out);
        assert_eq!(out, "2016-12-15T16:07:39.000Z");
    }

    #[test]
    fn each_conversion_is_what_envoy_1_40_writes() {
        let mut out = String::new();
        let format = "%s %3f %Y %b %e %d %H:%M:%S.%6f %f %j %a %%|%E3S %E6S %T %F %D %R %y %m %p %I %Z %z %A %B %h \
                      %C %u %w %q %";
        strftime(at(1_795_258_829, 997_518_000), format, &mut out);
        assert_eq!(
            out,
            "1795258829 997 2026 Nov 21 21 11:00:29.997518 997518000 325 Sat %|29.997 29.997518 11:00:29 \
             2026-11-21 11/21/26 11:00 26 11 AM 11 UTC +0000 Saturday November Nov 20 6 6 %q %"
        );
    }

    #[test]
    fn leap_days_and_new_years_are_right() {
        for (seconds, text) in [
            (951_782_400, "2000-02-29"),
            (1_709_164_800, "2024-02-29"),
            (1_735_689_599, "2024-12-31"),
            (0, "1970-01-01"),
        ] {
            let mut out = String::new();
            strftime(at(seconds, 0), "%F", &mut out);
            assert_eq!(out, text);
        }
    }
}
