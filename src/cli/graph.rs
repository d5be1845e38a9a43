//! `millstream graph`: a topology as a picture.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::{Run, load, print, print_json};
use crate::graph::{self, mermaid, svg, text};

/// Prints the graph of a topology.
#[derive(Debug, Args)]
pub(super) struct Graph {
    /// The topology file.
    file: PathBuf,
    /// How to draw it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Prints nodes and edges as JSON.
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// A table for a terminal.
    Text,
    /// A Mermaid flowchart.
    Mermaid,
    /// A picture.
    Svg,
}

impl Run for Graph {
    fn run(self) -> anyhow::Result<ExitCode> {
        let (topology, _) = load(&self.file)?;
        let graph = graph::Graph::of(&topology);
        if self.json {
            print_json(&graph.to_json())?;
            return Ok(ExitCode::SUCCESS);
        }
        let drawn = match self.format {
            Format::Text => text::draw(&graph),
            Format::Mermaid => mermaid::draw(&graph),
            Format::Svg => svg::draw(&graph),
        };
        print(&drawn)?;
        Ok(ExitCode::SUCCESS)
    }
}
