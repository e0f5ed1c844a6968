//! The ratios of a run as a picture: SVG, readable on light and on dark ground.

use std::fmt::Write as _;

use super::{
    bounds::{self, Against, Limit, OURS},
    format::number,
    metric::Metric,
    peers,
    results::Results,
    statistics::{Summary, paired_ratios, summarise},
    works::{WORKS, Work},
};

/// Pixels.
const WIDTH: f64 = 860.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 56.0;
const ROW: f64 = 18.0;
const TITLE: f64 = 26.0;
const BAR: f64 = 11.0;

/// The scale is logarithmic, as half and double are as far from equal.
const LOWEST: f64 = 0.08;
const HIGHEST: f64 = 4.0;
const MARKS: [f64; 6] = [0.1, 0.25, 0.5, 1.0, 2.0, 4.0];

const STYLE: &str =
    "text{font:12px system-ui,sans-serif;fill:#222}.group{font-weight:600}.small{font-size:11px;fill:#666}
.grid{stroke:#ddd}.one{stroke:#666}.better{fill:#2a7f62}.worse{fill:#c0562f}.open{fill:#aaa}.range{stroke:#222;stroke-width:1.5}
.bound{stroke:#7a3fb5;stroke-width:2}
@media (prefers-color-scheme:dark){text{fill:#ddd}.small{fill:#999}.grid{stroke:#444}.one{stroke:#aaa}
.better{fill:#3fae8a}.worse{fill:#e07a4f}.open{fill:#777}.range{stroke:#eee}.bound{stroke:#b98cf0}}";

/// One bar.
struct Row {
    peer: &'static str,
    ratios: Summary,
    bound: Option<Limit>,
}

/// The metric that a work is about: what its first bound is of.
fn metric_of(work: &Work) -> Option<Metric> {
    let bounds = bounds::BOUNDS.iter().filter(|bound| bound.work == work.name);
    bounds.filter(|bound| matches!(bound.against, Against::Peer(_))).map(|bound| bound.metric).next()
}

fn rows(results: &Results, work: &Work, metric: Metric) -> Vec<Row> {
    let ours = results.by_round(work.name, OURS, metric);
    let row = |peer: &&'static str| {
        let ratios = summarise(paired_ratios(&ours, &results.by_round(work.name, peer, metric)))?;
        let mut bounds = bounds::BOUNDS.iter().filter(|bound| bound.work == work.name && bound.metric == metric);
        let bound = bounds.find(|bound| bound.against == Against::Peer(peer)).map(|bound| bound.limit);
        Some(Row { peer, ratios, bound })
    };
    peers::NAMES.iter().filter(|peer| **peer != OURS && **peer != "direct").filter_map(row).collect()
}

fn x(ratio: f64) -> f64 {
    let place = (ratio.clamp(LOWEST, HIGHEST) / LOWEST).ln() / (HIGHEST / LOWEST).ln();
    LEFT + place * (WIDTH - LEFT - RIGHT)
}

/// The whole picture.
pub fn svg(results: &Results) -> String {
    let mut groups = Vec::new();
    for work in WORKS.iter().filter(|work| results.works.iter().any(|name| name == work.name)) {
        let Some(metric) = metric_of(work) else { continue };
        let rows = rows(results, work, metric);
        if !rows.is_empty() {
            groups.push((work, metric, rows));
        }
    }
    let lines = groups.iter().map(|(_, _, rows)| TITLE + ROW * rows.len() as f64).sum::<f64>();
    let height = TOP + lines + 12.0;
    let mut body = String::new();
    for mark in MARKS {
        let (x, class) = (x(mark), if mark == 1.0 { "one" } else { "grid" });
        let bottom = height - 8.0;
        let _ = write!(body, r#"<line class="{class}" x1="{x:.1}" x2="{x:.1}" y1="{TOP}" y2="{bottom}"/>"#);
        let _ =
            writeln!(body, r#"<text class="small" x="{x:.1}" y="{:.1}" text-anchor="middle">{mark}</text>"#, TOP - 6.0);
    }
    let mut y = TOP;
    for (work, metric, rows) in &groups {
        y += TITLE;
        let better = if *metric == Metric::Rate { "more is better" } else { "less is better" };
        let title = format!("{}: {}, {better}", work.title, metric.label());
        let _ = writeln!(body, r#"<text class="group" x="12" y="{:.1}">{title}</text>"#, y - 7.0);
        for row in rows {
            bar(&mut body, row, *metric, y);
            y += ROW;
        }
    }
    let legend = "Harbor over its peer: median of ratios paired within a round; line: 95 % interval, or range of few rounds; \
                  grey: it contains 1; purple: bound";
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{legend}">
<style>{STYLE}</style>
<text class="small" x="12" y="20">{legend}</text>
{body}</svg>
"#
    )
}

fn bar(body: &mut String, row: &Row, metric: Metric, y: f64) {
    let ratios = &row.ratios;
    let (low, high) = ratios.interval.unwrap_or((ratios.min, ratios.max));
    let class = match (low > 1.0, high < 1.0) {
        (false, false) => "open",
        (more, _) if more == (metric == Metric::Rate) => "better",
        _ => "worse",
    };
    let (one, median) = (x(1.0), x(ratios.median));
    let (left, width, middle) = (one.min(median), (one - median).abs().max(1.0), y + BAR / 2.0);
    let _ = write!(body, r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#, LEFT - 10.0, y + 10.0, row.peer);
    let _ = write!(body, r#"<rect class="{class}" x="{left:.1}" y="{y:.1}" width="{width:.1}" height="{BAR}"/>"#);
    let (from, to) = (x(low), x(high));
    let _ = write!(body, r#"<line class="range" x1="{from:.1}" x2="{to:.1}" y1="{middle:.1}" y2="{middle:.1}"/>"#);
    if let Some(Limit::AtMost(limit) | Limit::AtLeast(limit) | Limit::NeverMoreThan(limit)) = row.bound {
        let (x, from, to) = (x(limit), y - 2.0, y + BAR + 2.0);
        let _ = write!(body, r#"<line class="bound" x1="{x:.1}" x2="{x:.1}" y1="{from:.1}" y2="{to:.1}"/>"#);
    }
    let figures = format!("{} ({} to {})", number(ratios.median), number(low), number(high));
    let _ =
        writeln!(body, r#"<text class="small" x="{:.1}" y="{:.1}">{figures}</text>"#, WIDTH - RIGHT + 12.0, y + 10.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_logarithmic_and_ends() {
        assert!((x(0.5) - x(0.25) - (x(1.0) - x(0.5))).abs() < 1e-9);
        assert_eq!((x(0.0), x(1e9)), (LEFT, WIDTH - RIGHT));
    }

    #[test]
    fn every_work_with_a_bound_against_a_peer_is_drawn() {
        let drawn = WORKS.iter().filter(|work| metric_of(work).is_some()).map(|work| work.name).collect::<Vec<_>>();
        assert!(drawn.contains(&"bulk-up") && drawn.contains(&"udp-max") && !drawn.contains(&"idle"), "{drawn:?}");
    }
}
