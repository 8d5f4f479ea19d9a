//! Every exact point as a row, for a terminal and for a page.

use super::advice::chosen;
use super::words::{NONE, change, estimate, fixed, percent, short};
use crate::calibrate::{Point, Profile};
use crate::plot::escape;
use std::fmt::Write;

/// Widest rule that stands in one line with its numbers.
const RULE: usize = 38;

/// A column: its heading for a terminal and for a page, and a point's number.
struct Column<'a> {
    head: &'static str,
    title: &'static str,
    cell: Box<dyn Fn(&Point) -> String + 'a>,
}

/// The columns that have numbers.
fn columns(profile: &Profile) -> Vec<Column<'_>> {
    fn column<'a>(head: &'static str, title: &'static str, cell: impl Fn(&Point) -> String + 'a) -> Column<'a> {
        Column { head, title, cell: Box::new(cell) }
    }
    let all = [
        column("steps", "mean steps", |p| fixed(p.mean_steps, 2)),
        column("loss", "loss", |p| change(profile.loss(p))),
        column("perplexity", "perplexity", |p| estimate(p.perplexity)),
        column("KL", "KL, nats", |p| short(p.kl.value)),
        column("agree", "agreement", |p| percent(p.same_top.value)),
        column("ms", "ms per token", |p| short(p.timing.map_or(f64::NAN, |t| t.ms_per_token))),
        column("J", "J per token", |p| short(p.timing.and_then(|t| t.joules_per_token).unwrap_or(f64::NAN))),
        column("seeds", "seed variance, nats²", |p| short(p.seed_variance.map_or(f64::NAN, |v| v.value))),
    ];
    all.into_iter().filter(|c| profile.points().any(|p| (c.cell)(p) != NONE)).collect()
}

/// What stands before a rule: the setting to use, one of the front, or neither.
fn mark(profile: &Profile, point: &Point) -> &'static str {
    let is = |other: &&Point| std::ptr::eq(*other, point);
    match chosen(profile) {
        Some(ref best) if is(best) => "→",
        _ if profile.front().iter().any(is) => "*",
        _ => " ",
    }
}

/// The main table for a terminal, less than 110 columns wide.
pub fn table(profile: &Profile) -> String {
    let columns = columns(profile);
    let rows: Vec<_> = profile
        .points()
        .map(|p| (mark(profile, p), p.rule.to_string(), columns.iter().map(|c| (c.cell)(p)).collect::<Vec<_>>()))
        .collect();
    let wide = |text: &str| text.chars().count();
    let rule = rows.iter().map(|r| wide(&r.1)).filter(|&w| w <= RULE).max().unwrap_or(0).max(8);
    let widths: Vec<_> = (columns.iter().enumerate())
        .map(|(i, c)| rows.iter().map(|r| wide(&r.2[i])).max().unwrap_or(0).max(wide(c.head)))
        .collect();
    let mut out = format!("  {:<rule$}", "rule");
    for (column, &width) in columns.iter().zip(&widths) {
        let _ = write!(out, "  {:>width$}", column.head);
    }
    out.push('\n');
    for (mark, name, cells) in &rows {
        // A long rule has a line of its own, so that it can be copied.
        match wide(name) <= rule {
            true => _ = write!(out, "{mark} {name:<rule$}"),
            false => _ = write!(out, "{mark} {name}\n  {:rule$}", ""),
        }
        for (cell, &width) in cells.iter().zip(&widths) {
            let _ = write!(out, "  {cell:>width$}");
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out + "→ cheapest within 1 % of the published depth's perplexity   * nothing cheaper is as good\n"
}

/// The main table for a page.
pub(super) fn html(profile: &Profile) -> String {
    let columns = columns(profile);
    let mut out =
        String::from("<div class=\"scroll\"><table class=\"settings\"><thead><tr><th scope=\"col\">rule</th>");
    for column in &columns {
        let _ = write!(out, "<th scope=\"col\">{}</th>", column.title);
    }
    out.push_str("</tr></thead><tbody>\n");
    for point in profile.points() {
        let class = match mark(profile, point) {
            "→" => " class=\"chosen\"",
            "*" => " class=\"front\"",
            _ => "",
        };
        let _ = write!(out, "<tr{class}><th scope=\"row\"><code>{}</code></th>", escape(&point.rule.to_string()));
        for column in &columns {
            let _ = write!(out, "<td>{}</td>", (column.cell)(point));
        }
        out.push_str("</tr>\n");
    }
    out + "</tbody></table></div>\n"
}
