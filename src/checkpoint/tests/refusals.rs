//! What a store refuses, and what is told of it: a bucket that is not there, rights, an address at which nobody is.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use object_store::RetryConfig;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;

use super::*;
use crate::checkpoint::storage::Bucket;

/// What the first request of a job is told.
fn told(bucket: &str, endpoint: &str) -> CheckpointError {
    let store = AmazonS3Builder::new().with_bucket_name(bucket).with_endpoint(endpoint).with_allow_http(true);
    let store = store.with_access_key_id("test").with_secret_access_key("test").with_region("us-east-1");
    let store = store.with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() }).build().unwrap();
    let bucket = Bucket::new(Arc::new(store), format!("s3://{bucket}/job"), Path::from("job")).unwrap();
    Place::bucket(bucket).0.list("manifest").unwrap_err()
}

/// A store that answers every request with this.
fn store_that_says(status: &str, code: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // The head of a request without a body comes at once.
            _ = stream.read(&mut [0; 8 << 10]);
            _ = stream.write_all(answer.as_bytes());
        }
    });
    format!("http://{address}")
}

#[test]
fn refusals_are_told_apart() {
    for (status, code, expected, passes) in [
        ("404 Not Found", "NoSuchBucket", "there is no such bucket; make it", false),
        ("404 Not Found", "", "there is no such bucket; make it", false),
        ("403 Forbidden", "AccessDenied", "the store refuses it; look at AWS_ACCESS_KEY_ID", false),
        ("403 Forbidden", "InvalidAccessKeyId", "the store refuses it; look at AWS_ACCESS_KEY_ID", false),
        ("401 Unauthorized", "", "the store refuses it; look at AWS_ACCESS_KEY_ID", false),
        ("400 Bad Request", "AuthorizationHeaderMalformed", "the bucket is in another region", false),
        ("400 Bad Request", "Strange", "the store does not answer as it should", true),
    ] {
        let error = told("jobs", &store_that_says(status, code));
        let text = error.to_string();
        assert!(text.starts_with(&format!("list s3://jobs/job/manifest: {expected}")), "{status} {code}: {text}");
        assert_eq!(error.may_pass(), passes, "{text}");
    }
}

#[test]
fn an_address_at_which_nobody_is_may_be_there_later() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = told("jobs", &format!("http://{address}"));
    let text = error.to_string();
    assert!(error.may_pass() && text.contains("nobody answers at the store's address"), "{text}");
}

/// With a real server, if there is one.
#[test]
fn a_bucket_that_is_not_there_is_named() {
    let Ok(endpoint) = std::env::var("S3_ENDPOINT") else { return };
    let error = told("no-such-bucket", &endpoint);
    let text = error.to_string();
    assert!(!error.may_pass() && text.contains("s3://no-such-bucket/job/manifest: there is no such bucket"), "{text}");
}
