//! The options of commands that talk to Kafka.

use std::collections::BTreeMap;

use anyhow::anyhow;
use clap::Args;

use crate::kafka::Options;

/// The variable that names the brokers when the option is not given.
const VARIABLE: &str = "KAFKA_BROKERS";

/// Which brokers, and how to be let in.
#[derive(Debug, Args)]
pub(super) struct Broker {
    /// Addresses of some brokers, `host:port`, with commas between. Default: the variable KAFKA_BROKERS, else
    /// localhost:9092.
    #[arg(long, value_name = "HOST:PORT")]
    brokers: Option<String>,
    /// A setting of librdkafka, such as `security.protocol=sasl_ssl`; may be given several times. A value `@FILE` is read
    /// from a file, which keeps secrets out of the list of processes.
    #[arg(long = "option", value_name = "NAME=VALUE")]
    options: Vec<String>,
}

impl Broker {
    /// The addresses.
    pub fn brokers(&self) -> String {
        let named = self.brokers.clone().or_else(|| std::env::var(VARIABLE).ok().filter(|text| !text.is_empty()));
        named.unwrap_or_else(|| "localhost:9092".into())
    }

    /// The settings.
    ///
    /// # Errors
    /// An option without `=`, or a file that can't be read.
    pub fn options(&self) -> anyhow::Result<Options> {
        let mut options = BTreeMap::new();
        for option in &self.options {
            let found = option.split_once('=');
            let (name, value) = found.ok_or_else(|| anyhow!("--option {option}: write it as NAME=VALUE"))?;
            let value = match value.strip_prefix('@') {
                Some(file) => {
                    let text = std::fs::read_to_string(file);
                    text.map_err(|error| anyhow!("--option {name}: {file}: {error}"))?.trim_end().to_owned()
                }
                None => value.to_owned(),
            };
            options.insert(name.to_owned(), value);
        }
        Ok(options.into())
    }
}
