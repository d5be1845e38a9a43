//! A kind is something that can be named in a topology file: a source, a format, an aggregate, a detector, a sink.
//!
//! Each family has one list, written with [`kinds!`](crate::kinds!). The list gives the enum that serde reads, the JSON
//! schema, the reference page and the contract tests their entries, so a kind that is listed is also documented and
//! tested.

/// What every kind says about itself besides its fields (whose doc comments are the user's documentation).
pub trait Kind {
    /// A complete example in YAML: the value under the kind's name. It must parse into the kind's config.
    const EXAMPLE: &'static str;
}

/// One entry of a family's list.
#[derive(Debug, Clone, Copy)]
pub struct KindInfo {
    /// The family, as the reference page groups kinds: `source`, `sink`, `detector` ...
    pub family: &'static str,
    /// The name in a topology file.
    pub name: &'static str,
    /// [`Kind::EXAMPLE`].
    pub example: &'static str,
}

/// Declares a family: an enum of configs, read from YAML as `name: {...}`, and its list `KINDS`.
///
/// ```
/// use millstream_operators::{kinds, kinds::Kind};
/// #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
/// #[serde(deny_unknown_fields)]
/// pub struct Echo { times: u32 }
/// impl Kind for Echo { const EXAMPLE: &'static str = "{ times: 2 }"; }
/// kinds! {
///     /// Things that answer.
///     pub enum Answer("answer") { "echo" => Echo(Echo) }
/// }
/// assert_eq!(Answer::KINDS[0].name, "echo");
/// ```
///
/// A family whose kinds have a trait in common names it, `pub enum Answer("answer"): Answers { ... }`, and has a method
/// `settings`, which gives any kind's settings as that trait: what a kind does then stands in its own file.
#[macro_export]
macro_rules! kinds {
    ($(#[$meta:meta])* pub enum $name:ident($family:literal): $common:path { $($(#[$vmeta:meta])* $key:literal => $variant:ident($config:ty)),+ $(,)? }) => {
        $crate::kinds! {
            $(#[$meta])*
            pub enum $name($family) { $($(#[$vmeta])* $key => $variant($config)),+ }
        }
        impl $name {
            /// The settings, as what all kinds of the family are.
            pub fn settings(&self) -> &dyn $common {
                match self { $(Self::$variant(config) => config),+ }
            }
        }
    };
    ($(#[$meta:meta])* pub enum $name:ident($family:literal) { $($(#[$vmeta:meta])* $key:literal => $variant:ident($config:ty)),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub enum $name {
            $(
                $(#[$vmeta])*
                #[doc = concat!("`", $key, "`")]
                #[serde(rename = $key)]
                $variant($config),
            )+
        }
        impl $name {
            /// Every kind of the family, in the order of the reference page.
            pub const KINDS: &'static [$crate::kinds::KindInfo] = &[
                $($crate::kinds::KindInfo {
                    family: $family,
                    name: $key,
                    example: <$config as $crate::kinds::Kind>::EXAMPLE,
                }),+
            ];
            /// The kind's name as it stands in a file.
            pub fn kind_name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $key),+ }
            }
        }
    };
}
