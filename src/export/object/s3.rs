//! S3 and what speaks like it.

use std::error::Error;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Region, StalledStreamProtectionConfig};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ListedObject, ObjectInfo, ObjectStore, PutOutcome, StoreError, StoreErrorKind, StoreFuture};
use crate::failpoint::failpoint;
use crate::trust;

/// Where stores that are not AWS are said to be when nobody says it.
const REGION_OF_AN_ENDPOINT: &str = "us-east-1";
/// How long a transfer may stand still.
const STALL_MAX: Duration = Duration::from_secs(5);
/// Enough of a store's message to act on, not a page of XML.
const MESSAGE_CHARS_MAX: usize = 400;

/// Where the bucket is. Credentials come from where the AWS SDK looks for them: environment,
/// profile, web identity (IRSA), container or instance role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Settings {
    pub bucket: String,
    pub region: Option<String>,
    pub endpoint: Option<String>,
    pub force_path_style: bool,
    /// For one operation as a whole.
    pub timeout_ms: u64,
    pub connect_timeout_ms: u64,
}

/// A bucket.
#[derive(Debug, Clone)]
pub struct S3 {
    client: Client,
    bucket: String,
    timeout: Duration,
}

impl S3 {
    /// Reads the SDK's configuration. Sends nothing to the store, and never fails for one that is
    /// away; without a region no request can be signed, without any CA none can be sent.
    pub async fn connect(settings: &S3Settings) -> Result<Self, StoreError> {
        Self::connect_with(settings, aws_config::defaults(BehaviorVersion::latest())).await
    }

    /// The same with an SDK configuration that has been started by the caller, for credentials of
    /// his own.
    pub async fn connect_with(
        settings: &S3Settings,
        sdk: aws_config::ConfigLoader,
    ) -> Result<Self, StoreError> {
        let refused = |message| StoreError {
            operation: "connect",
            key: settings.bucket.clone(),
            kind: StoreErrorKind::Refused,
            message,
        };
        trust::some_ca().map_err(refused)?;
        let timeout = Duration::from_millis(settings.timeout_ms);
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_millis(settings.connect_timeout_ms))
            .operation_attempt_timeout(timeout)
            .operation_timeout(timeout)
            .build();
        let stall = StalledStreamProtectionConfig::enabled()
            .upload_enabled(true)
            .download_enabled(true)
            .grace_period(STALL_MAX.min(timeout))
            .build();
        let mut loader = sdk
            .timeout_config(timeouts)
            .stalled_stream_protection(stall)
            // A write whose answer was lost must not be sent again in silence: its 412 would be
            // somebody else's for the caller, who alone knows what to compare it with.
            .retry_config(RetryConfig::disabled());
        if let Some(region) = &settings.region {
            loader = loader.region(Region::new(region.clone()));
        } else if settings.endpoint.is_some() {
            loader = loader.region(Region::from_static(REGION_OF_AN_ENDPOINT));
        }
        if let Some(endpoint) = &settings.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        let shared = loader.load().await;
        if shared.region().is_none() {
            return Err(refused("no region is configured, here or in the AWS environment".to_owned()));
        }
        let config =
            aws_sdk_s3::config::Builder::from(&shared).force_path_style(settings.force_path_style).build();
        Ok(S3 { client: Client::from_conf(config), bucket: settings.bucket.clone(), timeout })
    }

    async fn put(
        &self,
        key: &str,
        body: Bytes,
        content_type: &str,
        metadata: &[(String, String)],
    ) -> Result<PutOutcome, StoreError> {
        failpoint!(put key, "before");
        let sent = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .if_none_match("*")
            .content_type(content_type)
            .set_metadata(Some(metadata.iter().cloned().collect()))
            .body(ByteStream::from(body))
            .send()
            .await;
        failpoint!(put key, "after");
        match sent {
            Ok(_) => Ok(PutOutcome::Created),
            Err(error) if status_of(&error) == Some(412) => Ok(PutOutcome::Exists),
            Err(error) => Err(store_error("put", key, &error)),
        }
    }

    async fn head_object(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError> {
        let answer = self.client.head_object().bucket(&self.bucket).key(key).send().await;
        failpoint!("head.after");
        match answer {
            Ok(head) => Ok(Some(ObjectInfo {
                bytes: head.content_length().and_then(|n| n.try_into().ok()).unwrap_or(0),
                metadata: head.metadata.unwrap_or_default().into_iter().collect(),
            })),
            // A HEAD's answer has no body: a bucket that is not there looks the same.
            Err(error) if status_of(&error) == Some(404) => Ok(None),
            Err(error) => Err(store_error("head", key, &error)),
        }
    }

    async fn get_object(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        let answer = self.client.get_object().bucket(&self.bucket).key(key).send().await;
        failpoint!("get.after");
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.code() == Some("NoSuchKey") => return Ok(None),
            Err(error) => return Err(store_error("get", key, &error)),
        };
        // The SDK's time limit ends with the headers.
        match tokio::time::timeout(self.timeout, answer.body.collect()).await {
            Ok(Ok(body)) => Ok(Some(body.into_bytes())),
            Ok(Err(error)) => Err(transient("get", key, &with_causes(&error))),
            Err(_) => Err(transient("get", key, "the body did not arrive in time")),
        }
    }

    async fn list_objects(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<Vec<ListedObject>, StoreError> {
        failpoint!("list.before");
        let mut objects = Vec::new();
        let mut continuation = None;
        loop {
            let page = self
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .prefix(prefix)
                .set_start_after(start_after.map(str::to_owned))
                .set_continuation_token(continuation)
                .send()
                .await
                .map_err(|error| store_error("list", prefix, &error))?;
            continuation = page.next_continuation_token;
            objects.extend(page.contents.into_iter().flatten().filter_map(|object| {
                let bytes = object.size.and_then(|n| n.try_into().ok()).unwrap_or(0);
                Some(ListedObject { key: object.key?, bytes })
            }));
            match (page.is_truncated, &continuation) {
                (Some(true), Some(_)) => {}
                // Taking a part for the whole could hide a file: better no answer.
                (Some(true), None) => {
                    return Err(transient("list", prefix, "a page has no link to the next one"));
                }
                _ => return Ok(objects),
            }
        }
    }
}

impl ObjectStore for S3 {
    fn put_if_absent<'a>(
        &'a self,
        key: &'a str,
        body: Bytes,
        content_type: &'a str,
        metadata: &'a [(String, String)],
    ) -> StoreFuture<'a, PutOutcome> {
        Box::pin(self.put(key, body, content_type, metadata))
    }

    fn head<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<ObjectInfo>> {
        Box::pin(self.head_object(key))
    }

    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Bytes>> {
        Box::pin(self.get_object(key))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        start_after: Option<&'a str>,
    ) -> StoreFuture<'a, Vec<ListedObject>> {
        Box::pin(self.list_objects(prefix, start_after))
    }
}

fn status_of<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

fn transient(operation: &'static str, key: &str, message: &str) -> StoreError {
    StoreError {
        operation,
        key: key.to_owned(),
        kind: StoreErrorKind::Transient,
        message: shortened(message),
    }
}

fn store_error<E>(operation: &'static str, key: &str, error: &SdkError<E>) -> StoreError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let status = status_of(error);
    let code = error.code();
    let kind = match error {
        // The endpoint or a parameter is malformed: the next request will be, too.
        SdkError::ConstructionFailure(_) => StoreErrorKind::Refused,
        SdkError::ServiceError(_) => kind_of(status, code),
        // The request could not be signed. The SDK tells it from a broken connection by its words
        // only.
        SdkError::DispatchFailure(failure)
            if failure.is_other() && with_causes(error).contains("credential") =>
        {
            StoreErrorKind::Denied
        }
        // Timed out, not connected, cut off, or answered with something that is not S3.
        _ => StoreErrorKind::Transient,
    };
    let message = match (status, error) {
        // Code and message only: the raw answer may repeat the request that was signed.
        (Some(status), SdkError::ServiceError(_)) => {
            let code = code.unwrap_or("no code");
            format!("{status} {code}: {}", error.message().unwrap_or("no message"))
        }
        (Some(status), _) => format!("{status}, and an answer that is not understood"),
        (None, _) => trust::with_advice(with_causes(error)),
    };
    StoreError { operation, key: key.to_owned(), kind, message: shortened(&message) }
}

/// What a status and an error code say about trying again. Codes count first: S3 reports expired
/// credentials and slow clients as 400.
fn kind_of(status: Option<u16>, code: Option<&str>) -> StoreErrorKind {
    match (status, code) {
        (_, Some("ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" | "AccessDenied")) => {
            StoreErrorKind::Denied
        }
        (_, Some("RequestTimeout" | "SlowDown" | "ThrottlingException" | "InternalError")) => {
            StoreErrorKind::Transient
        }
        (Some(409), _) => StoreErrorKind::Conflict,
        (Some(401 | 403), _) => StoreErrorKind::Denied,
        (Some(501), _) => StoreErrorKind::Refused,
        (Some(408 | 425 | 429 | 500..), _) => StoreErrorKind::Transient,
        _ => StoreErrorKind::Refused,
    }
}

/// An error and what caused it, each in its own words.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn shortened(message: &str) -> String {
    match message.char_indices().nth(MESSAGE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}
