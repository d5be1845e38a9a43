//! The command line: one file a command, and the list of them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches};

use crate::backfill::BackfillError;
use crate::change::{NoGroup, Refused};
use crate::checkpoint::CheckpointError;
use crate::cluster::PeerFailure;
use crate::exit;
use crate::models::ModelError;
use crate::plan::Plan;
use crate::runtime::damaged::Damaged;
use crate::runtime::repeats::Repeats;
use crate::sinks::SinkError;
use crate::sources::SourceError;
use crate::topology::Topology;
use crate::topology::file::File;
use crate::topology::problem::{Report, Style};

mod backfill;
mod broker;
mod check;
mod checkpoint;
mod consume;
mod graph;
mod kinds;
mod plan;
mod produce;
mod reference;
mod run;
mod schema;

pub use reference::{Family, KindPage, families, reference, schema_text};
pub use run::run_built;

/// Every command, in the order of the help.
const COMMANDS: &[Entry] = &[
    entry::<backfill::Backfill>("backfill"),
    entry::<check::Check>("check"),
    entry::<checkpoint::Checkpoint>("checkpoint"),
    entry::<consume::Consume>("consume"),
    entry::<graph::Graph>("graph"),
    entry::<kinds::Kinds>("kinds"),
    entry::<plan::Plan>("plan"),
    entry::<produce::Produce>("produce"),
    entry::<run::ReplayArgs>("replay"),
    entry::<run::RunArgs>("run"),
    entry::<schema::Schema>("schema"),
];

/// A command: its options, and what it does. The doc comment of the options is its help.
trait Run: Args + FromArgMatches {
    /// Does it.
    ///
    /// # Errors
    /// What was tried and what the world said; [`exit_code`] gives the process's exit code for it.
    fn run(self) -> anyhow::Result<ExitCode>;
}

/// An entry of the list of commands.
struct Entry {
    name: &'static str,
    options: fn(Command) -> Command,
    run: fn(&ArgMatches) -> anyhow::Result<ExitCode>,
}

const fn entry<C: Run>(name: &'static str) -> Entry {
    fn run<C: Run>(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
        C::from_arg_matches(matches)?.run()
    }
    Entry { name, options: C::augment_args, run: run::<C> }
}

/// The whole command line, as clap sees it.
pub fn command() -> Command {
    let empty = Command::new("millstream")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A streaming dataflow engine for online machine learning")
        .subcommand_required(true)
        .arg_required_else_help(true);
    COMMANDS.iter().fold(empty, |command, entry| command.subcommand((entry.options)(Command::new(entry.name))))
}

/// The exit code of a bug in Millstream.
const INTERNAL: i32 = 70;
/// The exit code of a job that was stopped before its records were finished.
const STOPPED: u8 = 143;

/// The whole of a program: writes logs, runs, says what went wrong, and turns it into an exit code.
pub fn main(run: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
    end_on_panic();
    crate::logs::start();
    match run() {
        Ok(code) => code,
        Err(error) => {
            say(&describe(&error));
            // A job that failed, or was told to end at once, may have threads at work.
            exit::after_output(exit_code(&error))
        }
    }
}

/// A panic on any thread ends the process at once: half a job is worse than none, and the supervisor starts it again.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.location().is_some_and(|place| is_caught(place.file())) {
            return;
        }
        report(panic);
        let thread = std::thread::current().name().unwrap_or("unnamed").to_string();
        tracing::error!(thread, panic = %panic, "a bug in millstream: the process ends");
        exit::now(INTERNAL);
    }));
}

/// Whether who calls the code of this file catches its panics, and makes an error of them. The writer of tables gives up a file that
/// could not be closed, say on a full disk, and the file's buffer then panics by design.
fn is_caught(file: &str) -> bool {
    file.contains("/object_store-") && file.ends_with("/buffered.rs")
}

/// Runs the command that the process's arguments name.
///
/// # Errors
/// What the command could not do.
pub fn run() -> anyhow::Result<ExitCode> {
    let matches = command().get_matches();
    let Some((name, options)) = matches.subcommand() else { return Ok(ExitCode::SUCCESS) };
    match COMMANDS.iter().find(|entry| entry.name == name) {
        Some(entry) => (entry.run)(options),
        None => Ok(ExitCode::FAILURE),
    }
}

/// The process's exit code for an error, by what a supervisor should do about it: docs/exit_codes.md.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of).unwrap_or(1)
}

/// The exit code that one cause of an error asks for.
fn code_of(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(PeerFailure { code, .. }) = cause.downcast_ref() {
        return Some(*code);
    }
    if cause.is::<Report>() || cause.is::<run::WrongOptions>() {
        return Some(2);
    }
    if cause.is::<run::Stopped>() {
        return Some(STOPPED);
    }
    if let Some(error) = cause.downcast_ref::<ModelError>() {
        return (!matches!(error, ModelError::Unreadable { .. } | ModelError::Runtime(_))).then_some(2);
    }
    match cause.downcast_ref() {
        Some(SourceError::NoHistory { .. }) => return Some(2),
        Some(SourceError::Gap { .. }) => return Some(3),
        Some(SourceError::File { .. } | SourceError::Kafka { .. }) | None => {}
    }
    match cause.downcast_ref() {
        Some(SinkError::TakenOver { .. }) => return Some(4),
        Some(SinkError::Ahead { .. }) => return Some(5),
        Some(SinkError::File { .. } | SinkError::Kafka { .. }) | None => {}
    }
    if let Some(error) = cause.downcast_ref::<BackfillError>() {
        return Some(if matches!(error, BackfillError::Bounded) { 2 } else { 5 });
    }
    if cause.is::<NoGroup>() {
        return Some(2);
    }
    if cause.is::<Refused>() || cause.is::<Repeats>() || cause.is::<Damaged>() {
        return Some(5);
    }
    if let Some(error) = cause.downcast_ref::<CheckpointError>() {
        use CheckpointError::{Corrupt, Newer, Older, OtherJob, TakenOver, Unfenced};
        match error {
            TakenOver { .. } => return Some(4),
            Unfenced { .. } => return Some(2),
            _ => {}
        }
        let unusable = matches!(error, Corrupt { .. } | Newer { .. } | Older { .. } | OtherJob { .. });
        return unusable.then_some(5);
    }
    let io = cause.downcast_ref::<std::io::Error>()?;
    matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem).then_some(7)
}

/// An error as the user sees it.
pub fn describe(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Report>() {
        Some(report) => report.render(style()),
        None => format!("error: {}\n", with_causes(error)),
    }
}

/// An error and its causes, each said once: some errors say their cause in their own words.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    text
}

/// A factor of time, as `--speed` takes it.
fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if factor > 0.0 && factor.is_finite() => Ok(factor),
        _ => Err("it is a number above 0, such as 3600 for an hour a second".into()),
    }
}

/// Writes a command's result on standard output. A reader that has gone (`| head`) is no error: it has what it wanted.
/// (`println!` would panic.)
fn print(text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Writes for a person on standard error. Nobody is told if nobody listens.
fn say(text: &str) {
    use std::io::Write;
    let _gone = std::io::stderr().write_all(text.as_bytes());
}

/// Writes a command's result as JSON on standard output.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    Ok(print(&(serde_json::to_string_pretty(value)? + "\n"))?)
}

/// How problems are shown on standard error.
fn style() -> Style {
    use std::io::IsTerminal;
    match std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        true => Style::Terminal,
        false => Style::Plain,
    }
}

/// The folder that a topology's relative paths start from: the file's.
fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Reads the topology in `path` and the folder that its relative paths start from.
///
/// # Errors
/// A [`Report`] of everything that keeps it from running.
pub fn load(path: &Path) -> anyhow::Result<(Topology, PathBuf)> {
    let file = File::open(path);
    let folder = folder_of(path);
    let errors = match &file.topology {
        Some(topology) => Plan::around(topology, &folder, &file.doubtful).err().unwrap_or_default(),
        None => Vec::new(),
    };
    match file.topology {
        Some(ref topology) if file.is_whole() && errors.is_empty() => Ok((topology.clone(), folder)),
        _ => Err(file.report(&errors, &[]).into()),
    }
}

/// The plan of a topology that was read from `path` and perhaps changed by options since.
///
/// # Errors
/// A [`Report`] of everything that keeps it from running, at its places in the file.
pub fn plan(topology: &Topology, folder: &Path, path: &Path) -> anyhow::Result<Plan> {
    Plan::new(topology, folder).map_err(|errors| File::open(path).report(&errors, &[]).into())
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn a_cause_is_said_once() {
        let io = std::io::Error::from(ErrorKind::NotADirectory);
        let error = CheckpointError::Io { doing: "make", path: "state".into(), source: io };
        let error = anyhow::Error::from(error).context("take the state folder");
        assert_eq!(describe(&error), "error: take the state folder: make state: not a directory\n");
        assert_eq!(describe(&anyhow!("a").context("b")), "error: b: a\n");
    }

    #[test]
    fn exit_codes_follow_the_cause() {
        let report = Report::new("t.yaml", "", Vec::new());
        let corrupt = CheckpointError::Corrupt { path: "state".into(), detail: "cut".into() };
        let full = std::io::Error::from(ErrorKind::StorageFull);
        let locked = CheckpointError::Locked { folder: "state".into(), holder: "process 1".into() };
        for (error, code) in [
            (anyhow::Error::from(report), 2),
            (anyhow::Error::from(corrupt), 5),
            (anyhow::Error::from(full), 7),
            (anyhow::Error::from(locked), 1),
            (anyhow::Error::from(CheckpointError::TakenOver { path: "state".into() }), 4),
            (anyhow!("anything else"), 1),
        ] {
            let error = Err::<(), _>(error).context("run the topology").unwrap_err();
            assert_eq!(exit_code(&error), code, "{error:#}");
        }
    }
}
