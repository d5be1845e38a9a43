//! `millstream kinds`: the reference of what can be named in a topology file.

use std::process::ExitCode;

use clap::Args;
use millstream_operators::error::nearest;

use serde_json::{Value, json};

use super::reference::{KindPage, families, kind_page};
use super::{Run, print, print_json};

/// Lists the kinds that a topology file can name, or prints the reference of one.
#[derive(Debug, Args)]
pub(super) struct Kinds {
    /// A kind, such as `kafka`; without it, all kinds are listed.
    name: Option<String>,
    /// Prints the kinds as JSON, with the schema of their settings.
    #[arg(long)]
    json: bool,
}

impl Run for Kinds {
    fn run(self) -> anyhow::Result<ExitCode> {
        let families = families();
        let Some(name) = self.name else {
            if self.json {
                let all: Vec<Value> = families.iter().flat_map(|family| &family.kinds).map(to_json).collect();
                print_json(&all)?;
                return Ok(ExitCode::SUCCESS);
            }
            for family in &families {
                let names: Vec<&str> = family.kinds.iter().map(|kind| kind.name).collect();
                print(&format!("{:14} {}\n", family.name, names.join(", ")))?;
            }
            return Ok(ExitCode::SUCCESS);
        };
        let kinds = || families.iter().flat_map(|family| &family.kinds);
        let found: Vec<&KindPage> = kinds().filter(|kind| kind.name == name).collect();
        if found.is_empty() {
            let hint = nearest(&name, kinds().map(|kind| kind.name));
            let hint = hint.unwrap_or_else(|| "`millstream kinds` lists all".to_string());
            anyhow::bail!("there is no kind `{name}`; {hint}");
        }
        match self.json {
            true => print_json(&found.into_iter().map(to_json).collect::<Vec<Value>>())?,
            false => print(&found.into_iter().map(kind_page).collect::<Vec<String>>().join("\n"))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn to_json(kind: &KindPage) -> Value {
    json!({
        "family": kind.family, "name": kind.name, "stands": kind.stands, "example": kind.example,
        "settings": kind.settings,
    })
}
