//! Reads what an ONNX file declares, without a runtime, and cuts off what a runtime should not do for us.
//!
//! Converters end classifiers with `ZipMap`, which turns the tensor of probabilities into one map per row, and
//! multi-output classifiers with `SequenceConstruct`. Both cost more than the model and hide a tensor that is there
//! anyway. They are cut off the graph and their inputs exposed as outputs instead:
//!
//! ```text
//! classifier ─▶ probabilities ─▶ ZipMap ─▶ output_probability      as converted
//! classifier ─▶ probabilities                                      as loaded; `output_probability` still names it
//! ```
//!
//! Field numbers are those of `onnx.proto`; see <https://onnx.ai/onnx/repo-docs/IR.html>.

mod wire;

use std::collections::HashSet;

use millstream_operators::score::{Classes, Elements, TensorInfo};

use wire::{Field, Fields, Malformed, write_bytes, write_int};

/// Most bytes a constant tensor may be told to fill: a file of some hundred bytes can ask for any amount.
const FILL_BYTES_MAX: u64 = 1 << 30;

/// What a file declares, and the graph to load.
#[derive(Debug)]
pub(super) struct Declared {
    pub inputs: Vec<TensorInfo>,
    pub outputs: Vec<TensorInfo>,
    pub aliases: Vec<(String, String)>,
    pub classes: Option<Classes>,
    /// An operator whose result for a row depends on the whole batch by design: dynamic quantisation.
    pub quantises_batch: bool,
    /// The file, or a copy without the nodes that were cut off.
    pub model: Vec<u8>,
}

/// Why a file is not a model that can be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("it has no graph")]
    NoGraph,
    #[error("it keeps weights in another file, `{0}`; save the model with all weights in one file")]
    ExternalData(String),
    #[error("it fills a constant tensor of {0} bytes")]
    Memory(u64),
}

/// Reads a model file.
pub(super) fn read(file: Vec<u8>) -> Result<Declared, Refused> {
    let mut graph = None;
    for field in Fields::of(&file) {
        let field = field?;
        match (field.number, field.bytes()) {
            (7, Some(bytes)) => graph = Some(bytes),
            // Functions of the model's own: their bodies hold nodes, so the same rules hold.
            (25, Some(bytes)) => Survey::default().function(bytes)?,
            _ => {}
        }
    }
    let graph = Graph::read(graph.ok_or(Refused::NoGraph)?)?;
    let mut outputs = Vec::new();
    let mut aliases = Vec::new();
    for output in &graph.outputs {
        match graph.cuts.iter().find(|cut| cut.output == output.name) {
            Some(cut) => {
                for (index, input) in cut.inputs.iter().enumerate() {
                    let alias = if cut.zipmap { output.name.clone() } else { format!("{}[{index}]", output.name) };
                    aliases.push((alias, input.clone()));
                    let declared = graph.outputs.iter().any(|o| o.name == *input);
                    if !declared && !outputs.iter().any(|known: &TensorInfo| known.name == *input) {
                        let elements = output.elements.clone();
                        outputs.push(TensorInfo { name: input.clone(), elements, dims: vec![None, None] });
                    }
                }
            }
            None => outputs.extend(output.tensor()),
        }
    }
    let inputs = graph.inputs.iter().filter(|input| !graph.survey.initializers.contains(&input.name));
    let inputs = inputs.filter_map(ValueInfo::tensor).collect();
    let (classes, quantises_batch) = (graph.survey.classes.clone(), graph.survey.quantises_batch);
    let model = if graph.cuts.is_empty() { None } else { Some(without_cuts(&file, &graph)?) };
    Ok(Declared { inputs, outputs, aliases, classes, quantises_batch, model: model.unwrap_or(file) })
}

/// A node that is cut off.
#[derive(Debug)]
struct Cut<'a> {
    output: String,
    inputs: Vec<String>,
    zipmap: bool,
    raw: &'a [u8],
}

/// The graph of a model, as far as it matters here.
struct Graph<'a> {
    bytes: &'a [u8],
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    cuts: Vec<Cut<'a>>,
    survey: Survey,
}

impl<'a> Graph<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Refused> {
        let mut survey = Survey::default();
        survey.graph(bytes)?;
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for field in Fields::of(bytes) {
            let field = field?;
            match (field.number, field.bytes()) {
                (11, Some(value)) => inputs.push(ValueInfo::read(value)?),
                (12, Some(value)) => outputs.push(ValueInfo::read(value)?),
                _ => {}
            }
        }
        let mut cuts = Vec::new();
        for field in Fields::of(bytes) {
            let field = field?;
            if let (1, Some(node)) = (field.number, field.bytes()) {
                let node = Node::read(node)?;
                let zipmap = node.op == "ZipMap" && node.domain == "ai.onnx.ml";
                let cut = zipmap || (node.op == "SequenceConstruct" && node.domain.is_empty());
                if let ([output], true) = (node.outputs.as_slice(), cut && !node.inputs.is_empty())
                    && outputs.iter().any(|declared| declared.name == *output)
                    && !survey.consumed.contains(output)
                {
                    cuts.push(Cut { output: output.clone(), inputs: node.inputs.clone(), zipmap, raw: field.raw });
                }
            }
        }
        Ok(Graph { bytes, inputs, outputs, cuts, survey })
    }
}

/// The file again, with the cut nodes left out and their inputs declared as outputs.
fn without_cuts(file: &[u8], graph: &Graph<'_>) -> Result<Vec<u8>, Malformed> {
    let mut exposed: HashSet<String> = graph
        .outputs
        .iter()
        .map(|output| output.name.clone())
        .filter(|name| !graph.cuts.iter().any(|c| c.output == *name))
        .collect();
    let mut cut_graph = Vec::with_capacity(graph.bytes.len());
    for field in Fields::of(graph.bytes) {
        let field = field?;
        match (field.number, field.bytes()) {
            (1, _) if graph.cuts.iter().any(|cut| std::ptr::eq(cut.raw, field.raw)) => {}
            (12, Some(value)) => {
                let declared = ValueInfo::read(value)?;
                let Some(cut) = graph.cuts.iter().find(|cut| cut.output == declared.name) else {
                    cut_graph.extend_from_slice(field.raw);
                    continue;
                };
                for input in &cut.inputs {
                    if exposed.insert(input.clone()) {
                        write_bytes(&mut cut_graph, 12, &tensor_value_info(input, declared.element_code));
                    }
                }
            }
            _ => cut_graph.extend_from_slice(field.raw),
        }
    }
    let mut out = Vec::with_capacity(file.len());
    for field in Fields::of(file) {
        let field = field?;
        match field.number {
            7 => write_bytes(&mut out, 7, &cut_graph),
            _ => out.extend_from_slice(field.raw),
        }
    }
    Ok(out)
}

/// A `ValueInfoProto` of a tensor of open shape.
fn tensor_value_info(name: &str, element_code: u64) -> Vec<u8> {
    let (mut tensor, mut r#type, mut info) = (Vec::new(), Vec::new(), Vec::new());
    write_int(&mut tensor, 1, element_code);
    write_bytes(&mut r#type, 1, &tensor);
    write_bytes(&mut info, 1, name.as_bytes());
    write_bytes(&mut info, 2, &r#type);
    info
}

/// A declared input or output: a tensor, or (`dims` is none) a sequence of tensors or maps with these elements.
struct ValueInfo {
    name: String,
    elements: Elements,
    element_code: u64,
    dims: Option<Vec<Option<u64>>>,
}

impl ValueInfo {
    fn tensor(&self) -> Option<TensorInfo> {
        let dims = self.dims.clone()?;
        Some(TensorInfo { name: self.name.clone(), elements: self.elements.clone(), dims })
    }

    fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut info = ValueInfo { name: String::new(), elements: elements(1), element_code: 1, dims: None };
        for field in Fields::of(bytes) {
            let field = field?;
            match (field.number, field.bytes()) {
                (1, _) => info.name = field.text().unwrap_or_default(),
                (2, Some(r#type)) => info.read_type(r#type, false)?,
                _ => {}
            }
        }
        info.elements = elements(info.element_code);
        Ok(info)
    }

    fn read_type(&mut self, bytes: &[u8], within: bool) -> Result<(), Malformed> {
        for field in Fields::of(bytes) {
            let field = field?;
            match (field.number, field.bytes()) {
                (1, Some(tensor)) => self.read_tensor(tensor, within)?,
                // A sequence's element type; the value type of a map.
                (4, Some(sequence)) => {
                    for field in Fields::of(sequence) {
                        if let (1, Some(element)) = (field?.number, field?.bytes()) {
                            self.read_type(element, true)?;
                        }
                    }
                }
                (5, Some(map)) => {
                    for field in Fields::of(map) {
                        if let (2, Some(value)) = (field?.number, field?.bytes()) {
                            self.read_type(value, true)?;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_tensor(&mut self, bytes: &[u8], within: bool) -> Result<(), Malformed> {
        let mut dims = Vec::new();
        for field in Fields::of(bytes) {
            let field = field?;
            match (field.number, field.bytes()) {
                (1, _) => self.element_code = field.int().unwrap_or_default() as u64,
                (2, Some(shape)) => {
                    for dim in Fields::of(shape) {
                        if let (1, Some(dim)) = (dim?.number, dim?.bytes()) {
                            let value =
                                Fields::of(dim).filter_map(Result::ok).find(|f| f.number == 1).and_then(|f| f.int());
                            dims.push(value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0));
                        }
                    }
                }
                _ => {}
            }
        }
        if !within {
            self.dims = Some(dims);
        }
        Ok(())
    }
}

fn elements(code: u64) -> Elements {
    match code {
        1 => Elements::Float32,
        6 => Elements::Int32,
        7 => Elements::Int64,
        8 => Elements::Text,
        9 => Elements::Bool,
        11 => Elements::Float64,
        2 => Elements::Other("uint8".into()),
        3 => Elements::Other("int8".into()),
        4 => Elements::Other("uint16".into()),
        5 => Elements::Other("int16".into()),
        10 => Elements::Other("float16".into()),
        12 => Elements::Other("uint32".into()),
        13 => Elements::Other("uint64".into()),
        16 => Elements::Other("bfloat16".into()),
        code => Elements::Other(format!("type {code}")),
    }
}

/// A node's header.
#[derive(Default)]
struct Node<'a> {
    op: String,
    domain: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
    attributes: Vec<&'a [u8]>,
}

impl<'a> Node<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut node = Node::default();
        for field in Fields::of(bytes) {
            let field: Field<'a> = field?;
            match (field.number, field.bytes()) {
                (1, _) => node.inputs.extend(field.text()),
                (2, _) => node.outputs.extend(field.text()),
                (4, _) => node.op = field.text().unwrap_or_default(),
                (5, Some(attribute)) => node.attributes.push(attribute),
                (7, _) => node.domain = field.text().unwrap_or_default(),
                _ => {}
            }
        }
        Ok(node)
    }
}

/// What a walk over all nodes and stored tensors finds, subgraphs included.
#[derive(Default)]
struct Survey {
    initializers: HashSet<String>,
    /// Small integer tensors, as shapes are: (name, values).
    shapes: Vec<(String, Vec<i64>)>,
    consumed: HashSet<String>,
    classes: Option<Classes>,
    quantises_batch: bool,
    depth: u32,
}

impl Survey {
    fn graph(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        // Deeper nesting than any converter makes; recursion stays bounded whatever the file says.
        if self.depth > 16 {
            return Err(Malformed::Garbage { at: 0 }.into());
        }
        self.depth += 1;
        for field in Fields::of(bytes) {
            let field = field?;
            if let (5, Some(tensor)) = (field.number, field.bytes()) {
                let stored = Stored::read(tensor)?;
                self.initializers.insert(stored.name.clone());
                self.shapes.push((stored.name, stored.ints));
            }
        }
        for field in Fields::of(bytes) {
            let field = field?;
            if let (1, Some(node)) = (field.number, field.bytes()) {
                self.node(Node::read(node)?)?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn function(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        for field in Fields::of(bytes) {
            let field = field?;
            if let (7, Some(node)) = (field.number, field.bytes()) {
                self.node(Node::read(node)?)?;
            }
        }
        Ok(())
    }

    fn node(&mut self, node: Node<'_>) -> Result<(), Refused> {
        self.quantises_batch |= node.op == "DynamicQuantizeLinear";
        if node.op == "ConstantOfShape" {
            let shape = self.shapes.iter().find(|(name, _)| node.inputs.first() == Some(name));
            let bytes =
                shape.map_or(0, |(_, dims)| dims.iter().fold(4_u64, |n, dim| n.saturating_mul(dim.unsigned_abs())));
            if bytes > FILL_BYTES_MAX {
                return Err(Refused::Memory(bytes));
            }
        }
        for attribute in &node.attributes {
            self.attribute(&node, attribute)?;
        }
        self.consumed.extend(node.inputs);
        Ok(())
    }

    fn attribute(&mut self, node: &Node<'_>, bytes: &[u8]) -> Result<(), Refused> {
        let (mut name, mut ints, mut strings) = (String::new(), Vec::new(), Vec::new());
        for field in Fields::of(bytes) {
            let field = field?;
            match (field.number, field.bytes()) {
                (1, _) => name = field.text().unwrap_or_default(),
                (5 | 10, Some(tensor)) => {
                    let stored = Stored::read(tensor)?;
                    if let ("Constant", [output]) = (node.op.as_str(), node.outputs.as_slice()) {
                        self.shapes.push((output.clone(), stored.ints));
                    }
                }
                (6 | 11, Some(graph)) => self.graph(graph)?,
                (8, _) => field.ints(&mut ints)?,
                (9, _) => strings.extend(field.text()),
                _ => {}
            }
        }
        match name.as_str() {
            "classlabels_ints" | "classlabels_int64s" if !ints.is_empty() => self.classes = Some(Classes::Int(ints)),
            "classlabels_strings" if !strings.is_empty() => self.classes = Some(Classes::Text(strings)),
            _ => {}
        }
        Ok(())
    }
}

/// A tensor stored in the file.
struct Stored {
    name: String,
    /// Its values, when it is a small tensor of int64.
    ints: Vec<i64>,
}

impl Stored {
    fn read(bytes: &[u8]) -> Result<Self, Refused> {
        const SHAPE_DIMS_MAX: usize = 16;
        let (mut name, mut ints, mut code, mut location) = (String::new(), Vec::new(), 0, None);
        for field in Fields::of(bytes) {
            let field = field?;
            match (field.number, field.bytes()) {
                (2, _) => code = field.int().unwrap_or_default(),
                (7, packed) if ints.len() + packed.map_or(1, <[u8]>::len) <= SHAPE_DIMS_MAX * 10 => {
                    field.ints(&mut ints)?
                }
                (8, _) => name = field.text().unwrap_or_default(),
                (9, Some(raw)) if raw.len() <= SHAPE_DIMS_MAX * 8 => {
                    ints.extend(raw.as_chunks::<8>().0.iter().map(|chunk| i64::from_le_bytes(*chunk)));
                }
                (13, Some(entry)) => location = Some(external_location(entry)?.or(location).unwrap_or_default()),
                (14, _) if field.int() == Some(1) => location = location.or(Some(String::new())),
                _ => {}
            }
        }
        match location {
            Some(location) => Err(Refused::ExternalData(location)),
            None => Ok(Stored { name, ints: if code == 7 { ints } else { Vec::new() } }),
        }
    }
}

/// The `location` of an external-data entry.
fn external_location(entry: &[u8]) -> Result<Option<String>, Malformed> {
    let (mut key, mut value) = (None, None);
    for field in Fields::of(entry) {
        let field = field?;
        match field.number {
            1 => key = field.text(),
            2 => value = field.text(),
            _ => {}
        }
    }
    Ok(value.filter(|_| key.as_deref() == Some("location")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever a damaged file says, reading it ends with an answer and not with a panic.
    #[test]
    fn damaged_files_are_answered() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models");
        for name in ["sk_logreg_string_labels", "sk_multioutput_classifier", "sk_pipeline_strings"] {
            let whole = std::fs::read(folder.join(format!("{name}.onnx"))).unwrap();
            for length in 0..whole.len() {
                let mut cut = whole.clone();
                cut.truncate(length);
                let _ = read(cut);
                for bits in [0x01, 0x80, 0xff] {
                    let mut changed = whole.clone();
                    changed[length] ^= bits;
                    let _ = read(changed);
                }
            }
        }
    }

    #[test]
    fn what_is_cut_off_can_still_be_named() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models");
        let declared = read(std::fs::read(folder.join("sk_logreg_string_labels.onnx")).unwrap()).unwrap();
        let outputs: Vec<String> = declared.outputs.iter().map(ToString::to_string).collect();
        assert_eq!(outputs, ["`output_label` string[?]", "`probabilities` float32[?,?]"]);
        assert_eq!(declared.aliases, [("output_probability".to_string(), "probabilities".to_string())]);
        let classes = ["high", "low", "mid"].map(String::from).to_vec();
        assert_eq!(declared.classes, Some(Classes::Text(classes)));
        let again = read(declared.model).unwrap();
        assert!(again.aliases.is_empty(), "the copy has no ZipMap");
        assert_eq!(again.outputs.len(), 2);
    }
}
