use std::sync::Mutex;

use super::*;

/// A clock that stands still until it is set.
#[derive(Clone)]
struct Fake(watch::Sender<i64>);

impl Clock for Fake {
    fn now_ms(&self) -> i64 {
        *self.0.borrow()
    }
    async fn sleep(&self, span: Duration) {
        let until_ms = self.now_ms() + span.as_millis() as i64;
        let _ = self.0.subscribe().wait_for(|now_ms| *now_ms >= until_ms).await;
    }
}

/// Gives tokens that are fresh for 540 s and expire after 885; fails while it is down.
struct Service {
    clock: Fake,
    asked_s: Arc<Mutex<Vec<i64>>>,
    down_s: std::ops::Range<i64>,
}

impl Mint for Service {
    fn mint(&self) -> MintFuture<'_> {
        Box::pin(async {
            let now_ms = self.clock.now_ms();
            let now_s = now_ms / 1000;
            self.asked_s.lock().unwrap().push(now_s);
            if self.down_s.contains(&now_s) {
                return Err("down".to_owned());
            }
            Ok(Token {
                text: Secret::new(format!("token of {now_s}")),
                principal: String::new(),
                fresh_until_ms: now_ms + 540_000,
                expires_at_ms: now_ms + 885_000,
            })
        })
    }
}

type Given = Result<(String, i64), String>;

/// Runs a source over an outage; returns when it asked, and what a client was given at each of `at_s`.
async fn over(down_s: std::ops::Range<i64>, at_s: &[i64]) -> (Vec<i64>, Vec<Given>) {
    let clock = Fake(watch::Sender::new(0));
    let asked_s = Arc::new(Mutex::new(Vec::new()));
    let service = Service { clock: clock.clone(), asked_s: Arc::clone(&asked_s), down_s };
    let (tell, told) = watch::channel(None);
    let its_clock = clock.clone();
    let source = tokio::spawn(async move { keep_fresh(&service, &its_clock, tell).await });
    let mut given = Vec::new();
    for now_s in 0..=at_s.last().copied().unwrap_or(0) {
        clock.0.send_replace(now_s * 1000);
        // On this one thread the source runs as soon as it is let.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        if at_s.contains(&now_s) {
            let latest: Latest = told.borrow().clone();
            given.push(latest.ok_or_else(|| "none".to_owned()).and_then(|token| {
                let token = token.for_client(now_s * 1000).map_err(|error| error.to_string())?;
                Ok((token.token, token.lifetime_ms / 1000))
            }));
        }
    }
    drop(told);
    source.await.unwrap();
    let asked = asked_s.lock().unwrap().clone();
    (asked, given)
}

#[tokio::test]
async fn a_token_is_renewed_at_four_fifths_of_its_life() {
    let (asked, given) = over(0..0, &[0, 431, 432, 1000]).await;
    assert_eq!(asked, [0, 432, 864]);
    let token = |minted: i64| Ok((format!("token of {minted}"), minted + 540));
    assert_eq!(given, [token(0), token(0), token(432), token(864)]);
}

#[tokio::test]
async fn an_outage_of_five_minutes_is_survived_with_the_old_token() {
    let (asked, given) = over(400..732, &[432, 539, 600, 731, 742]).await;
    assert_eq!(asked[..4], [0, 432, 442, 452]);
    let old = |lifetime: i64| Ok(("token of 0".to_owned(), lifetime));
    // Past its freshness it is handed out with the time when it really ends.
    assert_eq!(given[..4], [old(540), old(540), old(885), old(885)]);
    assert_eq!(given[4], Ok(("token of 732".to_owned(), 732 + 540)));
}

#[tokio::test]
async fn a_token_that_has_expired_is_not_handed_out() {
    let (_, given) = over(400..2000, &[884, 885]).await;
    assert_eq!(given[0], Ok(("token of 0".to_owned(), 885)));
    assert!(given[1].as_ref().unwrap_err().contains("has expired"), "{given:?}");
}

#[tokio::test]
async fn before_the_first_token_it_is_tried_every_ten_seconds() {
    let (asked, given) = over(0..25, &[1, 30]).await;
    assert_eq!(asked, [0, 10, 20, 30]);
    assert_eq!(given, [Err("none".to_owned()), Ok(("token of 30".to_owned(), 570))]);
}

#[test]
fn a_client_waits_for_the_first_token_but_not_for_ever() {
    let (tell, told) = watch::channel(None);
    let started = Instant::now();
    assert!(wait_for(&told, Duration::from_millis(50)).is_err());
    assert!(started.elapsed() >= Duration::from_millis(50));
    let now_ms = now_ms();
    let waits = std::thread::spawn(move || wait_for(&told, FIRST_TOKEN_TIMEOUT).unwrap().token);
    tell.send_replace(Some(Arc::new(Token {
        text: Secret::new("late"),
        principal: String::new(),
        fresh_until_ms: now_ms + 60_000,
        expires_at_ms: now_ms + 60_000,
    })));
    assert_eq!(waits.join().unwrap(), "late");
}

#[test]
fn a_token_file_says_how_long_it_lasts() {
    let jwt = |claims: &str| format!("e30.{}.c2lnbmF0dXJl\n", URL_SAFE_NO_PAD.encode(claims));
    let path = std::env::temp_dir().join(format!("feed-worker-token-{}", std::process::id()));
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        read_token_file(&path, 1_000_000)
    };
    let token = read(&jwt(r#"{"sub":"worker","exp":1100}"#)).unwrap();
    assert_eq!(token.principal, "worker");
    // Read again within a minute, even if it lasts for longer.
    assert_eq!((token.fresh_until_ms, token.expires_at_ms), (1_060_000, 1_100_000));
    assert!(!token.text.expose().ends_with('\n'));
    for (text, part) in [
        (jwt(r#"{"sub":"worker","exp":999}"#), "has expired"),
        (jwt(r#"{"sub":"worker"}"#), "does not say when"),
        ("no token at all".to_owned(), "holds no JWT"),
        (String::new(), "holds no JWT"),
    ] {
        let error = read(&text).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(read_token_file(&path, 0).unwrap_err().contains("cannot be read"));
}
