//! What a store of objects says when it refuses, told as the operating system tells it of a disk, with what to do.
//!
//! The client knows of a listing only that it failed, so the store's own words are looked at as well: the `Code` of its answer.

use std::error::Error as _;
use std::io::{self, ErrorKind};

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};

/// Rights and secrets, as the errors of a refused request name them.
const RIGHTS: &str = "look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and the rights: listing the bucket, reading, \
                      writing and deleting its objects";
/// Where a machine in a cloud asks for its role.
const ROLE_ADDRESS: &str = "169.254.169.254";

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    NoBucket,
    NoObject,
    Denied,
    OtherRegion,
    NoCredentials,
    Unreachable,
    Taken,
    Unable,
    /// It is away, slow or overwhelmed: it has been tried some times.
    Silent,
}

/// What a store said, as an error of the operating system.
pub(super) fn told(error: Error) -> io::Error {
    let refusal = Refusal::of(&error);
    io::Error::new(refusal.kind(), format!("{} ({error})", refusal.advice()))
}

impl Refusal {
    fn of(error: &Error) -> Refusal {
        let text = error.to_string();
        match (code(&text), error) {
            (Some("NoSuchBucket"), _) => Refusal::NoBucket,
            (Some("PermanentRedirect" | "AuthorizationHeaderMalformed"), _) => Refusal::OtherRegion,
            (_, Error::NotFound { .. }) => Refusal::NoObject,
            (_, Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) => Refusal::Denied,
            (_, Error::AlreadyExists { .. } | Error::Precondition { .. }) => Refusal::Taken,
            (_, Error::NotImplemented { .. } | Error::NotSupported { .. }) => Refusal::Unable,
            _ if ["status code: 401", "status code: 403"].iter().any(|status| text.contains(status)) => Refusal::Denied,
            _ if text.contains("status code: 404") => Refusal::NoBucket,
            _ if text.contains(ROLE_ADDRESS) => Refusal::NoCredentials,
            _ if is_unconnected(error) => Refusal::Unreachable,
            _ => Refusal::Silent,
        }
    }

    fn kind(self) -> ErrorKind {
        match self {
            Refusal::NoBucket | Refusal::NoObject => ErrorKind::NotFound,
            Refusal::Denied => ErrorKind::PermissionDenied,
            Refusal::OtherRegion => ErrorKind::InvalidInput,
            Refusal::Taken => ErrorKind::AlreadyExists,
            Refusal::Unable => ErrorKind::Unsupported,
            // They may pass, and are waited for.
            Refusal::NoCredentials | Refusal::Unreachable | Refusal::Silent => ErrorKind::TimedOut,
        }
    }

    fn advice(self) -> String {
        match self {
            Refusal::NoBucket => {
                "there is no such bucket; make it, or look at its name, the endpoint and the region".to_string()
            }
            Refusal::NoObject => "there is no such object".to_string(),
            Refusal::Denied => format!("the store refuses it; {RIGHTS}"),
            Refusal::OtherRegion => "the bucket is in another region; set `engine.s3.region` or AWS_REGION".to_string(),
            Refusal::NoCredentials => {
                "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
                    .to_string()
            }
            Refusal::Unreachable => {
                "nobody answers at the store's address; look at the endpoint, its port and the network".to_string()
            }
            Refusal::Taken => "it is there already".to_string(),
            Refusal::Unable => "the store can't do it".to_string(),
            Refusal::Silent => {
                "the store does not answer as it should; look at the endpoint and the region".to_string()
            }
        }
    }
}

/// The code in the answer of a store that speaks the protocol of S3.
fn code(text: &str) -> Option<&str> {
    text.split_once("<Code>")?.1.split_once("</Code>").map(|(code, _)| code)
}

/// Whether there was no connection.
fn is_unconnected(error: &Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<HttpError>() {
            return error.kind() == HttpErrorKind::Connect;
        }
        cause = error.source();
    }
    false
}
