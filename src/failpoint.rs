//! Failpoints: named places where a test makes the worker die, fail, wait or stop. See docs/failpoints.md.
//!
//! 1. Without the cargo feature `failpoints` nothing of this is in the program: [`failpoint!`] is empty.
//! 2. A name that is not in [`POINTS`] does not compile, so the list is that of the code; a point that the
//!    crash matrix cannot reach fails it, so the list is no longer than the code.
//! 3. A point acts once, at the hit that was asked for; that it does is in the trace before it happens.

/// A place where the worker can be made to fail.
///
/// `failpoint!("a.point")` stands in an async function and returns, with `?`, the kind of error that the
/// call beside it has. `blocking` is the same for a thread, `pause` for a place where nothing can fail.
#[cfg(feature = "failpoints")]
macro_rules! failpoint {
    (blocking $name:literal) => {
        $crate::failpoint::reach_blocking(const { $crate::failpoint::listed($name) })?
    };
    (pause $name:literal) => {
        $crate::failpoint::pause(const { $crate::failpoint::listed($name) })
    };
    (put $key:expr, $when:literal) => {
        $crate::failpoint::reach($crate::failpoint::of_put($key, $when)).await?
    };
    ($name:literal) => {
        $crate::failpoint::reach(const { $crate::failpoint::listed($name) }).await?
    };
}
#[cfg(not(feature = "failpoints"))]
macro_rules! failpoint {
    ($($anything:tt)*) => {};
}
pub(crate) use failpoint;

#[cfg(feature = "failpoints")]
pub use points::*;

#[cfg(feature = "failpoints")]
mod points {
    use std::fs::File;
    use std::io::Write;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Mutex, OnceLock};
    use std::time::Duration;

    use rdkafka::error::{KafkaError, RDKafkaErrorCode};
    use rustix::process::{Signal, getpid, kill_process};

    use crate::export::object::{StoreError, StoreErrorKind};
    use crate::postgres::ledger::LedgerError;

    /// Every point, and whether a call fails there (else there is nothing that `error` could return).
    pub const POINTS: &[(&str, bool)] = &[
        ("topic.before-enter", true),
        ("topic.after-enter", true),
        ("assign.in-callback", true),
        ("assign.before-epoch", true),
        ("assign.first-row", true),
        ("assign.before-commit", true),
        ("assign.after-commit", true),
        ("assign.before-taking", true),
        ("assign.after-taking", false),
        ("revoke.in-callback", false),
        ("revoke.before-commit", false),
        ("revoke.before-letting-go", true),
        ("revoke.after-letting-go", false),
        ("dlq.before-send", true),
        ("dlq.in-flight", true),
        ("dlq.after-acknowledgement", true),
        ("persist.before-copy", true),
        ("persist.in-copy", true),
        ("persist.after-copy", true),
        ("persist.after-frontier", true),
        ("persist.before-commit", true),
        ("persist.commit-sent", true),
        ("persist.after-commit", true),
        ("persist.in-settling", true),
        ("offsets.before-commit", true),
        ("offsets.after-commit", true),
        ("reread.before-rows", true),
        ("reread.after-rows", true),
        ("put.file.before", true),
        ("put.file.after", true),
        ("put.manifest.before", true),
        ("put.manifest.after", true),
        ("put.success.before", true),
        ("put.success.after", true),
        ("put.probe.before", true),
        ("put.probe.after", true),
        ("list.before", true),
        ("head.after", true),
        ("get.after", true),
        ("enter.before-frontier", true),
        ("enter.after-frontier", true),
        ("enter.before-commit", true),
        ("enter.after-commit", true),
        ("day.before-advance", true),
        ("day.after-advance", true),
        ("day.before-close-partition", true),
        ("day.after-close-partition", true),
        ("day.before-close-topic", true),
        ("day.after-close-topic", true),
        ("day.before-finished", true),
        ("day.after-finished", true),
        ("stop.before-write", true),
        ("stop.after-write", true),
        ("restart.in-poll-thread", true),
        ("shutdown.begun", false),
        ("shutdown.before-sealing", false),
        ("shutdown.before-leaving", false),
        ("shutdown.after-leaving", false),
    ];

    /// The name, if it is listed; else the program does not compile.
    pub const fn listed(name: &'static str) -> &'static str {
        let mut at = 0;
        while at < POINTS.len() {
            if is_same(POINTS[at].0.as_bytes(), name.as_bytes()) {
                return name;
            }
            at += 1;
        }
        panic!("a failpoint that is not in the list")
    }

    const fn is_same(one: &[u8], other: &[u8]) -> bool {
        let mut at = 0;
        while at < one.len() && at < other.len() && one[at] == other[at] {
            at += 1;
        }
        at == one.len() && at == other.len()
    }

    /// The point of a PUT: what an object is shows in its key.
    pub fn of_put(key: &str, when: &str) -> &'static str {
        let kind = match key.rsplit('/').next() {
            Some("_manifest.json") => "manifest",
            Some("_SUCCESS") => "success",
            Some(name) if name.ends_with(".parquet") => "file",
            _ => "probe",
        };
        let name = format!("put.{kind}.{when}");
        POINTS.iter().map(|(point, _)| *point).find(|point| *point == name).unwrap_or("put")
    }

    /// What happens at a point.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Action {
        /// The process ends as by `kill -9`.
        Abort,
        /// The call fails.
        Error,
        /// The call takes so much longer.
        Delay(Duration),
        /// The process is stopped until somebody sends SIGCONT.
        Stop,
        /// The thread or task panics: for a look at what a panic says.
        Panic,
    }

    /// A point that is to act, at one of its hits (the first is 1).
    #[derive(Debug)]
    struct Armed {
        point: &'static str,
        action: Action,
        hit: u64,
        hits: AtomicU64,
    }

    /// What `FAILPOINTS` says, and where `FAILPOINTS_TRACE` wants it told.
    struct Plan {
        armed: Vec<Armed>,
        trace: Option<Mutex<File>>,
    }

    static PLAN: OnceLock<Plan> = OnceLock::new();

    /// Reads the plan from the environment. Errors: what cannot be understood.
    pub fn arm() -> anyhow::Result<()> {
        let armed = parse(&std::env::var("FAILPOINTS").unwrap_or_default())?;
        let trace = match std::env::var_os("FAILPOINTS_TRACE") {
            Some(path) => Some(Mutex::new(File::options().append(true).create(true).open(path)?)),
            None => None,
        };
        anyhow::ensure!(PLAN.set(Plan { armed, trace }).is_ok(), "failpoints are armed once");
        Ok(())
    }

    /// `point=action` or `point=action@hit`, joined by `;`. Actions: abort, error, stop, delay(MS), panic.
    fn parse(text: &str) -> anyhow::Result<Vec<Armed>> {
        text.split(';').filter(|part| !part.trim().is_empty()).map(|part| parse_one(part.trim())).collect()
    }

    fn parse_one(text: &str) -> anyhow::Result<Armed> {
        let wrong = |why: &str| anyhow::anyhow!("FAILPOINTS: `{text}`: {why}");
        let (name, rest) = text.split_once('=').ok_or_else(|| wrong("expected point=action"))?;
        let (action, hit) = rest.split_once('@').unwrap_or((rest, "1"));
        let (point, can_fail) =
            POINTS.iter().find(|(point, _)| *point == name).ok_or_else(|| wrong("no such point"))?;
        let delay = action.strip_prefix("delay(").and_then(|rest| rest.strip_suffix(')'));
        let action = match (action, delay.map(str::parse)) {
            (_, Some(Ok(ms))) => Action::Delay(Duration::from_millis(ms)),
            ("abort", _) => Action::Abort,
            ("error", _) if *can_fail => Action::Error,
            ("error", _) => return Err(wrong("no call fails there")),
            ("stop", _) => Action::Stop,
            ("panic", _) => Action::Panic,
            _ => return Err(wrong("the action is none of abort, error, stop, delay(MS), panic")),
        };
        let hit = hit.parse().ok().filter(|hit| *hit > 0).ok_or_else(|| wrong("no number of a hit"))?;
        Ok(Armed { point, action, hit, hits: AtomicU64::new(0) })
    }

    /// Counts a hit; the action if this is the one that was asked for.
    fn due(point: &'static str) -> Option<Action> {
        let plan = PLAN.get()?;
        let mut due = None;
        for armed in plan.armed.iter().filter(|armed| armed.point == point) {
            let hit = armed.hits.fetch_add(1, Ordering::Relaxed) + 1;
            if hit == armed.hit {
                tell(plan, &format!("{point} {:?} {hit} {}\n", armed.action, getpid().as_raw_pid()));
                due = Some(armed.action);
            }
        }
        due
    }

    fn tell(plan: &Plan, line: &str) {
        tracing::warn!(line = line.trim_end(), "failpoint");
        if let Some(Ok(mut trace)) = plan.trace.as_ref().map(Mutex::lock) {
            // One write: lines of two processes do not mix.
            let _ = trace.write_all(line.as_bytes());
        }
    }

    /// In an async function: acts if it is this point's turn.
    pub async fn reach(point: &'static str) -> Result<(), Injected> {
        match due(point) {
            Some(Action::Delay(span)) => tokio::time::sleep(span).await,
            Some(Action::Error) => return Err(Injected(point)),
            Some(action) => signal(action),
            None => {}
        }
        Ok(())
    }

    /// On a thread: acts if it is this point's turn.
    pub fn reach_blocking(point: &'static str) -> Result<(), Injected> {
        match due(point) {
            Some(Action::Delay(span)) => std::thread::sleep(span),
            Some(Action::Error) => return Err(Injected(point)),
            Some(action) => signal(action),
            None => {}
        }
        Ok(())
    }

    /// Where nothing can fail.
    pub fn pause(point: &'static str) {
        let _ = reach_blocking(point);
    }

    /// Polls a future once, so that what it sends is sent; then the point; then the rest of it.
    pub async fn once_begun<T, E: From<Injected>>(
        point: &'static str,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let mut future = std::pin::pin!(future);
        let begun = futures::poll!(future.as_mut());
        reach(point).await?;
        match begun {
            std::task::Poll::Ready(result) => result,
            std::task::Poll::Pending => future.await,
        }
    }

    fn signal(action: Action) {
        assert!(action != Action::Panic, "a failpoint");
        let signal = if action == Action::Abort { Signal::KILL } else { Signal::STOP };
        let _ = kill_process(getpid(), signal);
        // It takes hold within microseconds; the point must not be passed before.
        std::thread::sleep(Duration::from_millis(20));
    }

    /// The error that a point returns: each kind of call has it as a failure of its own kind.
    #[derive(Debug, thiserror::Error)]
    #[error("failpoint {0}")]
    pub struct Injected(&'static str);

    impl From<Injected> for sqlx::Error {
        fn from(injected: Injected) -> Self {
            sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::ConnectionReset, injected))
        }
    }

    impl From<Injected> for String {
        fn from(injected: Injected) -> Self {
            injected.to_string()
        }
    }

    impl From<Injected> for LedgerError {
        fn from(injected: Injected) -> Self {
            LedgerError::Sql(injected.into())
        }
    }

    impl From<Injected> for KafkaError {
        fn from(_: Injected) -> Self {
            KafkaError::Global(RDKafkaErrorCode::OperationTimedOut)
        }
    }

    impl From<Injected> for StoreError {
        fn from(injected: Injected) -> Self {
            StoreError {
                operation: "any",
                key: String::new(),
                kind: StoreErrorKind::Transient,
                message: injected.to_string(),
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_plan_is_read_or_refused() {
            let plan = parse("persist.after-copy=abort; dlq.in-flight=delay(2500)@3").unwrap();
            let found: Vec<_> = plan.iter().map(|a| (a.point, a.action, a.hit)).collect();
            let delay = Action::Delay(Duration::from_millis(2500));
            assert_eq!(found, [("persist.after-copy", Action::Abort, 1), ("dlq.in-flight", delay, 3)]);
            for wrong in [
                "persist.after-copy",
                "no.such-point=abort",
                "persist.after-copy=explode",
                "persist.after-copy=delay(long)",
                "persist.after-copy=abort@0",
                "shutdown.begun=error",
            ] {
                assert!(parse(wrong).is_err(), "{wrong}");
            }
        }

        #[test]
        fn names_are_unique_and_puts_have_theirs() {
            let names: std::collections::BTreeSet<_> = POINTS.iter().map(|(name, _)| name).collect();
            assert_eq!(names.len(), POINTS.len());
            assert_eq!(of_put("e/2026-01-01/_SUCCESS", "after"), "put.success.after");
            assert_eq!(of_put("e/2026-01-01/t+0+00000000000000000042.parquet", "before"), "put.file.before");
        }
    }
}
