//! The tables of a run, in Markdown, and the chart: from results alone, so that they can be made again.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser;

use super::{
    bounds::{self, Against, Bound, Limit, OURS},
    chart,
    format::{interval, number, range},
    metric::Metric,
    peers,
    results::Results,
    statistics::{paired_ratios, summarise},
    works::{WORKS, Work},
};

#[derive(Debug, Parser)]
pub struct Args {
    /// Results of one run, or of several whose rounds are put together
    #[arg(required = true, value_name = "RESULTS.JSON")]
    results: Vec<PathBuf>,
    /// Writes the tables between the markers of performance.md in this folder, and performance.svg beside it
    #[arg(long, value_name = "FOLDER")]
    docs: Option<PathBuf>,
}

/// What stands around the tables in the documentation.
const BEGIN: &str = "<!-- tables: begin -->\n";
const END: &str = "<!-- tables: end -->\n";

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut all = args.results.iter().map(|path| Results::read(path));
    let mut results = all.next().context("clap wants one")??;
    for other in all {
        results.append(other?);
    }
    let tables = markdown(&results);
    match &args.docs {
        Some(folder) => write_docs(folder, &tables, &chart::svg(&results))?,
        None => write!(std::io::stdout(), "{tables}")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn write_docs(folder: &Path, tables: &str, svg: &str) -> anyhow::Result<()> {
    let path = folder.join("performance.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let parts = text.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) = parts.with_context(|| format!("{} has lost its markers", path.display()))?;
    fs::write(&path, format!("{head}{BEGIN}\n{tables}\n{END}{tail}"))?;
    fs::write(folder.join("performance.svg"), svg)?;
    Ok(())
}

/// All of it.
pub fn markdown(results: &Results) -> String {
    let mut text = String::new();
    heading(&mut text, results);
    bounds_table(&mut text, results);
    ratio_tables(&mut text, results);
    figure_tables(&mut text, results);
    system_calls_table(&mut text, results);
    left_out(&mut text, results);
    text
}

/// `writeln!` into a `String` cannot fail.
macro_rules! line {
    ($text:expr, $($argument:tt)*) => {{ let _ = writeln!($text, $($argument)*); }};
}

fn heading(text: &mut String, results: &Results) {
    let machine = &results.machine;
    let rounds_of = |work: &String| {
        let rounds = results.cells.iter().filter(|cell| cell.work == *work).map(|cell| cell.round);
        rounds.collect::<BTreeSet<_>>().len()
    };
    let rounds = results.works.iter().map(rounds_of).max().unwrap_or(0);
    let versions = results.versions.iter().filter(|(peer, _)| *peer != "direct" && *peer != "naive");
    let versions = versions.map(|(peer, version)| format!("{peer}: {version}")).collect::<Vec<_>>().join("; ");
    line!(
        text,
        "{rounds} rounds{}, begun {}, on {} cores of {}, {} MiB of memory, Linux {}, {} descriptors, \
         `net.core.rmem_max` {}.",
        results.revision.as_ref().map(|revision| format!(" of {revision}")).unwrap_or_default(),
        results.started,
        machine.cores,
        machine.processor,
        number(machine.memory_mib as f64),
        machine.kernel,
        number(machine.descriptors as f64),
        machine.receive_buffer_max,
    );
    line!(text, "{versions}.\n");
}

fn bounds_table(text: &mut String, results: &Results) {
    line!(text, "### Bounds\n");
    line!(text, "| work | what | bound | median [min..max] | 95 % interval | |");
    line!(text, "|---|---|---|---|---|---|");
    for bound in bounds::of(results) {
        let summary = bound.summary(results);
        let (values, sure) = summary.as_ref().map_or_else(|| ("–".into(), "–".into()), |s| (range(s), interval(s)));
        let verdict = bound.verdict(results).label();
        line!(text, "| {} | {} | {} | {values} | {sure} | {verdict} |", title(bound.work), what(bound), limit(bound));
    }
    line!(text, "");
}

fn title(work: &str) -> &str {
    super::works::find(work).map_or(work, |work| work.title)
}

fn what(bound: &Bound) -> String {
    match bound.against {
        Against::Peer(peer) => format!("{} / {peer}'s", bound.metric.label()),
        Against::Itself => format!("{}, {}", bound.metric.label(), bound.metric.unit("", "")),
    }
}

fn limit(bound: &Bound) -> String {
    match bound.limit {
        Limit::AtMost(limit) => format!("≤ {}", number(limit)),
        Limit::AtLeast(limit) => format!("≥ {}", number(limit)),
        Limit::NeverMoreThan(limit) => format!("≤ {} in every round", number(limit)),
    }
}

/// The works of the run, in order, that have a metric.
fn works(results: &Results, metric: Metric) -> impl Iterator<Item = &'static Work> {
    let asked = move |work: &&Work| results.works.iter().any(|name| name == work.name);
    WORKS.iter().filter(asked).filter(move |work| work.metrics.contains(&metric))
}

/// A table with a row a work and a column a peer; rows and columns without a cell are left out.
fn table(text: &mut String, title: &str, rows: &[(String, Vec<Option<String>>)]) {
    let columns = (0..peers::NAMES.len()).filter(|i| rows.iter().any(|(_, cells)| cells[*i].is_some()));
    let columns = columns.collect::<Vec<_>>();
    if columns.is_empty() {
        return;
    }
    line!(text, "### {title}\n");
    let names = columns.iter().map(|i| peers::NAMES[*i]).collect::<Vec<_>>().join(" | ");
    line!(text, "| | {names} |");
    line!(text, "|---|{}", "---|".repeat(columns.len()));
    for (label, cells) in rows.iter().filter(|(_, cells)| cells.iter().any(Option::is_some)) {
        let cells = columns.iter().map(|i| cells[*i].as_deref().unwrap_or("")).collect::<Vec<_>>().join(" | ");
        line!(text, "| {label} | {cells} |");
    }
    line!(text, "");
}

fn ratio_tables(text: &mut String, results: &Results) {
    for metric in Metric::ALL.into_iter().filter(|metric| metric.is_compared()) {
        let rows = works(results, metric).map(|work| {
            let ours = results.by_round(work.name, OURS, metric);
            let cell = |peer: &&str| {
                let theirs = results.by_round(work.name, peer, metric);
                let ratios = summarise(paired_ratios(&ours, &theirs)).filter(|_| *peer != OURS)?;
                Some(range(&ratios) + lossy(results, work, peer, metric))
            };
            (work.title.to_owned(), peers::NAMES.iter().map(cell).collect())
        });
        table(text, &format!("Harbor's {} over the peer's", metric.label()), &rows.collect::<Vec<_>>());
    }
}

/// A mark for latencies that are too good: what was lost has none.
fn lossy(results: &Results, work: &Work, peer: &str, metric: Metric) -> &'static str {
    let lost = metric.is_of_answers() && results.cells_of(work.name, peer).any(|cell| cell.lost() > 0);
    if lost { " (of those that came)" } else { "" }
}

fn figure_tables(text: &mut String, results: &Results) {
    for metric in Metric::ALL {
        let rows = works(results, metric).map(|work| {
            let cell = |peer: &&str| {
                let figures = summarise(results.by_round(work.name, peer, metric).into_values().collect())?;
                Some(range(&figures) + lossy(results, work, peer, metric))
            };
            let unit = metric.unit(work.unit, work.per.1);
            (format!("{}, {unit}", work.title), peers::NAMES.iter().map(cell).collect())
        });
        let title = metric.label();
        let title = title[..1].to_uppercase() + &title[1..];
        table(text, &title, &rows.collect::<Vec<_>>());
    }
}

fn system_calls_table(text: &mut String, results: &Results) {
    let rows = works(results, Metric::Cpu).map(|work| {
        let cell = |peer: &&str| {
            let found = results.system_calls.iter().find(|count| count.work == work.name && count.peer == **peer)?;
            let calls = number(found.calls as f64 / found.units);
            let splices = found.splices as f64 / found.units;
            Some(if found.splices > 0 { format!("{calls}, {} splice", number(splices)) } else { calls })
        };
        (format!("{}, per {}", work.title, singular(work.unit)), peers::NAMES.iter().map(cell).collect())
    });
    table(text, "System calls", &rows.collect::<Vec<_>>());
}

fn singular(unit: &str) -> &str {
    unit.strip_suffix('s').unwrap_or(unit)
}

/// Everything that is not in the tables, and why.
fn left_out(text: &mut String, results: &Results) {
    let mut notes = results.left_out.clone();
    for work in &results.works {
        for peer in peers::NAMES {
            let (mut rounds, mut failed, mut why, mut errors, mut lost, mut limited) = (0, 0, "", 0, 0, 0);
            for cell in results.cells_of(work, peer) {
                if let Some(error) = &cell.error {
                    (failed, why) = (failed + 1, error);
                }
                rounds += 1;
                errors += cell.errors();
                lost += cell.lost();
                limited += u32::from(cell.error.is_none() && cell.lost() == 0);
            }
            if failed > 0 {
                notes.push(format!("{work} through {peer} failed {failed} times: {why}"));
            }
            if errors > 0 {
                notes.push(format!("{work} through {peer} had {errors} errors"));
            }
            // It looks for the rate at which it begins to lose.
            if work == "udp-max" {
                if limited > 0 {
                    notes.push(format!(
                        "{work} through {peer} lost nothing in {limited} of {rounds} rounds: what it carried is what \
                         the load could send"
                    ));
                }
            } else if lost > 0 {
                notes.push(format!("{work} through {peer} lost {lost} datagrams"));
            }
        }
    }
    if !notes.is_empty() {
        line!(text, "### Left out, failed, limited\n");
        notes.iter().for_each(|note| line!(text, "- {note}"));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::compare::results::{Cell, Machine, SystemCalls};

    /// Two works of six rounds in which Harbor takes from 0.50 to 0.55 of what haproxy takes.
    fn results() -> Results {
        let mut cells = Vec::new();
        for round in 0..6 {
            for (turn, (peer, cpu)) in
                [("haproxy", 1.0), ("harbor", 0.5 + f64::from(round) / 100.0)].into_iter().enumerate()
            {
                for work in ["bulk-up", "exchange-64"] {
                    let metrics = BTreeMap::from([(Metric::Cpu, cpu), (Metric::Rate, 2_000.0)]);
                    let errors = u32::from(work == "bulk-up" && peer == "haproxy") * (round % 2);
                    let load = json!({ "errors": errors });
                    let (work, peer) = (work.into(), peer.into());
                    cells.push(Cell { work, peer, round, turn, metrics, load, error: None });
                }
            }
        }
        let splices = SystemCalls { work: "bulk-up".into(), peer: "harbor".into(), units: 2.0, calls: 20, splices: 10 };
        Results {
            started: "2026-01-31T12:00:00Z".into(),
            machine: Machine {
                kernel: "6.18".into(),
                processor: "A processor".into(),
                cores: 2,
                memory_mib: 24_000,
                descriptors: 20_000,
                receive_buffer_max: 4 << 20,
            },
            revision: Some("0123456789ab".into()),
            arguments: Vec::new(),
            versions: BTreeMap::from([("haproxy".into(), "2.6".into()), ("direct".into(), "no proxy".into())]),
            works: vec!["bulk-up".into(), "exchange-64".into()],
            left_out: vec!["nginx is left out: it is not installed".into()],
            cells,
            system_calls: vec![splices],
        }
    }

    #[test]
    fn a_report_has_a_line_for_everything_that_was_measured() {
        let text = markdown(&results());
        for expect in [
            "6 rounds of 0123456789ab, begun 2026-01-31T12:00:00Z, on 2 cores of A processor, 24,000 MiB of memory, Linux 6.18",
            "haproxy: 2.6.",
            "| bulk, 1 connection, up | CPU / haproxy's | ≤ 0.35 | 0.53 [0.50..0.55] | 0.50 to 0.55 | **failed** |",
            "| bulk, 1 connection, up | CPU / nginx's | ≤ 0.35 | – | – | not measured |",
            "| 64 B exchanges, 64 connections | CPU / haproxy's | ≤ 0.90 | 0.53 [0.50..0.55] | 0.50 to 0.55 | met |",
            "### Harbor's CPU over the peer's\n\n| | haproxy |\n|---|---|\n| bulk, 1 connection, up | 0.53 [0.50..0.55] |",
            "### CPU\n\n| | haproxy | harbor |\n",
            "| 64 B exchanges, 64 connections, CPU s/100k requests | 1.00 [1.00..1.00] | 0.53 [0.50..0.55] |",
            "| 64 B exchanges, 64 connections, requests/s | 2,000 [2,000..2,000] | 2,000 [2,000..2,000] |",
            "| bulk, 1 connection, up, per GiB | 10.0, 5.00 splice |",
            "- nginx is left out: it is not installed\n",
            "- bulk-up through haproxy had 3 errors\n",
        ] {
            assert!(text.contains(expect), "{expect:?} is not in\n{text}");
        }
    }

    #[test]
    fn datagrams_that_did_not_come_are_told_beside_what_did() {
        let mut results = results();
        results.works = vec!["udp-exchange-64".into(), "udp-max".into()];
        let cell = |work: &str, round, lost: u64| {
            let metrics = BTreeMap::from([(Metric::P50, 9.0), (Metric::Rate, 1e5)]);
            let (work, peer, load) = (work.to_owned(), "naive".to_owned(), json!({ "lost": lost }));
            Cell { work, peer, round, turn: 0, metrics, load, error: None }
        };
        results.cells = vec![cell("udp-exchange-64", 0, 3), cell("udp-max", 0, 0), cell("udp-max", 1, 7)];
        let text = markdown(&results);
        for expect in [
            "| UDP exchanges, 64 flows, µs | 9.00 [9.00..9.00] (of those that came) |",
            "- udp-exchange-64 through naive lost 3 datagrams\n",
            "- udp-max through naive lost nothing in 1 of 2 rounds: what it carried is what the load could send\n",
        ] {
            assert!(text.contains(expect), "{expect:?} is not in\n{text}");
        }
    }

    #[test]
    fn rounds_of_another_run_come_after_ours() {
        let mut both = results();
        both.append(results());
        assert_eq!(both.by_round("bulk-up", "harbor", Metric::Cpu).len(), 12);
        assert_eq!((both.works.len(), both.system_calls.len(), both.left_out.len()), (2, 1, 1));
    }

    #[test]
    fn tables_are_put_between_the_markers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("performance.md");
        fs::write(&path, format!("head\n{BEGIN}old\n{END}tail\n")).unwrap();
        write_docs(folder.path(), "new\n", "<svg/>").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("head\n{BEGIN}\nnew\n\n{END}tail\n"));
        assert_eq!(fs::read_to_string(folder.path().join("performance.svg")).unwrap(), "<svg/>");
    }

    #[test]
    fn results_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        results().write(&path).unwrap();
        assert_eq!(Results::read(&path).unwrap(), results());
    }
}
