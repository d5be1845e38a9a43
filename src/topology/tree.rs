//! A YAML document as a tree that remembers where everything stood.
//!
//! The tree is what lets one bad value not hide the next: it is made first, whole, and the typed [`Topology`](super::Topology)
//! is read from it piece by piece. It is also what turns the path of a value into a line of the file.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use serde_saphyr::granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, options};

use super::problem::Problem;

/// A node's place in its tree.
pub(super) type NodeId = usize;

/// A document.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    /// The document's outermost node.
    pub root: NodeId,
}

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub value: Value,
    /// Bytes of the file, from the value's first to after its last.
    pub span: Range<usize>,
}

/// A value.
#[derive(Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<NodeId>),
    Map(Vec<Entry>),
}

/// A text, a number, true, false or nothing: which of these it is, the reader decides.
#[derive(Debug)]
pub(super) struct Scalar {
    /// The value, after substitution of variables.
    pub text: String,
    /// True when it stood in quotes or in a block (`|`, `>`): it is text then.
    pub quoted: bool,
    /// What stands in the file where variables were put in: errors show this, never the value.
    pub written: Option<String>,
}

/// A key of a mapping, where it stands, and its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub key: String,
    pub span: Range<usize>,
    pub value: NodeId,
}

impl Scalar {
    /// True for nothing at all, `~` and `null`.
    pub fn is_null(&self) -> bool {
        !self.quoted && matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }

    /// What an error shows: the text of the file.
    pub fn shown(&self) -> &str {
        self.written.as_deref().unwrap_or(&self.text)
    }
}

impl Tree {
    /// The node `id`.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// All scalars, to put variables in.
    pub fn scalars_mut(&mut self) -> impl Iterator<Item = (NodeId, &Range<usize>, &mut Scalar)> {
        self.nodes.iter_mut().enumerate().filter_map(|(id, node)| match &mut node.value {
            Value::Scalar(scalar) => Some((id, &node.span, scalar)),
            _ => None,
        })
    }

    /// The value of `key` in the mapping `id`.
    pub fn get(&self, id: NodeId, key: &str) -> Option<NodeId> {
        self.entries(id).iter().find(|entry| entry.key == key).map(|entry| entry.value)
    }

    /// The entries of a mapping; none of anything else.
    pub fn entries(&self, id: NodeId) -> &[Entry] {
        match &self.node(id).value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// Where to point for an error at `path`: a scalar, a list on one line, or else the key; for a value that is not
    /// there, the key of the nearest mapping around it.
    pub fn locate(&self, path: &str, text: &str) -> Range<usize> {
        let (mut id, mut rest, mut key) = (self.root, path, None);
        while let Some((next, next_key, next_rest)) = self.step(id, rest) {
            // An item of a list has no key; the place of its own first line is as good.
            (id, rest, key) = (next, next_rest, next_key);
        }
        let node = self.node(id);
        let on_one_line = !node.span.is_empty() && !text[node.span.clone()].contains('\n');
        let is_map = matches!(node.value, Value::Map(_));
        match key {
            Some(key) if !rest.is_empty() || is_map || !on_one_line => key,
            _ if on_one_line => node.span.clone(),
            _ => {
                let start = node.span.start;
                start..text[start..].find('\n').map_or(text.len(), |length| start + length)
            }
        }
    }

    /// One part of a path further: the node, its key's place, and the path that is left.
    fn step<'a>(&self, id: NodeId, path: &'a str) -> Option<(NodeId, Option<Range<usize>>, &'a str)> {
        match &self.node(id).value {
            Value::Scalar(_) => None,
            Value::List(items) => {
                let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
                let item = items.get(index.parse::<usize>().ok()?)?;
                Some((*item, None, rest.strip_prefix('.').unwrap_or(rest)))
            }
            Value::Map(entries) => {
                // Names of columns may hold dots themselves, so the longest key that fits is taken.
                let fits = |entry: &&Entry| {
                    path.strip_prefix(entry.key.as_str()).is_some_and(|r| r.is_empty() || r.starts_with(['.', '[']))
                };
                let entry = entries.iter().filter(fits).max_by_key(|entry| entry.key.len())?;
                let rest = &path[entry.key.len()..];
                Some((entry.value, Some(entry.span.clone()), rest.strip_prefix('.').unwrap_or(rest)))
            }
        }
    }

    /// True if `id` or anything under it is among `marked`.
    pub fn holds_any(&self, id: NodeId, marked: &HashSet<NodeId>) -> bool {
        marked.contains(&id)
            || match &self.node(id).value {
                Value::Scalar(_) => false,
                Value::List(items) => items.iter().any(|item| self.holds_any(*item, marked)),
                Value::Map(entries) => entries.iter().any(|entry| self.holds_any(entry.value, marked)),
            }
    }
}

/// Reads a document. Without a tree when its structure cannot be made out; the problems then end with the reason.
pub(super) fn parse(text: &str) -> (Option<Tree>, Vec<Problem>) {
    let mut builder = Builder::default();
    let options = options! { emit_comments: false };
    for event in Parser::new_from_str_with_options(text, options) {
        let result = event.map_err(|e| syntax_problem(&e, text)).and_then(|(event, span)| builder.take(event, &span));
        if let Err(problem) = result {
            builder.problems.push(problem);
            return (None, builder.problems);
        }
    }
    let empty = |root: &NodeId| matches!(&builder.nodes[*root].value, Value::Scalar(scalar) if scalar.is_null());
    match builder.root.filter(|root| !empty(root)) {
        Some(root) => (Some(Tree { nodes: builder.nodes, root }), builder.problems),
        None => {
            let hint = "a topology starts with `version: 1` and `name: ...`, and needs `sources`".to_string();
            builder.problems.push(Problem::error(None, "the file holds no topology").with_hint(Some(hint)));
            (None, builder.problems)
        }
    }
}

/// The tree while it grows.
#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    root: Option<NodeId>,
    open: Vec<Open>,
    anchors: HashMap<usize, NodeId>,
    problems: Vec<Problem>,
}

/// A list or mapping whose end has not come.
struct Open {
    node: NodeId,
    anchor: usize,
    is_map: bool,
    /// The key whose value comes next.
    key: Option<(String, Range<usize>)>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<(), Problem> {
        let bytes = bytes_of(span);
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let quoted = !matches!(style, ScalarStyle::Plain);
                self.leaf(Scalar { text: text.into_owned(), quoted, written: None }, bytes, anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.enter(Value::List(Vec::new()), bytes, anchor),
            Event::MappingStart(_, anchor, _) => self.enter(Value::Map(Vec::new()), bytes, anchor),
            Event::SequenceEnd | Event::MappingEnd => self.leave(bytes),
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(node) => self.place(*node, bytes),
                None => Err(Problem::error(Some(bytes), "this alias stands inside the value it refers to")),
            },
            Event::DocumentStart(..) if self.root.is_some() => {
                let hint = "remove the `---` or split the file".to_string();
                Err(Problem::error(Some(bytes), "a second document begins here; a topology is one")
                    .with_hint(Some(hint)))
            }
            _ => Ok(()),
        }
    }

    fn leaf(&mut self, scalar: Scalar, span: Range<usize>, anchor: usize) -> Result<(), Problem> {
        if let Some(open) = self.open.last_mut().filter(|open| open.is_map && open.key.is_none()) {
            open.key = Some((scalar.text, span));
            return Ok(());
        }
        let node = self.nodes.len();
        self.nodes.push(Node { value: Value::Scalar(scalar), span: span.clone() });
        self.anchors.extend((anchor > 0).then_some((anchor, node)));
        self.place(node, span)
    }

    fn enter(&mut self, value: Value, span: Range<usize>, anchor: usize) -> Result<(), Problem> {
        if self.open.last().is_some_and(|open| open.is_map && open.key.is_none()) {
            return Err(Problem::error(Some(span), "a key must be a name, not a list or a mapping"));
        }
        let (node, is_map) = (self.nodes.len(), matches!(value, Value::Map(_)));
        self.nodes.push(Node { value, span: span.clone() });
        self.place(node, span)?;
        self.open.push(Open { node, anchor, is_map, key: None });
        Ok(())
    }

    fn leave(&mut self, span: Range<usize>) -> Result<(), Problem> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let last = match &self.nodes[open.node].value {
            Value::Scalar(_) => None,
            Value::List(items) => items.last().map(|id| self.nodes[*id].span.end),
            Value::Map(entries) => entries.last().map(|e| self.nodes[e.value].span.end.max(e.span.end)),
        };
        // The end of a block is only known by what comes after it; its last value says where it really ends.
        let node = &mut self.nodes[open.node];
        node.span.end = last.filter(|_| span.is_empty()).unwrap_or(span.end).max(node.span.start);
        self.anchors.extend((open.anchor > 0).then_some((open.anchor, open.node)));
        Ok(())
    }

    /// Puts a value where the next one belongs.
    fn place(&mut self, node: NodeId, span: Range<usize>) -> Result<(), Problem> {
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut self.nodes[open.node].value, open.key.take()) {
            (Value::List(items), _) => items.push(node),
            (Value::Map(entries), Some((key, key_span))) => match entries.iter().find(|entry| entry.key == key) {
                Some(first) => {
                    let related = Some((first.span.clone(), "first here".to_string()));
                    let message = format!("the key `{key}` stands twice in one mapping");
                    self.problems.push(Problem { related, ..Problem::error(Some(key_span), message) });
                }
                None => entries.push(Entry { key, span: key_span, value: node }),
            },
            _ => return Err(Problem::error(Some(span), "a key must be a name")),
        }
        Ok(())
    }
}

fn bytes_of(span: &Span) -> Range<usize> {
    let start = span.start.byte_offset().unwrap_or(span.start.index());
    start..span.end.byte_offset().unwrap_or(span.end.index()).max(start)
}

/// What the parser says, in words for people who write files.
fn syntax_problem(error: &ScanError, text: &str) -> Problem {
    let at = error.marker().byte_offset().unwrap_or(error.marker().index()).min(text.len());
    let (message, hint) = match error.kind() {
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabInPlainScalar
        | ErrorKind::TabAtBlockScalarStart => {
            ("a tab stands here; YAML is indented with spaces".to_string(), Some("replace the tab by spaces"))
        }
        ErrorKind::UnclosedFlowCollection { open } => (format!("the bracket `{open}` is never closed"), None),
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => {
            (format!("the bracket `{open}` is closed by `{close}`"), None)
        }
        ErrorKind::UnclosedQuotedScalar => ("a quote is opened and never closed".to_string(), None),
        ErrorKind::MappingValueNotAllowed => (
            "a `key: value` cannot stand here".to_string(),
            Some("put a text that holds `: ` into quotes; check the indentation"),
        ),
        ErrorKind::ExpectedBlockMappingKey | ErrorKind::InvalidIndentation => {
            ("a `key: value` of this mapping was expected here".to_string(), Some("check the indentation"))
        }
        ErrorKind::SimpleKeyExpected => ("a `:` is missing after this key".to_string(), None),
        ErrorKind::ExpectedFlowMappingSeparator => (
            "a `,` or `}` was expected here".to_string(),
            Some("inside `{ ... }`, put a text that holds `{`, `}`, `[`, `]` or `,` into quotes"),
        ),
        ErrorKind::ExpectedFlowSequenceSeparator => (
            "a `,` or `]` was expected here".to_string(),
            Some("inside `[ ... ]`, put a text that holds `{`, `}`, `[`, `]` or `,` into quotes"),
        ),
        ErrorKind::UnknownAnchor => ("this alias has no anchor before it".to_string(), None),
        ErrorKind::UnexpectedCharacter { character } => {
            (format!("a text cannot start with `{}`", character.escape_default()), Some("put the text into quotes"))
        }
        _ => (error.info(), None),
    };
    Problem::error(Some(at..at), message).with_hint(hint.map(str::to_string))
}
