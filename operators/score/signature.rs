//! What a model takes and gives, as its file declares it.

use std::fmt;

/// Element type of a tensor: those the engine can fill or read, and the rest by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Elements {
    /// 32-bit floating point.
    Float32,
    /// 64-bit floating point.
    Float64,
    /// 64-bit integers.
    Int64,
    /// 32-bit integers.
    Int32,
    /// Booleans.
    Bool,
    /// Text.
    Text,
    /// A type the engine neither fills nor reads, such as `float16`.
    Other(String),
}

impl Elements {
    /// True for floating point, where a missing value can be NaN.
    pub fn floating(&self) -> bool {
        matches!(self, Elements::Float32 | Elements::Float64)
    }
}

impl fmt::Display for Elements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Elements::Float32 => "float32",
            Elements::Float64 => "float64",
            Elements::Int64 => "int64",
            Elements::Int32 => "int32",
            Elements::Bool => "bool",
            Elements::Text => "string",
            Elements::Other(name) => name,
        })
    }
}

/// A declared input or output tensor. The first dimension is the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in the graph.
    pub name: String,
    /// Type of its elements.
    pub elements: Elements,
    /// Declared dimensions, `None` where the file leaves one open. Of an output they are a hint: converters declare
    /// shapes that the runtime does not keep.
    pub dims: Vec<Option<u64>>,
}

impl TensorInfo {
    /// Values in a row: the product of the dimensions after the batch. `None` when one is open.
    pub fn width(&self) -> Option<usize> {
        self.dims.iter().skip(1).try_fold(1_usize, |width, dim| width.checked_mul(usize::try_from((*dim)?).ok()?))
    }
}

impl fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.dims.iter().map(|d| d.map_or("?".into(), |d| d.to_string())).collect();
        write!(f, "`{}` {}[{}]", self.name, self.elements, dims.join(","))
    }
}

/// The class labels a classifier was trained on, in the order of its probabilities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Classes {
    /// Integer labels.
    Int(Vec<i64>),
    /// Text labels, in alphabetical order as converters write them.
    Text(Vec<String>),
}

/// What a model file declares, read without loading the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSignature {
    /// The inputs, in the graph's order, without those that have a stored value.
    pub inputs: Vec<TensorInfo>,
    /// The tensor outputs. A sequence of maps or tensors shows as the tensors it is made of.
    pub outputs: Vec<TensorInfo>,
    /// Other names a user may know an output by: (name in the file, name in `outputs`).
    pub aliases: Vec<(String, String)>,
    /// Class labels, when the graph states them.
    pub classes: Option<Classes>,
    /// Most rows a call may carry: 1 for a graph with a fixed batch of one, or whose quantisation looks at the whole batch.
    pub rows_max: usize,
    /// SHA-256 of the file, 64 hexadecimal digits.
    pub digest: String,
}

impl ModelSignature {
    /// The version a model has when the topology gives none: the first 12 digits of the digest.
    pub fn version(&self) -> &str {
        self.digest.get(..12).unwrap_or(&self.digest)
    }

    /// The output called `name`, by its own name or by an alias.
    pub fn output(&self, name: &str) -> Option<&TensorInfo> {
        let own = self.aliases.iter().find(|(alias, _)| alias == name).map_or(name, |(_, own)| own);
        self.outputs.iter().find(|output| output.name == own)
    }
}
