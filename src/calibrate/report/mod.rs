//! What a calibration found, for people: a page with charts, a table for the terminal, and advice in sentences.
//!
//! [`html`] makes one file that needs nothing else: no script, no font, no network, and the browser is told to allow none. It
//! follows the reader's light or dark. Names, tokens and whatever else comes from outside is escaped on its way in; numbers that
//! are not there are left out or a dash.

mod advice;
mod family;
mod heat;
mod motion;
mod page;
mod quality;
mod table;
mod words;

pub use advice::recommendation;
pub use table::table;

use super::{Findings, Profile};
use crate::plot::{self, escape};
use page::Section;
use std::fmt::Write;

/// The report as a page of HTML.
pub fn html(findings: &Findings) -> String {
    let advice = recommendation(&findings.profile, Some(&findings.dynamics));
    page::page(findings, &advice, &sections(findings))
}

/// The charts of the report as files of their own ([`plot::standalone`]), each with a name made of its section and its number there,
/// such as `depth-1`.
pub fn charts(findings: &Findings) -> Vec<(String, String)> {
    let of_section = |section: &Section| {
        let charts = section.html.split("<svg").skip(1).filter_map(|rest| rest.split_once("</svg>"));
        let named = |(i, (inside, _)): (usize, (&str, &str))| {
            (format!("{}-{}", section.id, i + 1), plot::alone(&format!("<svg{inside}</svg>")))
        };
        charts.enumerate().map(named).collect::<Vec<_>>()
    };
    sections(findings).iter().flat_map(of_section).collect()
}

fn sections(findings: &Findings) -> Vec<Section> {
    let profile = &findings.profile;
    let sections = [
        Some(quality::depths(findings)),
        Some(settings(profile)),
        Some(quality::rules(findings)),
        Some(heat::heat(findings)),
        Some(motion::steps_of_loops(findings)),
        motion::scales(findings),
        motion::paths(&findings.dynamics.paths),
        Some(seeds(profile)),
    ];
    sections.into_iter().flatten().collect()
}

fn settings(profile: &Profile) -> Section {
    let key = "<p class=\"key\"><span class=\"chosen\">the cheapest that loses at most 1 %</span> <span class=\"front\">nothing \
               cheaper is as good</span></p>";
    page::section(
        "settings",
        "All settings",
        "Each row is a run of the whole text at just that setting. KL and agreement compare with the full depth: how far the \
         predictions differ, in nats, and how often the most likely token is the same. Loss is the larger of two: the perplexity \
         over the published depth's, and what KL says would be lost on text that full depth itself had written; a mean over text \
         hides the few tokens that need depth, KL less so.",
        &format!("{key}{}", table::html(profile)),
    )
}

/// How much chance there is in the initial states.
fn seeds(profile: &Profile) -> Section {
    let rows: Vec<_> =
        profile.points().filter_map(|p| Some((p, p.seed_variance.filter(|v| v.value.is_finite())?))).collect();
    let mut body = String::from("<p>One initial state was run, or initial states are not random.</p>");
    if !rows.is_empty() {
        body = "<div class=\"scroll\"><table><thead><tr><th scope=\"col\">rule</th><th scope=\"col\">mean steps</th>\
                <th scope=\"col\">variance, nats²</th><th scope=\"col\">deviation, nats</th></tr></thead><tbody>\n"
            .into();
        for (point, variance) in rows {
            let _ = writeln!(
                body,
                "<tr><th scope=\"row\"><code>{}</code></th><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(&point.rule.to_string()),
                words::fixed(point.mean_steps, 2),
                words::estimate(variance),
                words::short(libm::sqrt(variance.value))
            );
        }
        body += "</tbody></table></div>";
    }
    page::section(
        "seeds",
        "What the initial state decides",
        "Where the loop starts from a random state, another seed gives another likelihood for the same token: this is how much. It \
         should fall with depth; what is left at full depth is noise that no exit rule can remove.",
        &body,
    )
}

#[cfg(test)]
mod tests;
