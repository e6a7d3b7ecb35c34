//! The one source of tokens (SASL/OAUTHBEARER) for every Kafka client of the process.
//!
//! 1. Clients only read the token that is there; a thread of its own gets a new one at four fifths of the old
//!    one's life, and tries every 10 s when that fails.
//! 2. While no new one can be had, the old one is handed out for as long as it is really valid.
//! 3. A client that asks before there is any waits, for a bounded time, on its own thread.
//! 4. A token is shown nowhere.

use std::error::Error;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka::client::OAuthToken;
use tokio::sync::watch;

use super::msk_iam::MskIam;
use crate::config::{Config, KafkaAuth, Secret};
use crate::outside::now_ms;
use crate::telemetry::metrics;

/// Distance of attempts while there is no new token. Longer: recovery is noticed later. Shorter: a service
/// that is down is asked more often.
const RETRY: Duration = Duration::from_secs(10);
/// How long one attempt may take. Credentials from an instance's profile were seen to take more than 10 s.
const MINT_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the gauges are set. Longer: whoever reads them forgets them (30 s). Shorter: wakes up for nothing.
const REPORT: Duration = Duration::from_secs(10);
/// How long a client waits for the very first token. It holds up that client's thread and nothing else.
const FIRST_TOKEN_TIMEOUT: Duration = Duration::from_secs(30);
/// A file that another program keeps fresh is read at least this often.
const FILE_FRESH_MAX_MS: i64 = 60_000;

/// A token and how long it lasts.
#[derive(Debug, Clone)]
pub struct Token {
    pub text: Secret,
    pub principal: String,
    /// When clients should ask for a newer one.
    pub fresh_until_ms: i64,
    /// When the broker takes it no longer.
    pub expires_at_ms: i64,
}

impl Token {
    /// As a client gets it. Past its freshness it is still good until it expires: better than none.
    fn for_client(&self, now_ms: i64) -> Result<OAuthToken, Box<dyn Error>> {
        if now_ms >= self.expires_at_ms {
            return Err("the last token has expired, and no new one could be had".into());
        }
        let lifetime_ms = if now_ms < self.fresh_until_ms { self.fresh_until_ms } else { self.expires_at_ms };
        let principal_name = self.principal.clone();
        Ok(OAuthToken { token: self.text.expose().to_owned(), principal_name, lifetime_ms })
    }
}

pub type MintFuture<'a> = Pin<Box<dyn Future<Output = Result<Token, String>> + Send + 'a>>;

/// Where tokens come from.
pub trait Mint: Send + Sync + 'static {
    fn mint(&self) -> MintFuture<'_>;
}

/// Time, so that a test can make ten minutes pass.
trait Clock {
    fn now_ms(&self) -> i64;
    fn sleep(&self, span: Duration) -> impl Future<Output = ()>;
}

struct Wall;

impl Clock for Wall {
    fn now_ms(&self) -> i64 {
        now_ms()
    }
    fn sleep(&self, span: Duration) -> impl Future<Output = ()> {
        tokio::time::sleep(span)
    }
}

/// A JWT in a file that another program keeps fresh (a sidecar, a projected service account token).
pub struct TokenFile(PathBuf);

impl TokenFile {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        TokenFile(path.into())
    }
}

impl Mint for TokenFile {
    fn mint(&self) -> MintFuture<'_> {
        Box::pin(async { read_token_file(&self.0, now_ms()) })
    }
}

fn read_token_file(path: &Path, now_ms: i64) -> Result<Token, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    let text = text.trim();
    let claims = text.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims = claims.and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok());
    let claims = claims.ok_or_else(|| format!("{shown} holds no JWT"))?;
    let expires_at_s = claims["exp"].as_f64().filter(|seconds| *seconds > 0.0 && *seconds < 1e11);
    let Some(expires_at_s) = expires_at_s else {
        return Err(format!("the JWT in {shown} does not say when it expires (`exp`)"));
    };
    let expires_at_ms = (expires_at_s * 1000.0) as i64;
    if expires_at_ms <= now_ms {
        return Err(format!("the JWT in {shown} has expired: what keeps the file fresh does not"));
    }
    Ok(Token {
        text: Secret::new(text),
        principal: claims["sub"].as_str().unwrap_or_default().to_owned(),
        fresh_until_ms: expires_at_ms.min(now_ms + FILE_FRESH_MAX_MS),
        expires_at_ms,
    })
}

type Latest = Option<Arc<Token>>;

static SOURCE: OnceLock<watch::Receiver<Latest>> = OnceLock::new();

/// Starts the source if the configuration wants one. One process has one: later calls change nothing.
pub fn start(config: &Config) {
    let kafka = &config.kafka;
    let region = kafka.region.clone().or_else(|| config.s3.region.clone()).unwrap_or_default();
    let file = kafka.token_file.clone().unwrap_or_default();
    match kafka.auth {
        KafkaAuth::None | KafkaAuth::Scram => {}
        KafkaAuth::MskIam => start_once(move || async move { MskIam::from_environment(&region).await }),
        KafkaAuth::TokenFile => start_once(|| async { Ok(TokenFile::new(file)) }),
    }
}

fn start_once<M: Mint, F: Future<Output = Result<M, String>>>(make: impl FnOnce() -> F + Send + 'static) {
    SOURCE.get_or_init(|| {
        let (tell, told) = watch::channel(None);
        // A runtime of its own: a client that waits for a token must not wait for a thread that it holds up.
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                match make().await {
                    Ok(mint) => keep_fresh(&mint, &Wall, tell).await,
                    Err(error) => tracing::error!(error, "there will be no tokens for Kafka"),
                }
            });
        };
        if let Err(error) = std::thread::Builder::new().name("kafka-tokens".to_owned()).spawn(run) {
            tracing::error!(%error, "there will be no tokens for Kafka");
        }
        told
    });
}

/// Gets token after token until nobody wants one any more.
async fn keep_fresh(mint: &impl Mint, clock: &impl Clock, tell: watch::Sender<Latest>) {
    let mut failing_since_ms = None;
    loop {
        let begun_ms = clock.now_ms();
        let minted = tokio::time::timeout(MINT_TIMEOUT, mint.mint()).await;
        let pause = match minted.unwrap_or_else(|_| Err(format!("no answer within {MINT_TIMEOUT:?}"))) {
            Ok(token) => {
                let fresh_ms = (token.fresh_until_ms - clock.now_ms()).max(0).unsigned_abs();
                tell.send_replace(Some(Arc::new(token)));
                failing_since_ms = None;
                tracing::debug!(fresh_ms, "a new token for Kafka");
                Duration::from_millis(fresh_ms / 5 * 4).max(Duration::from_secs(1))
            }
            Err(error) => {
                let has_old = tell.borrow().is_some();
                failing_since_ms.get_or_insert(begun_ms);
                metrics::retried("tokens");
                tracing::warn!(error, has_old, "no new token for Kafka: trying again in 10 s");
                RETRY
            }
        };
        if !wait_and_report(pause, clock, &tell, failing_since_ms).await {
            return;
        }
    }
}

/// Waits, and says every while how the tokens are. False: nobody wants one any more.
async fn wait_and_report(
    mut pause: Duration,
    clock: &impl Clock,
    tell: &watch::Sender<Latest>,
    failing_since_ms: Option<i64>,
) -> bool {
    while !pause.is_zero() {
        let now_ms = clock.now_ms();
        let left_ms = tell.borrow().as_ref().map_or(0, |token| token.expires_at_ms - now_ms);
        metrics::tokens_left_seconds(left_ms.max(0) as f64 / 1e3);
        let failing_ms = failing_since_ms.map_or(0, |since_ms| now_ms - since_ms);
        metrics::tokens_failing_seconds(failing_ms.max(0) as f64 / 1e3);
        let part = pause.min(REPORT);
        tokio::select! {
            () = clock.sleep(part) => {}
            () = tell.closed() => return false,
        }
        pause -= part;
    }
    true
}

/// What a client's callback answers. Reads what is there; waits only for the first.
pub fn current() -> Result<OAuthToken, Box<dyn Error>> {
    let Some(source) = SOURCE.get() else {
        return Err("kafka.auth is neither msk_iam nor token_file: there are no tokens".into());
    };
    wait_for(source, FIRST_TOKEN_TIMEOUT)
}

fn wait_for(source: &watch::Receiver<Latest>, timeout: Duration) -> Result<OAuthToken, Box<dyn Error>> {
    let until = Instant::now() + timeout;
    loop {
        if let Some(token) = source.borrow().clone() {
            return token.for_client(now_ms());
        }
        if Instant::now() >= until {
            return Err("there is no token yet: the log says why".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
#[path = "tokens_tests.rs"]
mod tests;
