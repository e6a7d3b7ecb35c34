//! The S3 client: what each answer of a store comes to, and what it does against a real server.

mod object_store {
    pub mod server;
    pub mod stub;
}

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aws_sdk_s3::config::{BehaviorVersion, Credentials};
use bytes::Bytes;
use feed_worker::export::object::{
    ListedObject, ObjectInfo, ObjectStore, ProbeError, PutOutcome, S3, S3Settings, StoreError,
    StoreErrorKind, prove_conditional_writes,
};
use object_store::server::Server;
use object_store::stub::{Answer, Stub};

const ACCESS_KEY: &str = "AKIDTESTONLY";
const SECRET_KEY: &str = "a-secret-that-no-message-may-hold";
const BUCKET: &str = "interactions";

fn settings(endpoint: &str) -> S3Settings {
    S3Settings {
        bucket: BUCKET.to_owned(),
        region: None,
        endpoint: Some(endpoint.to_owned()),
        force_path_style: true,
        timeout_ms: 1000,
        connect_timeout_ms: 500,
    }
}

async fn connect(endpoint: &str) -> S3 {
    let credentials = Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test");
    let sdk = aws_config::defaults(BehaviorVersion::latest()).credentials_provider(credentials);
    S3::connect_with(&settings(endpoint), sdk).await.unwrap()
}

async fn put(store: &S3, key: &str, body: &'static str) -> Result<PutOutcome, StoreError> {
    let metadata = [("row-hash".to_owned(), "00ff".to_owned()), ("rows".to_owned(), "7".to_owned())];
    store.put_if_absent(key, Bytes::from_static(body.as_bytes()), "text/plain", &metadata).await
}

/// What one PUT comes to when the store answers so.
async fn put_answered(answer: Answer) -> Result<PutOutcome, StoreError> {
    let stub = Stub::start([answer]).await;
    let outcome = put(&connect(&stub.endpoint).await, "a/b+c", "body").await;
    assert_eq!(stub.requests().len(), 1, "no operation tries again by itself");
    outcome
}

#[tokio::test]
async fn a_put_carries_the_condition_and_the_metadata() {
    let stub = Stub::start([Answer::status(200)]).await;
    let store = connect(&stub.endpoint).await;
    assert_eq!(put(&store, "exports/2026-02-16/t+3+1.parquet", "body").await, Ok(PutOutcome::Created));
    let requests = stub.requests();
    let request = &requests[0];
    assert_eq!(request.method, "PUT");
    assert_eq!(request.path, format!("/{BUCKET}/exports/2026-02-16/t%2B3%2B1.parquet"));
    assert_eq!(request.header("if-none-match"), "*");
    assert_eq!(request.header("content-type"), "text/plain");
    assert_eq!(request.header("x-amz-meta-row-hash"), "00ff");
    assert_eq!(request.header("x-amz-meta-rows"), "7");
    assert_eq!(request.header("content-length"), "4", "the body is sent as it is");
}

#[tokio::test]
async fn each_answer_to_a_put_has_its_meaning() {
    assert_eq!(put_answered(Answer::status(200)).await, Ok(PutOutcome::Created));
    let exists = Answer::error(412, "PreconditionFailed");
    assert_eq!(put_answered(exists).await, Ok(PutOutcome::Exists));
    assert_eq!(put_answered(Answer::status(412)).await, Ok(PutOutcome::Exists));
    for (status, code, kind) in [
        (409, "ConditionalRequestConflict", StoreErrorKind::Conflict),
        (403, "AccessDenied", StoreErrorKind::Denied),
        (403, "InvalidAccessKeyId", StoreErrorKind::Denied),
        (403, "SignatureDoesNotMatch", StoreErrorKind::Denied),
        (400, "ExpiredToken", StoreErrorKind::Denied),
        (400, "RequestTimeout", StoreErrorKind::Transient),
        (429, "SlowDown", StoreErrorKind::Transient),
        (500, "InternalError", StoreErrorKind::Transient),
        (503, "SlowDown", StoreErrorKind::Transient),
        (503, "ServiceUnavailable", StoreErrorKind::Transient),
        (404, "NoSuchBucket", StoreErrorKind::Refused),
        (400, "InvalidArgument", StoreErrorKind::Refused),
        (301, "PermanentRedirect", StoreErrorKind::Refused),
        (501, "NotImplemented", StoreErrorKind::Refused),
    ] {
        let error = put_answered(Answer::error(status, code)).await.unwrap_err();
        assert_eq!(error.kind, kind, "{status} {code}: {error}");
        assert_eq!((error.operation, error.key.as_str()), ("put", "a/b+c"));
        assert!(error.message.contains(code) && error.message.contains(&status.to_string()), "{error}");
        assert!(!error.to_string().contains(SECRET_KEY), "{error}");
        assert!(!error.to_string().contains("STRING-TO-SIGN"), "{error}");
    }
}

#[tokio::test]
async fn answers_that_are_not_s3_are_transient() {
    let page = Answer { status: 502, body: "<html>bad gateway</html>".to_owned(), ..Answer::status(502) };
    for answer in [page, Answer::status(503), Answer::cut_off()] {
        let error = put_answered(answer).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Transient, "{error}");
    }
}

#[tokio::test]
async fn a_store_that_is_silent_or_away_is_transient_and_soon() {
    let started = Instant::now();
    let error = put_answered(Answer::silence()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Transient, "{error}");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());

    let gone = Stub::start([]).await.stop().await;
    let error = put(&connect(&gone).await, "k", "body").await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Transient, "{error}");

    // The headers come, the body does not.
    let stub = Stub::start([Answer { body_stalls: true, ..Answer::status(200) }]).await;
    let started = Instant::now();
    let error = connect(&stub.endpoint).await.get("k").await.unwrap_err();
    assert_eq!((error.kind, error.operation), (StoreErrorKind::Transient, "get"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test]
async fn without_credentials_nothing_is_sent() {
    let stub = Stub::start([]).await;
    let nobody = aws_config::profile::ProfileFileCredentialsProvider::builder()
        .profile_name("a-profile-that-does-not-exist")
        .build();
    let sdk = aws_config::defaults(BehaviorVersion::latest()).credentials_provider(nobody);
    let store = S3::connect_with(&settings(&stub.endpoint), sdk).await.unwrap();
    let error = put(&store, "k", "body").await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
    assert_eq!(stub.requests().len(), 0);
}

#[tokio::test]
async fn what_is_not_there_is_none() {
    let stub = Stub::start([
        Answer::status(404),
        Answer::error(404, "NoSuchKey"),
        Answer::error(404, "NoSuchBucket"),
        Answer::status(403),
    ])
    .await;
    let store = connect(&stub.endpoint).await;
    assert_eq!(store.head("k").await, Ok(None));
    assert_eq!(store.get("k").await, Ok(None));
    assert_eq!(store.get("k").await.unwrap_err().kind, StoreErrorKind::Refused);
    assert_eq!(store.head("k").await.unwrap_err().kind, StoreErrorKind::Denied);
}

fn page(keys: &[&str], next: Option<&str>) -> Answer {
    let contents: String =
        keys.iter().map(|key| format!("<Contents><Key>{key}</Key><Size>12</Size></Contents>")).collect();
    let next_token = next.map(|token| format!("<NextContinuationToken>{token}</NextContinuationToken>"));
    let body = format!(
        "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>{}</IsTruncated>{}{contents}</ListBucketResult>",
        next.is_some(),
        next_token.unwrap_or_default(),
    );
    Answer { body, ..Answer::status(200) }
}

#[tokio::test]
async fn a_list_reads_every_page() {
    let stub =
        Stub::start([page(&["p/a", "p/b+1"], Some("n1")), page(&[], Some("n2")), page(&["p/c"], None)]).await;
    let store = connect(&stub.endpoint).await;
    let keys: Vec<_> = store.list("p/", Some("p/0")).await.unwrap().into_iter().map(|o| o.key).collect();
    assert_eq!(keys, ["p/a", "p/b+1", "p/c"]);
    let requests = stub.requests();
    assert_eq!(requests.len(), 3);
    assert!(requests[0].query.contains("start-after=p%2F0"), "{}", requests[0].query);
    assert!(requests[2].query.contains("continuation-token=n2"), "{}", requests[2].query);
}

#[tokio::test]
async fn a_list_that_breaks_off_is_no_list() {
    let stub = Stub::start([page(&["p/a"], Some("n1")), Answer::error(503, "SlowDown")]).await;
    let error = connect(&stub.endpoint).await.list("p/", None).await.unwrap_err();
    assert_eq!((error.kind, error.key.as_str()), (StoreErrorKind::Transient, "p/"));

    let mut without_link = page(&["p/a"], Some("n1"));
    without_link.body = without_link.body.replace("NextContinuationToken", "Other");
    let stub = Stub::start([without_link]).await;
    let error = connect(&stub.endpoint).await.list("p/", None).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Transient, "{error}");
}

async fn probe(answers: impl IntoIterator<Item = Answer>) -> (Result<(), ProbeError>, usize) {
    let stub = Stub::start(answers).await;
    let proof = prove_conditional_writes(&connect(&stub.endpoint).await, "/exports/").await;
    let requests = stub.requests();
    assert!(requests.iter().all(|r| r.path.ends_with("/exports/_conditional-write-probe")));
    (proof, requests.len())
}

#[tokio::test]
async fn the_probe_tells_safe_from_unsafe_from_away() {
    let (ok, exists) = (|| Answer::status(200), || Answer::error(412, "PreconditionFailed"));
    assert_eq!(probe([ok(), exists()]).await, (Ok(()), 2));
    assert_eq!(probe([exists(), exists()]).await, (Ok(()), 2), "a later start");
    let conflict = || Answer::error(409, "ConditionalRequestConflict");
    assert_eq!(probe([ok(), conflict(), exists()]).await, (Ok(()), 3), "two workers start at once");
    for answers in [vec![ok(), ok()], vec![exists(), ok()], vec![Answer::error(501, "NotImplemented")]] {
        let (proof, _) = probe(answers).await;
        assert!(matches!(proof, Err(ProbeError::Unsafe(_))), "{proof:?}");
    }
    for (answer, kind) in [
        (Answer::error(503, "SlowDown"), StoreErrorKind::Transient),
        (Answer::error(403, "AccessDenied"), StoreErrorKind::Denied),
    ] {
        match probe([ok(), answer]).await.0 {
            Err(ProbeError::Store(error)) => assert_eq!(error.kind, kind),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn against_the_server_of_the_stack() {
    let server = Server::start(ACCESS_KEY, SECRET_KEY, BUCKET).await;
    let store = connect(&server.endpoint).await;
    prove_conditional_writes(&store, "exports").await.unwrap();
    prove_conditional_writes(&store, "exports").await.unwrap();

    let key = "exports/2026-02-16/feed.interactions.v1+3+00000000000000000042.parquet";
    assert_eq!(put(&store, key, "first").await, Ok(PutOutcome::Created));
    assert_eq!(put(&store, key, "second").await, Ok(PutOutcome::Exists));
    assert_eq!(store.get(key).await, Ok(Some(Bytes::from_static(b"first"))));
    let metadata = [("row-hash", "00ff"), ("rows", "7")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let info = ObjectInfo { metadata: BTreeMap::from(metadata), bytes: 5 };
    assert_eq!(store.head(key).await, Ok(Some(info)));
    assert_eq!(store.head("exports/none").await, Ok(None));
    assert_eq!(store.get("exports/none").await, Ok(None));
    let empty = store.put_if_absent("exports/2026-02-16/_SUCCESS", Bytes::new(), "text/plain", &[]);
    assert_eq!(empty.await, Ok(PutOutcome::Created));
    assert_eq!(store.get("exports/2026-02-16/_SUCCESS").await, Ok(Some(Bytes::new())));

    let listed = store.list("exports/2026-02-16/", None).await.unwrap();
    let object = |key: &str, bytes| ListedObject { key: key.to_owned(), bytes };
    assert_eq!(listed, [object("exports/2026-02-16/_SUCCESS", 0), object(key, 5)]);
    let behind = store.list("exports/2026-02-16/", Some("exports/2026-02-16/_SUCCESS")).await.unwrap();
    assert_eq!(behind, [object(key, 5)]);

    let wrong = Credentials::new(ACCESS_KEY, "another-secret", None, None, "test");
    let sdk = aws_config::defaults(BehaviorVersion::latest()).credentials_provider(wrong);
    let stranger = S3::connect_with(&settings(&server.endpoint), sdk).await.unwrap();
    assert_eq!(put(&stranger, "k", "body").await.unwrap_err().kind, StoreErrorKind::Denied);

    server.fault("mode=ignore-condition").await;
    let proof = prove_conditional_writes(&store, "exports").await;
    assert!(matches!(proof, Err(ProbeError::Unsafe(_))), "{proof:?}");
}

#[tokio::test]
async fn of_many_writers_at_once_one_creates() {
    let server = Server::start(ACCESS_KEY, SECRET_KEY, BUCKET).await;
    let store = connect(&server.endpoint).await;
    for round in 0..5 {
        let key = format!("race/{round}");
        let outcomes = futures::future::join_all((0..16).map(|_| put(&store, &key, "body"))).await;
        let created = outcomes.iter().filter(|o| **o == Ok(PutOutcome::Created)).count();
        let exists = outcomes.iter().filter(|o| **o == Ok(PutOutcome::Exists)).count();
        assert_eq!((created, exists), (1, 15), "{outcomes:?}");
    }
}
