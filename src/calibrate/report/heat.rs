//! Depth token by token, as a text whose background is the darker the deeper a token went.

use super::page::{Section, section};
use super::words::fixed;
use crate::calibrate::{Findings, Sample, SampleToken};
use crate::plot::escape;
use std::fmt::Write;

/// Shades in the style sheet.
const SHADES: usize = 7;

/// A sample with its tokens' depths.
pub(super) fn heat(findings: &Findings) -> Section {
    let sample = &findings.sample;
    let predicted: Vec<_> = sample.tokens.iter().filter(|t| t.steps > 0).collect();
    let (Some(least), Some(most)) = (predicted.iter().map(|t| t.steps).min(), predicted.iter().map(|t| t.steps).max())
    else {
        return section("tokens", "Depth token by token", "", "<p>No sample of the text was kept.</p>");
    };
    let shade = |steps: usize| match most - least {
        0 => SHADES / 2,
        span => ((steps - least) * (SHADES - 1) + span / 2) / span,
    };
    let mut text = String::new();
    for token in &sample.tokens {
        span(&mut text, token, (token.steps > 0).then(|| shade(token.steps)));
    }
    let mean = predicted.iter().map(|t| t.steps as f64).sum::<f64>() / predicted.len() as f64;
    let rule = escape(&sample.rule.to_string());
    let body = format!(
        "<p>Under <code>{rule}</code>, {} steps a token on average. {}</p>{}<div class=\"heat\" dir=\"auto\">{text}</div>",
        fixed(mean, 1),
        surprise(sample),
        legend(least, most, shade),
    );
    section(
        "tokens",
        "Depth token by token",
        "The darker (on a dark page: the brighter) its background, the more loop steps were taken to predict a token; rest the pointer \
         on one to see how many, and how surprised the model was. Depth that goes to names, numbers and the starts of words is well \
         spent; an even colour means that the rule does not tell tokens apart.",
        &body,
    )
}

fn span(out: &mut String, token: &SampleToken, shade: Option<usize>) {
    let class = shade.map_or(String::new(), |s| format!(" class=\"d{s}\""));
    let mut title = match token.steps {
        0 => "read, not predicted".to_owned(),
        1 => "1 step".to_owned(),
        n => format!("{n} steps"),
    };
    if token.nll.is_finite() && token.steps > 0 {
        let _ = write!(title, ", {} nats", fixed(token.nll, 2));
    }
    let _ = write!(out, "<span{class} title=\"{}\">", escape(&title));
    let text = visible(&token.text);
    let breaks = token.text.matches('\n').count();
    out.push_str(&escape(&text));
    out.push_str("</span>");
    // The line ends outside the coloured piece, which shows a sign for it.
    (0..breaks.min(2)).for_each(|_| out.push_str("<br>"));
}

/// A token's text with signs for what has no shape.
pub(super) fn visible(text: &str) -> String {
    if text.is_empty() {
        return "∅".into();
    }
    let alone = text.chars().all(|c| c == ' ');
    let sign = |c: char| match c {
        '\n' => '⏎',
        '\t' => '⇥',
        '\r' => '␍',
        ' ' if alone => '␣',
        '\u{7f}' => '␡',
        // The pictures of control characters lie in their order.
        c if u32::from(c) < 0x20 => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
        // What takes no room at all.
        '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}' | '\u{ad}' => '·',
        '\u{2028}' | '\u{2029}' | '\u{85}' => '⏎',
        c => c,
    };
    text.chars().map(sign).collect()
}

fn legend(least: usize, most: usize, shade: impl Fn(usize) -> usize) -> String {
    let mut out = String::from("<p class=\"legend\">loop steps: ");
    for wanted in 0..SHADES {
        let mut steps = (least..=most).filter(|&s| shade(s) == wanted);
        let Some(first) = steps.next() else { continue };
        let range = match steps.last() {
            Some(last) => format!("{first}–{last}"),
            None => first.to_string(),
        };
        let _ = write!(out, "<span class=\"d{wanted}\">{range}</span> ");
    }
    out + "</p>"
}

/// Whether depth goes where the model is surprised, as a sentence.
fn surprise(sample: &Sample) -> String {
    let pairs: Vec<_> =
        sample.tokens.iter().filter(|t| t.steps > 0 && t.nll.is_finite()).map(|t| (t.steps as f64, t.nll)).collect();
    let n = pairs.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let sum = |of: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|p| of(p.0 - x, p.1 - y)).sum::<f64>();
    let r = sum(&|a, b| a * b) / libm::sqrt(sum(&|a, _| a * a) * sum(&|_, b| b * b));
    if pairs.len() < 20 || !r.is_finite() {
        return String::new();
    }
    let word = match r {
        r if r > 0.3 => "it goes deeper where it is surprised",
        r if r > 0.1 => "it goes a little deeper where it is surprised",
        r if r < -0.1 => "it goes less deep where it is surprised",
        _ => "depth has little to do with surprise",
    };
    format!("Depth and surprise (nats) of a token correlate with {}: {word}.", fixed(r, 2))
}

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn what_has_no_shape_gets_one() {
        assert_eq!(visible(""), "∅");
        assert_eq!(visible(" the"), " the");
        assert_eq!(visible("  "), "␣␣");
        assert_eq!(visible("\n\t\r\u{0}\u{1b}\u{200b}"), "⏎⇥␍␀␛·");
    }
}
