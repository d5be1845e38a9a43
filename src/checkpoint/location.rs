//! How a topology says where its state lies: a folder, or `s3://bucket/prefix`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path as Prefix;
use object_store::{BackoffConfig, ClientConfigKey, RetryConfig};

use super::error::CheckpointError;
use super::storage::{Bucket, Place};
use crate::topology::{Engine, S3};

/// Where a job's state lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A folder of a local disk.
    Folder(PathBuf),
    /// Objects of a bucket.
    Bucket {
        /// The bucket.
        name: String,
        /// What all keys begin with; may be empty.
        prefix: String,
    },
}

impl Location {
    /// Reads what a topology says; relative folders start from `folder`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(state: &str, folder: &Path) -> Result<Location, String> {
        let Some((scheme, rest)) = state.split_once("://") else {
            return match state.is_empty() {
                true => Err("the place of the job's state has no name".to_string()),
                false => Ok(Location::Folder(folder.join(state))),
            };
        };
        if scheme != "s3" {
            return Err(format!("`{scheme}://` is no place for the job's state"));
        }
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if !(3..=63).contains(&name.len()) || !name.chars().all(is_name) {
            return Err(format!("`{name}` is not the name of a bucket: 3 to 63 small letters, digits, `-` and `.`"));
        }
        let prefix = prefix.trim_end_matches('/');
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.=+@".contains(c);
        let is_part = |part: &str| !part.is_empty() && !part.chars().all(|c| c == '.') && part.chars().all(is_plain);
        if !prefix.is_empty() && !prefix.split('/').all(is_part) {
            return Err(format!(
                "`{prefix}` is not a prefix of objects: letters, digits, `-_.=+@`, with `/` between parts"
            ));
        }
        Ok(Location::Bucket { name: name.to_string(), prefix: prefix.to_string() })
    }

    /// The place, not looked at yet.
    ///
    /// # Errors
    /// If a client of the store can't be made of the settings and the environment.
    pub fn place(&self, s3: &S3) -> Result<Place, CheckpointError> {
        let (name, prefix) = match self {
            Location::Folder(folder) => return Ok(Place::folder(folder)),
            Location::Bucket { name, prefix } => (name, prefix),
        };
        let url = if prefix.is_empty() { format!("s3://{name}") } else { format!("s3://{name}/{prefix}") };
        let failed = |source| CheckpointError::Io { doing: "make a client for", path: url.clone(), source };
        let store = client(name, s3).build().map_err(|error| failed(io::Error::other(error)))?;
        let bucket = Bucket::new(Arc::new(store), url.clone(), Prefix::from(prefix.as_str())).map_err(failed)?;
        Ok(Place::bucket(bucket))
    }
}

impl Place {
    /// The place of a job's state; relative folders start from `folder`.
    ///
    /// # Errors
    /// If it has no good name, or a client of the store can't be made of the settings and the environment.
    pub fn of(engine: &Engine, folder: &Path) -> Result<Place, CheckpointError> {
        let location = Location::parse(&engine.state, folder).map_err(|detail| {
            let source = io::Error::new(io::ErrorKind::InvalidInput, detail);
            CheckpointError::Io { doing: "find", path: engine.state.clone(), source }
        })?;
        location.place(&engine.s3)
    }
}

/// A client with the environment's settings and those of the topology, which go first. What a job waits for at most before
/// it holds its sources or, at the start, gives up is told above; here it is for one request.
fn client(bucket: &str, s3: &S3) -> AmazonS3Builder {
    let retry = RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 3,
        retry_timeout: std::time::Duration::from_secs(10),
    };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_retry(retry)
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), "15 seconds")
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::ConnectTimeout), "3 seconds");
    if let Some(region) = &s3.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let named = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
    let endpoint = s3.endpoint.clone().or_else(|| named.iter().find_map(|key| builder.get_config_value(key)));
    // Who writes `http://` means it: a store on this machine or in a network of one's own.
    builder.with_allow_http(endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_folder_or_a_bucket() {
        let parse = |state| Location::parse(state, Path::new("/jobs"));
        assert_eq!(parse("state"), Ok(Location::Folder("/jobs/state".into())));
        assert_eq!(parse("/var/state"), Ok(Location::Folder("/var/state".into())));
        let bucket = |name: &str, prefix: &str| Ok(Location::Bucket { name: name.into(), prefix: prefix.into() });
        assert_eq!(parse("s3://jobs"), bucket("jobs", ""));
        assert_eq!(parse("s3://jobs/"), bucket("jobs", ""));
        assert_eq!(parse("s3://my.jobs-1/a/b=2/"), bucket("my.jobs-1", "a/b=2"));
        for wrong in [
            "",
            "s3://",
            "s3://Jobs",
            "s3://ab",
            "s3://jobs//a",
            "s3://jobs/../x",
            "s3://jobs/a?b",
            "gs://jobs",
            "s3a://jobs/x",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
