//! What is wrong with a file, where it stands, and how that is shown: with the line itself, and a hint.

use std::fmt;
use std::ops::Range;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, ThemeCharacters, ThemeStyles,
};
use serde::Serialize;

/// Whether a problem keeps the topology from running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The topology cannot run.
    Error,
    /// The topology can run; something is probably not meant.
    Warning,
}

/// Something wrong in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Whether the topology can run.
    pub severity: Severity,
    /// The bytes of the file to point at; `None` for the file as a whole.
    pub span: Option<Range<usize>>,
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// What to write instead, if there is a good guess.
    pub hint: Option<String>,
    /// A second place that has to do with it, and what it is.
    pub related: Option<(Range<usize>, String)>,
}

impl Problem {
    /// An error at `span`.
    pub fn error(span: Option<Range<usize>>, message: impl Into<String>) -> Self {
        Problem { severity: Severity::Error, span, message: message.into(), hint: None, related: None }
    }

    /// The same problem with a hint, if there is one.
    pub fn with_hint(self, hint: Option<String>) -> Self {
        Problem { hint, ..self }
    }
}

/// How problems are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Colours and line drawing, for a terminal.
    Terminal,
    /// Plain characters, for files and pipes.
    Plain,
}

/// All problems of one file.
#[derive(Debug, Clone)]
pub struct Report {
    /// The file, as the user named it.
    pub file: String,
    /// What stands in it.
    pub text: String,
    /// The problems, in the order of the file.
    pub problems: Vec<Problem>,
}

/// A problem as scripts read it.
#[derive(Debug, Serialize)]
struct Line<'a> {
    severity: Severity,
    file: &'a str,
    /// From 1; absent for the file as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    /// From 1, in characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
}

impl Report {
    /// A report of `problems`, put into the order of the file.
    pub fn new(file: impl Into<String>, text: impl Into<String>, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.span.as_ref().map(|span| span.start), problem.severity));
        problems.dedup();
        Report { file: file.into(), text: text.into(), problems }
    }

    /// Number of problems that keep the topology from running.
    pub fn errors(&self) -> usize {
        self.problems.iter().filter(|problem| problem.severity == Severity::Error).count()
    }

    /// All problems as text, each with the lines around it.
    pub fn render(&self, style: Style) -> String {
        let theme = match style {
            Style::Terminal => GraphicalTheme::unicode(),
            Style::Plain => GraphicalTheme { characters: plain_characters(), styles: ThemeStyles::none() },
        };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(100).with_context_lines(1).with_links(false);
        let mut text = String::new();
        for problem in &self.problems {
            let shown = Shown { problem, source: NamedSource::new(&self.file, self.text.clone()), file: &self.file };
            // Writing into a String cannot fail, and a span outside the text is shown without its lines.
            if handler.render_report(&mut text, &shown).is_err() {
                text.push_str(&format!("{}: {}\n", self.file, problem.message));
            }
            text.push('\n');
        }
        let lines = text.lines().map(str::trim_end);
        let mut tidy = lines.fold(String::new(), |text, line| text + line + "\n");
        tidy.truncate(tidy.trim_end().len());
        tidy + "\n"
    }

    /// All problems as JSON values: `severity`, `file`, `line`, `column`, `message`, `hint`.
    pub fn to_json(&self) -> serde_json::Value {
        let lines = self.problems.iter().map(|problem| {
            let before = problem.span.as_ref().map(|span| &self.text[..floor(&self.text, span.start)]);
            let line = Line {
                severity: problem.severity,
                file: &self.file,
                line: before.map(|text| text.matches('\n').count() + 1),
                column: before.map(|text| text[text.rfind('\n').map_or(0, |n| n + 1)..].chars().count() + 1),
                message: &problem.message,
                hint: problem.hint.as_deref(),
            };
            serde_json::to_value(line).unwrap_or_default()
        });
        serde_json::Value::Array(lines.collect())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(Style::Plain))
    }
}

impl std::error::Error for Report {}

/// The largest character boundary of `text` at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
}

/// The characters of a report in a file: line drawing for the frame, words for the rest.
fn plain_characters() -> ThemeCharacters {
    ThemeCharacters {
        error: "error:".into(),
        warning: "warning:".into(),
        advice: "note:".into(),
        ..ThemeCharacters::ascii()
    }
}

/// A problem with the file it is in, as miette shows it.
#[derive(Debug)]
struct Shown<'a> {
    problem: &'a Problem,
    source: NamedSource<String>,
    file: &'a str,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problem.span {
            Some(_) => f.write_str(&self.problem.message),
            None => write!(f, "{}: {}", self.file, self.problem.message),
        }
    }
}

impl std::error::Error for Shown<'_> {}

impl Diagnostic for Shown<'_> {
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.problem.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }
    fn help<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        self.problem.hint.as_ref().map(|hint| Box::new(hint) as Box<dyn fmt::Display + 'b>)
    }
    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        self.problem.span.as_ref().map(|_| &self.source as &dyn miette::SourceCode)
    }
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let main = self.problem.span.clone().map(|span| LabeledSpan::new_primary_with_span(None, span));
        let related = self.problem.related.clone().map(|(span, label)| LabeledSpan::new_with_span(Some(label), span));
        self.problem.span.as_ref()?;
        Some(Box::new(main.into_iter().chain(related)))
    }
}
