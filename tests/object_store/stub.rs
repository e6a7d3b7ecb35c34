//! A store that answers what it was told to, request by request.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// One answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    /// Nothing is ever answered.
    pub silent: bool,
    /// The headers come, the body never ends.
    pub body_stalls: bool,
    /// The connection ends within the headers' promise.
    pub body_breaks: bool,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Answer { status, ..Answer::default() }
    }

    /// As S3 says it, with what must not get into a log.
    pub fn error(status: u16, code: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code>\
             <Message>in words</Message><StringToSign>STRING-TO-SIGN</StringToSign></Error>"
        );
        Answer { body, ..Answer::status(status) }
    }

    pub fn silence() -> Self {
        Answer { silent: true, ..Answer::default() }
    }

    pub fn cut_off() -> Self {
        Answer { body_breaks: true, ..Answer::status(500) }
    }

    async fn give(self) -> Response {
        if self.silent {
            std::future::pending::<()>().await;
        }
        let status = StatusCode::from_u16(self.status).unwrap();
        let begun = futures::stream::once(async { Ok(Bytes::from_static(b"<?xml")) });
        let body = if self.body_stalls {
            Body::from_stream(begun.chain(futures::stream::pending::<std::io::Result<Bytes>>()))
        } else if self.body_breaks {
            let broken = futures::stream::once(async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(std::io::Error::other("the connection is cut"))
            });
            Body::from_stream(begun.chain(broken))
        } else {
            Body::from(self.body)
        };
        (status, body).into_response()
    }
}

/// What a request looked like.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    headers: HeaderMap,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).to_str().unwrap()
    }
}

#[derive(Default)]
struct Script {
    answers: VecDeque<Answer>,
    seen: Vec<Seen>,
}

pub struct Stub {
    pub endpoint: String,
    script: Arc<Mutex<Script>>,
    server: JoinHandle<()>,
}

impl Stub {
    pub async fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        let answers = answers.into_iter().collect();
        let script = Arc::new(Mutex::new(Script { answers, seen: Vec::new() }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&script));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Stub { endpoint, script, server }
    }

    pub fn requests(&self) -> Vec<Seen> {
        self.script.lock().unwrap().seen.clone()
    }

    /// Stops listening; returns where it was.
    pub async fn stop(mut self) -> String {
        self.server.abort();
        let _ = (&mut self.server).await;
        std::mem::take(&mut self.endpoint)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(State(script): State<Arc<Mutex<Script>>>, request: Request) -> Response {
    let seen = Seen {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        headers: request.headers().clone(),
    };
    axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
    let next = {
        let mut script = script.lock().unwrap();
        script.seen.push(seen);
        script.answers.pop_front()
    };
    next.unwrap_or_else(|| Answer::error(418, "NothingWasToldToBeAnswered")).give().await
}
