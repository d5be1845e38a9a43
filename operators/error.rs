//! What is wrong with a topology, told by the path of the value that is wrong.
//!
//! A path is written as in the file, `features.card.aggregates[1].of`. The line and column are found later from the path,
//! so nothing here or in a config knows about files.

use std::fmt;

/// A value of a topology that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where the value stands: `features.card.aggregates[1].of`. Empty for the topology as a whole.
    pub path: String,
    /// What is wrong with it: lower case, no full stop.
    pub message: String,
    /// What to write instead, when there is a good guess.
    pub hint: Option<String>,
}

impl ConfigError {
    /// An error at `path` without a hint.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        ConfigError { path: path.into(), message: message.into(), hint: None }
    }

    /// The same error with a hint, if there is one.
    pub fn with_hint(self, hint: Option<String>) -> Self {
        ConfigError { hint, ..self }
    }

    /// An error at `path` for a name that is not among `known`; the hint is the nearest of them, else all of them if
    /// they are few.
    ///
    /// ```
    /// use millstream_operators::error::ConfigError;
    /// let error = ConfigError::unknown("sinks.out.from", "source or node", "frud", ["fraud", "payments"]);
    /// assert_eq!(error.message, "there is no source or node `frud`");
    /// assert_eq!(error.hint.as_deref(), Some("did you mean `fraud`?"));
    /// ```
    pub fn unknown<'a>(
        path: impl Into<String>,
        what: &str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        let hint = nearest(name, known.iter().copied()).or_else(|| listed(&known));
        ConfigError::new(path, format!("there is no {what} `{name}`")).with_hint(hint)
    }

    /// The same error under a longer path: `outer` is put before its own path.
    ///
    /// ```
    /// use millstream_operators::error::ConfigError;
    /// assert_eq!(ConfigError::new("checks[0]", "is empty").under("sources.card").path, "sources.card.checks[0]");
    /// ```
    pub fn under(self, outer: &str) -> Self {
        let path = match (outer.is_empty(), self.path.is_empty()) {
            (true, _) => self.path,
            (_, true) => outer.to_string(),
            _ if self.path.starts_with('[') => format!("{outer}{}", self.path),
            _ => format!("{outer}.{}", self.path),
        };
        ConfigError { path, ..self }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}

/// A hint that names the candidate most like `name`: `` did you mean `amount`? ``. `None` when none is like it.
///
/// Upper and lower case count as alike, and so does a candidate's last part after a dot (`mean_24h` finds
/// `card.mean_24h`).
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let wanted = name.to_lowercase();
    let likeness = |candidate: &str| {
        let whole = candidate.to_lowercase();
        let last = whole.rsplit('.').next().unwrap_or(&whole);
        strsim::jaro_winkler(&wanted, &whole).max(strsim::jaro_winkler(&wanted, last) - 0.01)
    };
    let scored = candidates.into_iter().map(|candidate| (likeness(candidate), candidate));
    let (score, best) = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (score >= 0.8 && best != name).then(|| format!("did you mean `{best}`?"))
}

/// A hint that lists `known`, if it is short enough to be read.
fn listed(known: &[&str]) -> Option<String> {
    let names: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
    match known.len() {
        0 => None,
        1 => Some(format!("there is only {}", names[0])),
        2..=12 => Some(format!("there are {}", names.join(", "))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found() {
        let known = ["amount", "merchant", "card.mean_24h", "Channel"];
        let hint = |name| nearest(name, known);
        assert_eq!(hint("amonut").as_deref(), Some("did you mean `amount`?"));
        assert_eq!(hint("AMOUNT").as_deref(), Some("did you mean `amount`?"));
        assert_eq!(hint("channel").as_deref(), Some("did you mean `Channel`?"));
        assert_eq!(hint("mean_24h").as_deref(), Some("did you mean `card.mean_24h`?"));
        assert_eq!(hint("zzz"), None);
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn an_unknown_name_without_a_likeness_lists_what_there_is() {
        let error = ConfigError::unknown("a.from", "node", "zzz", ["amount", "channel"]);
        assert_eq!(error.to_string(), "a.from: there is no node `zzz` (there are `amount`, `channel`)");
    }

    #[test]
    fn paths_are_joined() {
        for (inner, joined) in [("", "a"), ("b", "a.b"), ("[1]", "a[1]")] {
            assert_eq!(ConfigError::new(inner, "m").under("a").path, joined);
        }
    }
}
