//! What happens to a record: Millstream's operators, pure and flat.
//!
//! Nothing in this crate opens a file or a socket, reads a clock, starts a thread or knows timely, tokio, rdkafka or
//! ONNX Runtime. An operator takes [`Batch`]es and gives [`Batch`]es; `millstream::runtime` places it in a dataflow.
//!
//! ```text
//! messages ─ decode ─ validate ─ prepare ─ deduplicate ─ features ─ derive ─ score ─▶ sink
//!               └─ rejects ──┴─────────┴─────────┴───────────┴────────┘
//! ```
//!
//! Families of kinds (what a user can name in a topology file) stand in a folder beside their list: [`decode`],
//! [`features`], [`drift`]. Adding a kind is one file in the folder and one line in the list.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod batch;
pub mod decode;
pub mod deduplicate;
pub mod drift;
pub mod error;
pub mod expressions;
pub mod features;
pub mod key;
pub mod kinds;
pub mod operator;
pub mod prepare;
pub mod quality;
pub mod reject;
pub mod schema;
pub mod score;
pub mod state;
pub mod units;
pub mod validate;
pub mod watermark;

pub use batch::{Batch, EventTime, Messages, Row};
pub use operator::{Operator, Outputs};
