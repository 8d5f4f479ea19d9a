//! Numbers as words; what is not finite is a dash.

use crate::calibrate::Estimate;

/// In place of a number that there is not.
pub(super) const NONE: &str = "–";

/// A number to so many decimals.
pub(super) fn fixed(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return NONE.into();
    }
    let text = format!("{value:.decimals$}");
    // −0.00 is 0.00.
    let zero = text.bytes().all(|b| matches!(b, b'-' | b'0' | b'.'));
    if zero { text.replace('-', "") } else { text.replace('-', "−") }
}

/// A number to three digits that count.
pub(super) fn short(value: f64) -> String {
    if !value.is_finite() {
        return NONE.into();
    }
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e6).contains(&size) {
        return format!("{value:.1e}").replace('-', "−");
    }
    fixed(value, decimals(size, 3))
}

/// Decimals for so many digits that count.
fn decimals(size: f64, digits: i32) -> usize {
    if size == 0.0 || !size.is_finite() {
        return 2;
    }
    let places = digits - 1 - libm::floor(libm::log10(size)) as i32;
    places.clamp(0, 9).unsigned_abs() as usize
}

/// A share as per cent with a sign, as `+0.61 %`.
pub(super) fn change(share: f64) -> String {
    if !share.is_finite() {
        return NONE.into();
    }
    let percent = share * 100.0;
    if percent.abs() >= 1e5 {
        return format!("{percent:+.0e} %").replace('-', "−");
    }
    let text = fixed(percent, if percent.abs() >= 10.0 { 1 } else { 2 });
    let sign = if text.starts_with('−') || text == "0.00" { "" } else { "+" };
    format!("{sign}{text} %")
}

/// A share as per cent, without a sign.
pub(super) fn percent(share: f64) -> String {
    if !share.is_finite() {
        return NONE.into();
    }
    let percent = share.abs() * 100.0;
    let decimals = match percent {
        p if (10.0..=99.0).contains(&p) => 0,
        p if p > 99.9 && p < 100.0 => 2,
        p if p >= 0.1 || p == 0.0 => 1,
        _ => 3,
    };
    format!("{} %", fixed(percent, decimals))
}

/// A number and its standard error, to the digits that the error leaves.
pub(super) fn estimate(e: Estimate) -> String {
    match e.value.is_finite() && e.error.is_finite() && e.error > 0.0 {
        true => {
            let decimals = decimals(e.error, 2).min(6);
            format!("{} ± {}", fixed(e.value, decimals), fixed(e.error, decimals))
        }
        false => short(e.value),
    }
}

/// A count, in groups of three.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// `1 step`, `2.5 steps`.
pub(super) fn steps(n: f64) -> String {
    let text = if n.fract() == 0.0 { fixed(n, 0) } else { fixed(n, if n < 10.0 { 2 } else { 1 }) };
    let s = if text == "1" { "" } else { "s" };
    format!("{text} step{s}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(short(f64::NAN), NONE);
        assert_eq!(short(12.345), "12.3");
        assert_eq!(short(-0.012345), "−0.0123");
        assert_eq!(short(1234.5), "1234");
        assert_eq!(short(3.21e-7), "3.2e−7");
        assert_eq!(fixed(-0.001, 2), "0.00");
        assert_eq!(change(0.0061), "+0.61 %");
        assert_eq!(change(-0.25), "−25.0 %");
        assert_eq!(change(f64::INFINITY), NONE);
        assert_eq!(percent(0.995), "99.5 %");
        assert_eq!(percent(0.613), "61 %");
        assert_eq!(estimate(Estimate { value: 12.3456, error: 0.0234 }), "12.346 ± 0.023");
        assert_eq!(estimate(Estimate { value: 12.3456, error: f64::NAN }), "12.3");
        assert_eq!(count(1234567), "1\u{202f}234\u{202f}567");
        assert_eq!((steps(1.0), steps(2.5)), ("1 step".into(), "2.50 steps".into()));
    }
}
