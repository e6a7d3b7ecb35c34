//! Probes: `/health` for people, `/health/live` and `/health/ready` for Kubernetes; and `/metrics` for Prometheus.
//!
//! *Live* means that the pipeline moves, not that Postgres or S3 can be reached: a restart mends neither.
//! *Ready* means that this worker takes part: it has joined the group and reached the ledger, and has not
//! been asked to stop. No answer holds a user's id or a secret.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use super::recorder::Page;

/// One partition that this worker has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionStatus {
    pub partition: i32,
    /// -1 where it is not known.
    pub persist_frontier: i64,
    pub export_frontier: i64,
    /// In words, for people.
    pub state: String,
}

/// What the pipeline tells and the probes ask. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started_at: Instant,
    stall: Duration,
    /// Milliseconds after the start.
    ticked_at_ms: AtomicU64,
    ready: AtomicBool,
    partitions: watch::Sender<Vec<PartitionStatus>>,
}

impl Health {
    /// A pipeline that has not ticked for `stall` is reported dead.
    pub fn new(stall: Duration) -> Self {
        Self(Arc::new(Inner {
            started_at: Instant::now(),
            stall,
            ticked_at_ms: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            partitions: watch::Sender::new(Vec::new()),
        }))
    }

    /// The pipeline came round once more. Starting counts as a tick.
    pub fn tick(&self) {
        self.0.ticked_at_ms.store(self.uptime_ms(), Ordering::Relaxed);
    }

    pub fn set_ready(&self, ready: bool) {
        self.0.ready.store(ready, Ordering::Relaxed);
    }

    /// Replaces what `/health` says about partitions.
    pub fn set_partitions(&self, partitions: Vec<PartitionStatus>) {
        self.0.partitions.send_replace(partitions);
    }

    pub fn ready(&self) -> bool {
        self.0.ready.load(Ordering::Relaxed)
    }

    pub fn live(&self) -> bool {
        u128::from(self.ticked_ms_ago()) < self.0.stall.as_millis()
    }

    fn uptime_ms(&self) -> u64 {
        u64::try_from(self.0.started_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn ticked_ms_ago(&self) -> u64 {
        self.uptime_ms().saturating_sub(self.0.ticked_at_ms.load(Ordering::Relaxed))
    }

    fn report(&self) -> Report {
        Report {
            version: env!("CARGO_PKG_VERSION"),
            live: self.live(),
            ready: self.ready(),
            uptime_ms: self.uptime_ms(),
            ticked_ms_ago: self.ticked_ms_ago(),
            partitions: self.0.partitions.borrow().clone(),
        }
    }
}

/// The body of `/health`.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    live: bool,
    ready: bool,
    uptime_ms: u64,
    ticked_ms_ago: u64,
    partitions: Vec<PartitionStatus>,
}

/// Listens, and answers for as long as the runtime lives. Gives the address back, with the port where none
/// was asked for.
/// `page` is what `/metrics` answers; none: nothing is found there.
pub async fn serve(addr: &SocketAddr, health: Health, page: Option<Page>) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(addr).await.with_context(|| format!("listen on health.addr {addr}"))?;
    let bound = listener.local_addr().context("read the address of health.addr")?;
    let routes = Router::new()
        .route("/health", get(report))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .with_state(health);
    let routes = match page {
        // Some hundred lines: too little to be worth a thread that may block.
        Some(page) => routes.route("/metrics", get(async move || metrics(&page))),
        None => routes,
    };
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "the health port is closed");
        }
    });
    Ok(bound)
}

async fn report(State(health): State<Health>) -> Response {
    match serde_json::to_string(&health.report()) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn metrics(page: &Page) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page()).into_response()
}

async fn live(State(health): State<Health>) -> Response {
    if health.live() {
        "live\n".into_response()
    } else {
        let problem = format!("the pipeline has not moved for {} ms\n", health.ticked_ms_ago());
        (StatusCode::SERVICE_UNAVAILABLE, problem).into_response()
    }
}

async fn ready(State(health): State<Health>) -> Response {
    if health.ready() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(addr: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn start(stall: Duration) -> (SocketAddr, Health) {
        let health = Health::new(stall);
        let addr = serve(&"127.0.0.1:0".parse().unwrap(), health.clone(), None).await.unwrap();
        (addr, health)
    }

    #[tokio::test]
    async fn live_while_the_pipeline_moves() {
        let (addr, health) = start(Duration::from_millis(300)).await;
        assert_eq!(get(addr, "/health/live").await.0, 200, "starting counts as a tick");
        tokio::time::sleep(Duration::from_millis(400)).await;
        let (code, body) = get(addr, "/health/live").await;
        assert_eq!(code, 503);
        assert!(body.starts_with("the pipeline has not moved for "));
        health.tick();
        assert_eq!(get(addr, "/health/live").await.0, 200);
    }

    #[tokio::test]
    async fn ready_between_joining_and_stopping() {
        let (addr, health) = start(Duration::from_secs(60)).await;
        assert_eq!(get(addr, "/health/ready").await.0, 503);
        health.set_ready(true);
        assert_eq!(get(addr, "/health/ready").await.0, 200);
        health.set_ready(false);
        assert_eq!(get(addr, "/health/ready").await.0, 503);
    }

    #[tokio::test]
    async fn health_shows_the_newest_partitions() {
        let (addr, health) = start(Duration::from_secs(60)).await;
        let status =
            PartitionStatus { partition: 3, persist_frontier: 70, export_frontier: 40, state: "live".into() };
        health.set_partitions(vec![status]);
        let (code, body) = get(addr, "/health").await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(code, 200);
        assert_eq!(
            body["partitions"],
            serde_json::json!([{"partition": 3, "persist_frontier": 70, "export_frontier": 40, "state": "live"}])
        );
        assert_eq!((&body["live"], &body["ready"]), (&true.into(), &false.into()));
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let (addr, health) = start(Duration::from_secs(60)).await;
        let error = serve(&addr, health, None).await.unwrap_err();
        assert!(error.to_string().contains(&addr.to_string()));
    }
}
