//! The reference page `docs/metrics.md`, written from the catalogue.

use std::fmt::Write;

use super::catalogue::CATALOGUE;
use super::{MetricKind, Part, Seen};

/// The whole page, in Markdown.
pub fn page() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         <!-- Written from the catalogue in src/metrics/catalogue.rs; `UPDATE=1 cargo test metrics::reference` writes it anew. -->\n\n\
         `GET /metrics` answers with the text format of Prometheus. Counters start at zero with the process. A metric\n\
         marked *later* has no series until there is something to say. Labels come from the topology, never from the\n\
         data (but for `slice`, of which an outcome has at most 100).\n",
    );
    let mut part: Option<Part> = None;
    for metric in CATALOGUE {
        if part != Some(metric.part) {
            part = Some(metric.part);
            write!(
                page,
                "\n## {}\n\n| metric | type | labels | unit | meaning |\n|---|---|---|---|---|\n",
                title(metric.part)
            )
            .expect("a String takes every write");
        }
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let later = if metric.seen == Seen::OnceItHappens { " *later*" } else { "" };
        let (name, kind, unit, help) = (metric.name, metric.kind.as_str(), metric.unit, metric.help);
        writeln!(page, "| `{name}` | {kind}{later} | {} | {unit} | {help} |", labels.join(", "))
            .expect("a String takes every write");
    }
    page.push_str("\n## Buckets\n\nHistograms have fixed buckets (upper bounds, in the metric's unit):\n\n");
    let mut seen: Vec<&[f64]> = Vec::new();
    for metric in CATALOGUE {
        let MetricKind::Histogram(buckets) = metric.kind else { continue };
        if seen.contains(&buckets) {
            continue;
        }
        seen.push(buckets);
        let of: Vec<String> = CATALOGUE
            .iter()
            .filter(|other| other.kind == MetricKind::Histogram(buckets))
            .map(|other| format!("`{}`", other.name))
            .collect();
        let bounds: Vec<String> = buckets.iter().map(f64::to_string).collect();
        writeln!(page, "- {}: {}", bounds.join(", "), of.join(", ")).expect("a String takes every write");
    }
    page
}

fn title(part: Part) -> &'static str {
    match part {
        Part::Job => "The job",
        Part::Workers => "Workers",
        Part::Sources => "Sources",
        Part::Kafka => "Kafka",
        Part::Operators => "Operators",
        Part::OnlineStore => "Online store",
        Part::Models => "Models",
        Part::Drift => "Drift",
        Part::Outcomes => "Outcomes",
        Part::Sinks => "Sinks",
        Part::OfflineStore => "Offline store",
        Part::Http => "HTTP",
        Part::Process => "The process",
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_in_the_repository_is_the_catalogue() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let page = super::page();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &page).expect("docs/ can be written");
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert!(there == page, "docs/metrics.md is stale: UPDATE=1 cargo test metrics::reference writes it anew");
    }
}
