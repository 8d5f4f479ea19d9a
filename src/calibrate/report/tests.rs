//! Reports of made-up calibrations: nothing is missing, nothing is broken, and the sentences say what the numbers say.

mod made_up;

use super::*;
use crate::calibrate::{Dynamics, LoopDynamics, Sample};
use made_up::*;

/// Elements that have no end tag.
const VOID: [&str; 4] = ["meta", "br", "img", "link"];

/// Every tag that opens closes, in order, and there is no stray `<`.
fn balanced(page: &str) {
    let page = page.strip_prefix("<!DOCTYPE html>").expect("a doctype");
    let mut open: Vec<&str> = Vec::new();
    for tag in page.split('<').skip(1) {
        let inside = tag.split('>').next().unwrap();
        let name = inside.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap();
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()) && !name.is_empty(), "<{tag}");
        match (inside.starts_with('/'), inside.ends_with('/') || VOID.contains(&name)) {
            (true, _) => assert_eq!(open.pop(), Some(name), "<{tag}"),
            (false, false) => open.push(name),
            (false, true) => {}
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

/// What stands between tags, and in attributes that a reader sees.
fn words(page: &str) -> String {
    let body = page.split("<body>").nth(1).unwrap();
    body.split('<').filter_map(|t| t.split_once('>')).map(|(_, text)| text).collect::<Vec<_>>().join("\n")
}

fn sound(page: &str) {
    balanced(page);
    let words = words(page);
    for bad in ["NaN", "inf ", "inf%", "null", "None"] {
        assert!(!words.contains(bad), "{bad}");
    }
    for bad in
        ["=\"NaN", "title=\"NaN", "NaN,", "<script", "<img", "<link", "<iframe", "javascript:", "@import", "url("]
    {
        assert!(!page.contains(bad), "{bad}");
    }
    // Nothing that a browser would fetch, and no address of any kind that is not text of the sample.
    for bad in ["http:", "https:", "src=", "href="] {
        assert!(!page.replace("&lt;img src=x", "").replace("href=\"#", "").contains(bad), "{bad}");
    }
}

#[test]
fn everything_is_there() {
    let page = html(&rich(GOOD, 1));
    sound(&page);
    for title in [
        "Cross-entropy against depth",
        "Perplexity lost against the published depth",
        "Cross-entropy against steps",
        "Cross-entropy against time",
        "Where tokens leave",
        "Length of a step",
        "Acceleration",
        "Angle between steps",
        "Curvature",
        "Size of the state",
        "Drift: how far each block",
        "Refinement: how far",
        "Direction: a block",
        "Paths of a few tokens",
        "41 % of the variance",
        "nats²",
        "class=\"chosen\"",
        "J per token",
        "loop steps: ",
    ] {
        assert!(page.contains(title), "{title}");
    }
    // Two of depth, two fronts with close-ups, three rules' depths, five of motion, three of scales, paths.
    assert_eq!(page.matches("<svg class=\"plot\"").count(), 2 + 4 + 3 + 5 + 3 + 1);
    for id in ["advice", "depth", "settings", "rules", "tokens", "motion", "scales", "paths", "seeds"] {
        assert_eq!(page.matches(&format!("<section id=\"{id}\">")).count(), 1, "{id}");
    }
    assert!(!page.contains("no data"));
}

#[test]
fn every_loop_has_its_curves() {
    let page = html(&rich(GOOD, 2));
    sound(&page);
    assert!(page.contains("Loop 1 of 2") && page.contains("Loop 2 of 2"));
    assert_eq!(page.matches("\"Length of a step\"").count(), 2);
}

#[test]
fn what_is_missing_is_left_out() {
    let page = html(&poor());
    sound(&page);
    for word in ["not measured", "No sample", "not looked at", "No exit rule was measured"] {
        assert!(page.contains(word), "{word}");
    }
    assert!(!page.contains("ms per token") && !page.contains("KL, nats</th>"));

    // Parts that are there and hold nothing.
    let mut findings = rich(GOOD, 1);
    findings.dynamics.loops =
        vec![LoopDynamics::default(), LoopDynamics { step_norm: vec![NO_BAND; 4], ..LoopDynamics::default() }];
    findings.dynamics.drift.iter_mut().for_each(|d| (d.moved, d.cosine) = (NO_BAND, NO_BAND));
    findings.dynamics.paths.explained = [f64::NAN; 2];
    findings.dynamics.paths.tokens.iter_mut().for_each(|t| t.points = vec![[f64::NAN; 2]; 3]);
    findings.sample = Sample::default();
    findings.profile.rules.iter_mut().for_each(|p| {
        p.steps.clear();
        p.timing = None;
    });
    findings.screened.iter_mut().for_each(|s| s.cross_entropy = f64::NAN);
    let page = html(&findings);
    sound(&page);

    findings.profile.depths.clear();
    findings.profile.rules.clear();
    sound(&html(&findings));
    assert!(table(&findings.profile).starts_with("  rule"));
}

#[test]
fn numbers_from_the_ends_of_the_world() {
    for value in [0.0, f64::NAN, f64::INFINITY, 1e300, 1e-300, -1.0] {
        let mut findings = rich(GOOD, 1);
        let bad = estimate(value, value);
        let p = &mut findings.profile;
        for point in p.depths.iter_mut().chain(&mut p.rules) {
            (point.cross_entropy, point.perplexity, point.kl, point.same_top) = (bad, bad, bad, bad);
            (point.mean_steps, point.capped, point.seed_variance) = (value, value, Some(bad));
            if let Some(t) = &mut point.timing {
                (t.ms_per_token, t.joules_per_token) = (value, Some(value));
            }
        }
        let all = made_up::band(value, 1.0);
        findings.dynamics.loops.iter_mut().for_each(|l| l.step_norm.iter_mut().for_each(|b| *b = all));
        findings.dynamics.drift.iter_mut().for_each(|d| (d.moved, d.cosine) = (all, all));
        findings.sample.tokens.iter_mut().for_each(|t| t.nll = value);
        sound(&html(&findings));
        let _ = table(&findings.profile);
    }
}

#[test]
fn names_are_names() {
    let page = html(&hostile());
    balanced(&page);
    // The only brackets are those of our own tags, so that none of theirs made one.
    for bad in ["<script", "<img", "<svg/", "</style>]]", "\u{0}", "\u{202e}"] {
        assert!(!page.contains(bad), "{bad}");
    }
    assert!(page.contains("&lt;/script&gt;&lt;img"));
    // Within attributes quotes would end them.
    for attribute in page.split("title=\"").skip(1).chain(page.split("aria-label=\"").skip(1)) {
        let value = attribute.split('"').next().unwrap();
        assert!(!value.contains(['<', '>']), "{value}");
    }
}

fn said(shape: Shape, dynamics: Option<&Dynamics>) -> String {
    recommendation(&profile(shape), dynamics).join("\n")
}

#[test]
fn advice_where_the_rule_wins() {
    let said = said(GOOD, Some(&dynamics(1)));
    println!("{said}");
    assert!(said.starts_with("Use `--exit-rule acceleration:"), "{said}");
    assert!(said.contains("instead of the published 16 (") && said.contains("% fewer)") && said.contains("% less)"));
    assert!(said.contains("Depth matters up to 11 steps"));
    assert!(said.contains("rule wins here") && said.contains("% fewer steps (33 % less time) than `kl`"));
    assert!(said.contains("latent states settle."));
}

#[test]
fn advice_where_the_rule_loses() {
    let said = said(Shape { acceleration: 1.2, ..GOOD }, None);
    println!("{said}");
    assert!(said.contains("rule does not win here") || said.contains("wins against some"), "{said}");
    assert!(said.contains("% more steps (") && said.contains(") than fixed depths"));
    assert!(!said.starts_with("Use `--exit-rule acceleration"));
    let tie = self::said(Shape { acceleration: 0.85, ..GOOD }, None);
    assert!(tie.contains("about as many steps (and about as much time) as `step-norm`"), "{tie}");
}

#[test]
fn advice_where_depth_buys_nothing() {
    let flat = said(Shape { gain: 0.001, ..GOOD }, None);
    println!("{flat}");
    assert!(flat.starts_with("Use `--exit-rule fixed:1`: 1 step per token instead of the published 16"), "{flat}");
    assert!(flat.contains("Depth buys nothing on this text"));
}

#[test]
fn advice_where_more_depth_helps_or_harms() {
    let mut shallow = profile(GOOD);
    (shallow.published_steps, shallow.full_depth) = (2, 11);
    let helped = recommendation(&shallow, None).join("\n");
    assert!(helped.contains("More than the published 2 steps help"), "{helped}");

    let mut breaks = profile(GOOD);
    breaks.published_steps = 4;
    breaks.rules.clear();
    for (k, point) in breaks.depths.iter_mut().enumerate().skip(4) {
        point.perplexity.value = breaks_at(k);
        point.cross_entropy.value = point.perplexity.value.ln();
    }
    let said = recommendation(&breaks, None).join("\n");
    assert!(said.contains("rises again after that") && said.contains("do not run this model deeper"), "{said}");
    assert!(said.contains("No exit rule was measured."));
    assert!(said.contains("More than the published 4 steps buy nothing"), "{said}");

    fn breaks_at(k: usize) -> f64 {
        30.0 * k as f64
    }
}

#[test]
fn advice_where_states_do_not_settle() {
    let mut restless = dynamics(2);
    restless.loops[0] = motion(16, 0.999);
    restless.loops[0].angle.iter_mut().for_each(|b| b.median = 170.0);
    let said = said(GOOD, Some(&restless));
    assert!(said.contains("Loop 1: after 16 steps") && said.contains("do not settle"), "{said}");
    assert!(said.contains("to and fro"));
    assert!(said.contains("Loop 2: after 16 steps"));
}

#[test]
fn the_table_fits_a_terminal() {
    let mut profile = profile(GOOD);
    profile.rules[0].rule = "acceleration-raw:0.01778279,hits=2,min=4,max=32".parse().unwrap();
    let table = table(&profile);
    println!("{table}");
    assert!(table.lines().all(|l| l.chars().count() < 110), "{table}");
    assert_eq!(table.lines().filter(|l| l.starts_with('→')).count(), 2, "a point and the key");
    assert!(table.lines().any(|l| l.ends_with(" acceleration-raw:0.01778279,hits=2,min=4,max=32")));
    let poor = super::table(&poor().profile);
    assert!(!poor.contains("NaN") && !poor.contains("ms") && !poor.contains("KL"), "{poor}");
}

/// Pages for `tests/report_browser.sh`, in the folder that `RDT_REPORTS` names; without it the pages are only made.
#[test]
fn pages() {
    let other = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("RDT_REPORTS").map_or(other.path().to_owned(), std::path::PathBuf::from);
    let all = [("rich", rich(GOOD, 1)), ("two-loops", rich(GOOD, 2)), ("poor", poor()), ("hostile", hostile())];
    for (name, findings) in all {
        std::fs::write(folder.join(name).with_extension("html"), html(&findings)).unwrap();
    }
}

/// Every chart of the page is a file of its own, too.
#[test]
fn charts_stand_alone() {
    let findings = rich(GOOD, 2);
    let charts = charts(&findings);
    assert_eq!(charts.len(), html(&findings).matches("<svg").count());
    let names: std::collections::BTreeSet<_> = charts.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), charts.len());
    for (name, svg) in &charts {
        assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""), "{name}");
        assert!(svg.contains("<style>") && svg.contains(" width=\"") && !svg.contains("max-width"), "{name}");
        assert_eq!((svg.matches("<svg").count(), svg.matches("</svg>").count()), (1, 1), "{name}");
    }
}
