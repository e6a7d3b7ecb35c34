//! The S3 server of the local stack: a folder served over HTTP, with fault switches for tests. Development only.
//!
//!     s3 --port PORT --root FOLDER --bucket NAME      (S3_ACCESS_KEY and S3_SECRET_KEY in the environment)
//!
//! Objects lie as plain files under `FOLDER/NAME/`, their metadata beside the bucket in hidden JSON files, so
//! anything that reads files can read the exports. Built on s3s-fs, with three things put right:
//!
//! - A conditional PUT is atomic. s3s-fs looks first and writes later; here one lock covers both.
//! - An object and its metadata appear together: readers take the same lock, shared.
//! - A PUT whose checksum does not fit leaves nothing behind.
//!
//! A body is read in full before the lock is taken, so that a stopped client holds up nobody but itself, and a PUT
//! that has arrived is applied even if its client has gone away meanwhile, as in a real store.
//!
//! Faults, set without credentials, one at a time, each setting replaces the last and resets `fired`:
//!
//!     curl -X POST "$STACK_S3_FAULT_URL?mode=503&op=put&prefix=exports/&count=3"
//!     curl "$STACK_S3_FAULT_URL"       → {"mode":"503","fired":2,"waiting":0,"requests":{"put":12,…},"puts_refused":1}
//!
//! | mode | what a request that matches gets |
//! |---|---|
//! | `off` | the truth |
//! | `403` `409` `500` `503` | that status (AccessDenied, ConditionalRequestConflict, InternalError, SlowDown); nothing is applied |
//! | `expired` `kms` | 400 with ExpiredToken, or with KMS.DisabledException; nothing is applied |
//! | `200-error` | 200, with an error for a body, as some gateways do; nothing is applied |
//! | `delay` | the truth, `delay_ms` later (default 1000) |
//! | `hang-before-apply` | silence; it is applied when the fault is next set, and then answered if anyone still listens |
//! | `hang-after-apply` | it is applied, and the answer is kept back until the fault is next set: a lost answer |
//! | `ignore-condition` | `If-None-Match` and `If-Match` are overlooked: an unsafe store |
//!
//! `op` is one of put, get, head, list, delete, all (default: all; put for 409, 200-error, the hangs and
//! ignore-condition); `prefix` limits it to keys that begin so, which a `list` is asked by its own prefix; `count` to
//! so many requests. Requests of a multipart upload are counted as `multipart`, and are not served.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, bail};
use async_trait::async_trait;
use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::StreamExt;
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use serde_json::json;
use tokio::sync::{RwLock, watch};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Off,
    Refuse(&'static str),
    Delay,
    HangBeforeApply,
    HangAfterApply,
    IgnoreCondition,
}

const MODES: [(&str, Mode); 12] = [
    ("off", Mode::Off),
    ("403", Mode::Refuse("403")),
    ("409", Mode::Refuse("409")),
    ("500", Mode::Refuse("500")),
    ("503", Mode::Refuse("503")),
    ("expired", Mode::Refuse("expired")),
    ("kms", Mode::Refuse("kms")),
    ("200-error", Mode::Refuse("200-error")),
    ("delay", Mode::Delay),
    ("hang-before-apply", Mode::HangBeforeApply),
    ("hang-after-apply", Mode::HangAfterApply),
    ("ignore-condition", Mode::IgnoreCondition),
];

const OPERATIONS: [&str; 6] = ["put", "get", "head", "list", "delete", "all"];

/// The fault that is set, and what was counted since the server started.
struct Faults {
    mode: Mode,
    operation: String,
    prefix: String,
    left: Option<u64>,
    delay: Duration,
    fired: u64,
    waiting: u64,
    requests: BTreeMap<&'static str, u64>,
    puts_refused: u64,
}

impl Faults {
    fn off() -> Self {
        Faults {
            mode: Mode::Off,
            operation: "all".to_owned(),
            prefix: String::new(),
            left: None,
            delay: Duration::from_millis(1000),
            fired: 0,
            waiting: 0,
            requests: BTreeMap::new(),
            puts_refused: 0,
        }
    }

    /// Takes over what the query of a `POST /_fault` says. On an error nothing has changed.
    fn set(&mut self, query: &str) -> anyhow::Result<()> {
        let mut next = Faults::off();
        let mut operation = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').with_context(|| format!("no value in {pair:?}"))?;
            let value = percent_decoded(value)?;
            match name {
                "mode" => {
                    let known = MODES.iter().find(|(name, _)| *name == value);
                    next.mode = known.with_context(|| format!("no mode {value:?}"))?.1;
                }
                "op" if OPERATIONS.contains(&value.as_str()) => operation = Some(value),
                "prefix" => next.prefix = value,
                "count" => next.left = Some(value.parse()?),
                "delay_ms" => next.delay = Duration::from_millis(value.parse()?),
                _ => bail!("no such setting: {pair:?}"),
            }
        }
        let only_puts = match next.mode {
            Mode::Off | Mode::Delay => false,
            Mode::Refuse(how) => matches!(how, "409" | "200-error"),
            Mode::HangBeforeApply | Mode::HangAfterApply | Mode::IgnoreCondition => true,
        };
        next.operation = operation.unwrap_or_else(|| if only_puts { "put" } else { "all" }.to_owned());
        next.waiting = self.waiting;
        next.requests = std::mem::take(&mut self.requests);
        next.puts_refused = self.puts_refused;
        *self = next;
        Ok(())
    }

    /// Counts a request and says what shall happen to it.
    fn meet(&mut self, operation: &'static str, key: &str) -> Mode {
        *self.requests.entry(operation).or_default() += 1;
        let matches =
            (self.operation == "all" || self.operation == operation) && key.starts_with(&self.prefix);
        if self.mode == Mode::Off || !matches || self.left == Some(0) {
            return Mode::Off;
        }
        self.left = self.left.map(|left| left - 1);
        self.fired += 1;
        self.mode
    }

    fn as_json(&self) -> String {
        let mode = MODES.iter().find(|(_, mode)| *mode == self.mode).map_or("off", |(name, _)| name);
        json!({
            "mode": mode, "op": self.operation, "prefix": self.prefix, "left": self.left, "fired": self.fired,
            "waiting": self.waiting, "requests": self.requests, "puts_refused": self.puts_refused,
        })
        .to_string()
    }
}

fn refusal(how: &'static str) -> S3Error {
    let (code, status) = match how {
        "403" => (S3ErrorCode::AccessDenied, StatusCode::FORBIDDEN),
        "409" => (S3ErrorCode::ConditionalRequestConflict, StatusCode::CONFLICT),
        "500" => (S3ErrorCode::InternalError, StatusCode::INTERNAL_SERVER_ERROR),
        "expired" => (S3ErrorCode::ExpiredToken, StatusCode::BAD_REQUEST),
        "kms" => (S3ErrorCode::Custom("KMS.DisabledException".into()), StatusCode::BAD_REQUEST),
        "200-error" => (S3ErrorCode::InternalError, StatusCode::OK),
        _ => (S3ErrorCode::SlowDown, StatusCode::SERVICE_UNAVAILABLE),
    };
    let mut error = S3Error::with_message(code, "a fault was asked for");
    error.set_status_code(status);
    error
}

fn percent_decoded(text: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let digits = tail.get(..2).with_context(|| format!("bad escape in {text:?}"))?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits)?, 16)?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
        }
    }
    Ok(String::from_utf8(bytes)?)
}

/// A folder as an object store. Clones are the same store.
#[derive(Clone)]
struct Store {
    files: Arc<FileSystem>,
    root: PathBuf,
    /// Written by whoever changes objects, read by whoever looks at them.
    gate: Arc<RwLock<()>>,
    faults: Arc<Mutex<Faults>>,
    /// Moves on whenever the fault is set, and so lets go of everything that hangs.
    changes: watch::Sender<u64>,
}

impl Store {
    fn new(root: PathBuf) -> anyhow::Result<Self> {
        let files =
            FileSystem::new(&root).map_err(|error| anyhow::anyhow!("{}: {error:?}", root.display()))?;
        Ok(Store {
            files: Arc::new(files),
            root,
            gate: Arc::default(),
            faults: Arc::new(Mutex::new(Faults::off())),
            changes: watch::Sender::new(0),
        })
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What comes before every operation. The mode that is returned matters to a PUT only.
    async fn admit(&self, operation: &'static str, key: &str) -> S3Result<Mode> {
        let (mode, delay) = {
            let mut faults = self.faults();
            (faults.meet(operation, key), faults.delay)
        };
        match mode {
            Mode::Refuse(how) => Err(refusal(how)),
            Mode::Delay => {
                tokio::time::sleep(delay).await;
                Ok(mode)
            }
            Mode::HangBeforeApply => {
                self.hang().await;
                Ok(mode)
            }
            // A PUT hangs after it was applied; for what applies nothing there is no difference.
            Mode::HangAfterApply if operation != "put" => {
                self.hang().await;
                Ok(mode)
            }
            Mode::Off | Mode::HangAfterApply | Mode::IgnoreCondition => Ok(mode),
        }
    }

    /// Until the fault is next set.
    async fn hang(&self) {
        let mut changes = self.changes.subscribe();
        self.faults().waiting += 1;
        let _ = changes.changed().await;
        self.faults().waiting -= 1;
    }

    async fn put(&self, mut request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let mode = self.admit("put", &request.input.key).await?;
        if mode == Mode::IgnoreCondition {
            request.input.if_none_match = None;
            request.input.if_match = None;
        }
        let answer = {
            let _alone = self.gate.write().await;
            let path = self.root.join(&request.input.bucket).join(&request.input.key);
            let was_there = path.exists();
            let answer = self.files.put_object(request).await;
            if answer.is_err() {
                self.faults().puts_refused += 1;
                // s3s-fs compares checksums after it has written the file.
                if !was_there && path.exists() {
                    let _ = std::fs::remove_file(path);
                }
            }
            answer
        };
        if mode == Mode::HangAfterApply {
            self.hang().await;
        }
        answer
    }
}

#[async_trait]
impl S3 for Store {
    async fn put_object(
        &self,
        mut request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let mut bytes = Vec::new();
        if let Some(mut body) = request.input.body.take() {
            while let Some(chunk) = body.next().await {
                bytes.extend_from_slice(&chunk.map_err(|error| s3_error!(IncompleteBody, "{error}"))?);
            }
        }
        request.input.body = Some(StreamingBlob::from(s3s::Body::from(bytes)));
        // A task of its own: the server drops this future when the client hangs up.
        let store = self.clone();
        let applied = tokio::spawn(async move { store.put(request).await });
        applied.await.map_err(|error| s3_error!(InternalError, "{error}"))?
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.admit("get", &request.input.key).await?;
        let _shared = self.gate.read().await;
        self.files.get_object(request).await
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        self.admit("head", &request.input.key).await?;
        let _shared = self.gate.read().await;
        self.files.head_object(request).await
    }

    async fn list_objects_v2(
        &self,
        mut request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        // The library answers "url" and encodes nothing: a client would then read `+` as a space.
        request.input.encoding_type = None;
        self.admit("list", request.input.prefix.as_deref().unwrap_or_default()).await?;
        let _shared = self.gate.read().await;
        self.files.list_objects_v2(request).await
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.admit("delete", &request.input.key).await?;
        let _alone = self.gate.write().await;
        self.files.delete_object(request).await
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        self.admit("delete", "").await?;
        let _alone = self.gate.write().await;
        self.files.delete_objects(request).await
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.admit("head", "").await?;
        self.files.head_bucket(request).await
    }

    async fn create_bucket(
        &self,
        request: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        self.files.create_bucket(request).await
    }

    async fn list_buckets(
        &self,
        request: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        self.admit("list", "").await?;
        self.files.list_buckets(request).await
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.files.get_bucket_location(request).await
    }
}

/// `_fault` cannot be a bucket: their names have no underscores.
fn router(store: Store, service: S3Service) -> Router {
    let (shown, set, asked) = (store.clone(), store.clone(), store);
    let fault = get(move || async move { shown.faults().as_json() }).post(move |uri: Uri| async move {
        let result = set.faults().set(uri.query().unwrap_or_default());
        match result {
            Ok(()) => {
                set.changes.send_modify(|change| *change += 1);
                (StatusCode::OK, set.faults().as_json())
            }
            Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}\n")),
        }
    });
    Router::new().route("/_fault", fault).fallback(move |request: Request| {
        let service = service.clone();
        if is_multipart(request.uri()) {
            *asked.faults().requests.entry("multipart").or_default() += 1;
        }
        async move { answer(service, request).await }
    })
}

fn is_multipart(uri: &Uri) -> bool {
    let mut names = uri.query().unwrap_or_default().split('&').map(|pair| pair.split('=').next());
    names.any(|name| matches!(name, Some("uploads" | "uploadId" | "partNumber")))
}

async fn answer(service: S3Service, request: Request) -> Response {
    match service.call(request.map(s3s::Body::http_body_unsync)).await {
        Ok(response) => response.map(axum::body::Body::new),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}")).into_response(),
    }
}

#[derive(clap::Parser)]
struct Arguments {
    #[arg(long)]
    port: u16,
    #[arg(long)]
    root: PathBuf,
    #[arg(long)]
    bucket: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = <Arguments as clap::Parser>::parse();
    let key = |name| std::env::var(name).with_context(|| format!("{name} is not set"));
    std::fs::create_dir_all(arguments.root.join(&arguments.bucket))?;
    let store = Store::new(arguments.root)?;
    let mut builder = S3ServiceBuilder::new(store.clone());
    builder.set_auth(SimpleAuth::from_single(key("S3_ACCESS_KEY")?, key("S3_SECRET_KEY")?));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", arguments.port)).await?;
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let gate = store.gate.clone();
    let server = axum::serve(listener, router(store, builder.build()));
    tokio::select! {
        served = server => served?,
        // Requests that hang shall not hold up the end, but a PUT that is being written is finished.
        _ = terminated.recv() => drop(gate.write().await),
    }
    Ok(())
}
