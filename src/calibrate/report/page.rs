//! The page around the sections.

use super::words::{count, short};
use crate::calibrate::{Findings, Profile};
use crate::plot::{self, Chart, escape};

const CSS: &str = include_str!("page.css");

/// A part of the page.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) id: &'static str,
    title: &'static str,
    pub(super) html: String,
}

/// A section: what it shows, how to read it, and the thing itself, as HTML.
pub(super) fn section(id: &'static str, title: &'static str, how: &str, body: &str) -> Section {
    let how = if how.is_empty() { String::new() } else { format!("<p class=\"how\">{how}</p>\n") };
    Section { id, title, html: format!("<section id=\"{id}\">\n<h2>{title}</h2>\n{how}{body}\n</section>\n") }
}

/// A chart with a note below it.
pub(super) fn figure(chart: &Chart, note: &str) -> String {
    let note = if note.is_empty() { String::new() } else { format!("<figcaption>{}</figcaption>", escape(note)) };
    format!("<figure><div class=\"scroll\">\n{}</div>{note}</figure>\n", plot::svg(chart))
}

/// The whole page. It may load nothing, which it also tells the browser.
pub(super) fn page(findings: &Findings, advice: &[String], sections: &[Section]) -> String {
    let profile = &findings.profile;
    let name = match profile.model.name.trim() {
        "" => "a model without a name".into(),
        name => escape(name),
    };
    let advice: String =
        advice.iter().map(|s| format!("<li>{}</li>\n", with_code(&escape(s)).replace(" %", "\u{a0}%"))).collect();
    let links: String = sections.iter().map(|s| format!("<a href=\"#{}\">{}</a> ", s.id, s.title)).collect();
    let sections: String = sections.iter().map(|s| s.html.as_str()).collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>Calibration of {name}</title>\n\
         <style>\n{}\n{CSS}</style>\n</head>\n<body>\n<header>\n<p class=\"kind\">Calibration</p>\n<h1>{name}</h1>\n{}<nav>{links}</nav>\n</header>\n\
         <main>\n<section id=\"advice\">\n<h2>In short</h2>\n<ul class=\"advice\">\n{advice}</ul>\n</section>\n{sections}</main>\n\
         <footer>Made by rdt {}. Every exact point is a run at just that setting; the profile beside the model holds the same numbers.\
         </footer>\n</body>\n</html>\n",
        plot::STYLE,
        facts(profile),
        escape(&profile.program),
    )
}

/// Escaped text with what stands between backquotes as code.
fn with_code(text: &str) -> String {
    let parts: Vec<_> = text.split('`').collect();
    // Without a partner a backquote is just that.
    if parts.len() % 2 == 0 {
        return text.into();
    }
    parts.iter().enumerate().map(|(i, p)| if i % 2 == 1 { format!("<code>{p}</code>") } else { (*p).into() }).collect()
}

/// What was measured, where, and how.
fn facts(profile: &Profile) -> String {
    let (model, machine, text) = (&profile.model, &profile.machine, &profile.text);
    let mut rows = vec![
        (
            "Model",
            format!(
                "{}, {} MB of tensors, published with {} loop steps <span class=\"id\">{}</span>",
                escape(&model.architecture),
                short(model.bytes as f64 / 1e6),
                profile.published_steps,
                escape(&model.fingerprint)
            ),
        ),
        (
            "Machine",
            format!(
                "{}{}, {} kernels, {} thread{}",
                machine.cpu.as_deref().map_or(String::new(), |c| format!("{}, ", escape(c))),
                escape(&machine.system),
                escape(&machine.isa),
                machine.threads,
                if machine.threads == 1 { "" } else { "s" }
            ),
        ),
        (
            "Text",
            format!(
                "{}: {} positions scored in {} windows of {} tokens{} <span class=\"id\">{}</span>",
                escape(&text.name),
                count(text.scored),
                count(text.windows as u64),
                count(text.context as u64),
                if text.prefix > 0 { format!(", the first {} seen both ways", text.prefix) } else { String::new() },
                escape(&text.fingerprint)
            ),
        ),
        (
            "How",
            format!(
                "initial states: {}{}; KV cache in {}, with keys and values of {} loop steps{}",
                escape(&text.init),
                if text.init == "noise" { format!(", seed {}", text.seed) } else { String::new() },
                escape(&text.kv_type),
                text.kv_steps,
                if text.special { "; special tokens in the text taken as such" } else { "" },
            ),
        ),
    ];
    rows.push(match &profile.cost {
        Some(c) if c.base_ms.is_finite() && c.step_ms.is_finite() => (
            "Cost",
            format!("a token takes about {} ms and {} ms more for each loop step", short(c.base_ms), short(c.step_ms)),
        ),
        _ => ("Cost", "times were not measured".into()),
    });
    if profile.points().any(|p| p.timing.is_some()) && !joules(profile) {
        rows.push(("Energy", "not measured: the machine does not tell, or it was not asked".into()));
    }
    let rows: String = rows.iter().map(|(name, value)| format!("<dt>{name}</dt><dd>{value}</dd>\n")).collect();
    format!("<dl>\n{rows}</dl>\n")
}

fn joules(profile: &Profile) -> bool {
    profile.points().filter_map(|p| p.timing?.joules_per_token).any(f64::is_finite)
}
