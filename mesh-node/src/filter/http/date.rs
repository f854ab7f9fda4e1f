//! The `date` header of responses: written once per second and worker.

use std::cell::RefCell;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

/// The current date as a header value.
#[derive(Debug, Default)]
pub struct DateCache(RefCell<Option<(Instant, HeaderValue)>>);

impl DateCache {
    /// The date (RFC 9110 section 5.6.7, IMF-fixdate); at most one second old.
    pub fn now(&self, now: Instant) -> HeaderValue {
        let mut cached = self.0.borrow_mut();
        match &*cached {
            Some((until, value)) if now < *until => value.clone(),
            _ => {
                let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let value = HeaderValue::from_str(&imf_fixdate(since_epoch.as_secs()))
                    .unwrap_or(HeaderValue::from_static(""));
                let rest = Duration::from_nanos(1_000_000_000 - u64::from(since_epoch.subsec_nanos()));
                *cached = Some((now + rest, value.clone()));
                value
            }
        }
    }
}

fn imf_fixdate(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = seconds / 86_400;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    // Civil date from days since the epoch, in eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12;
    let year = era * 400 + year_of_era + u64::from(month < 2);
    format!(
        "{}, {day:02} {} {year:04} {hour:02}:{minute:02}:{second:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize],
    )
}

#[cfg(test)]
mod tests {
    use super::imf_fixdate;

    #[test]
    fn dates_are_right_across_leap_days_and_year_ends() {
        for (seconds, want) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
            (1_795_257_968, "Sat, 21 Nov 2026 10:46:08 GMT"),
        ] {
            assert_eq!(imf_fixdate(seconds), want);
        }
    }
}
