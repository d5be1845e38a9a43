//! `millstream kinds`: the reference of what can be named in a topology file.

use std::process::ExitCode;

use clap::Args;
use millstream_operators::error::nearest;

use super::reference::{families, kind_page};
use super::{Run, print};

/// Lists the kinds that a topology file can name, or prints the reference of one.
#[derive(Debug, Args)]
pub(super) struct Kinds {
    /// A kind, such as `kafka`; without it, all kinds are listed.
    name: Option<String>,
}

impl Run for Kinds {
    fn run(self) -> anyhow::Result<ExitCode> {
        let families = families();
        let Some(name) = self.name else {
            for family in &families {
                let names: Vec<&str> = family.kinds.iter().map(|kind| kind.info.name).collect();
                print(&format!("{:14} {}\n", family.name, names.join(", ")))?;
            }
            return Ok(ExitCode::SUCCESS);
        };
        let kinds = || families.iter().flat_map(|family| &family.kinds);
        let pages: Vec<String> = kinds().filter(|kind| kind.info.name == name).map(kind_page).collect();
        if pages.is_empty() {
            let hint = nearest(&name, kinds().map(|kind| kind.info.name));
            let hint = hint.unwrap_or_else(|| "`millstream kinds` lists all".to_string());
            anyhow::bail!("there is no kind `{name}`; {hint}");
        }
        print(&pages.join("\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}
