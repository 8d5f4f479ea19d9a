//! `strftime` in UTC, for templates that tell the model the date.

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

/// Seconds since 1970, 0 if the machine's clock stands before that.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}

/// The time now, as ISO 8601 writes it in UTC.
#[cfg(feature = "cli")]
pub(crate) fn now_utc() -> String {
    strftime("%Y-%m-%dT%H:%M:%SZ", now())
}

/// Writes the UTC time `seconds` after 1970 by a C `strftime` format. An unknown directive is written as it stands.
pub(super) fn strftime(format: &str, seconds: u64) -> String {
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let weekday = ((days + 4) % 7) as usize;
    let of_day = seconds % 86_400;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let hour12 = (hour + 11) % 12 + 1;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month - 1];
    let of_year = before + day + u64::from(leap && month > 2);

    let mut out = String::with_capacity(format.len() + 16);
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        // "%-d" is "%d" without its zero.
        let bare = directive == Some('-');
        if bare {
            directive = chars.next();
        }
        let two = |n: u64| match bare {
            true => n.to_string(),
            false => format!("{n:02}"),
        };
        let field = match directive {
            Some('Y') => year.to_string(),
            Some('y') => two(year % 100),
            Some('m') => two(month as u64),
            Some('d') => two(day),
            Some('e') => format!("{day:2}"),
            Some('H') => two(hour),
            Some('I') => two(hour12),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('j') if bare => of_year.to_string(),
            Some('j') => format!("{of_year:03}"),
            Some('B') => MONTHS[month - 1].to_owned(),
            Some('b' | 'h') => MONTHS[month - 1][..3].to_owned(),
            Some('A') => DAYS[weekday].to_owned(),
            Some('a') => DAYS[weekday][..3].to_owned(),
            Some('w') => weekday.to_string(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('F') => strftime("%Y-%m-%d", seconds),
            Some('T') => strftime("%H:%M:%S", seconds),
            Some('D') => strftime("%m/%d/%y", seconds),
            Some('s') => seconds.to_string(),
            Some('z') => "+0000".to_owned(),
            Some('Z') => "UTC".to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                out.push('%');
                out.extend(bare.then_some('-'));
                out.extend(other);
                continue;
            }
        };
        out.push_str(&field);
    }
    out
}

/// Year, month (1 to 12) and day (1 to 31) of a day counted from 1 January 1970, by Howard Hinnant's
/// `civil_from_days` ("chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, usize, u64) {
    // Days from 1 March of year 0; eras are 400 years.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    // Months counted from March, so that the leap day is the year's last.
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (year + era * 400 + u64::from(month <= 2), month as usize, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let all = "%Y-%m-%d %H:%M:%S %A %a %B %b %j %y %e %I %p %-d %-m %-H %F %T %D %%";
        // Checked against Python's strftime.
        let cases = [
            (0, "1970-01-01 00:00:00 Thursday Thu January Jan 001 70  1 12 AM 1 1 0 1970-01-01 00:00:00 01/01/70 %"),
            (
                951_826_149,
                "2000-02-29 12:09:09 Tuesday Tue February Feb 060 00 29 12 PM 29 2 12 2000-02-29 12:09:09 02/29/00 %",
            ),
            (
                1_735_689_599,
                "2024-12-31 23:59:59 Tuesday Tue December Dec 366 24 31 11 PM 31 12 23 2024-12-31 23:59:59 12/31/24 %",
            ),
            (
                4_107_542_400,
                "2100-03-01 00:00:00 Monday Mon March Mar 060 00  1 12 AM 1 3 0 2100-03-01 00:00:00 03/01/00 %",
            ),
        ];
        for (seconds, expected) in cases {
            assert_eq!(strftime(all, seconds), expected);
        }
    }

    #[test]
    fn odd_formats_are_written_as_they_stand() {
        assert_eq!(strftime("%Q %-Q 100% é%", 0), "%Q %-Q 100% é%");
        assert_eq!(strftime("%-", 0), "%-");
        assert_eq!(strftime("%Y", u64::MAX / 400).len(), 10);
    }

    #[test]
    fn the_clock_is_real() {
        assert!(now() > 1_700_000_000);
    }
}
