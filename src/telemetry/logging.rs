//! Log lines go to stderr: JSON, or for a person at a terminal. Of one kind there are only so many a second.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use super::log_limit::LogLimit;
use crate::config::{Log, LogFormat};

const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

/// Starts logging; a panic is logged like any other error from then on. Only the first call counts.
pub fn init_logging(config: &Log) {
    let directives = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => directives,
        _ => directives(&config.level),
    };
    // The level was checked with the configuration; of RUST_LOG, what cannot be read is left out and said.
    let filter = EnvFilter::builder().parse_lossy(directives);
    let terminal = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = if json(config.format, terminal) {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    } else {
        lines.with_ansi(terminal).boxed()
    };
    let started =
        tracing_subscriber::registry().with(lines).with(filter).with(LogLimit::default()).try_init();
    if started.is_ok() {
        log_panics();
    }
}

fn json(format: LogFormat, terminal: bool) -> bool {
    match format {
        LogFormat::Auto => !terminal,
        LogFormat::Json => true,
        LogFormat::Human => false,
    }
}

/// A plain level is meant for the worker. Below `info` libraries stay at `info`: at `debug` they repeat what
/// goes over the wire, credentials and users among it.
fn directives(level: &str) -> String {
    match level {
        "debug" | "trace" => format!("info,feed_worker={level}"),
        level => level.to_owned(),
    }
}

/// Says what is wrong with a level, if anything. A bare word that is no level would pass for the name of a
/// module, and silence everything else.
pub fn check_level(level: &str) -> Result<(), String> {
    for part in level.split(',').map(str::trim) {
        let known = LEVELS.iter().any(|known| part.eq_ignore_ascii_case(known));
        if !known && !part.contains('=') {
            return Err(format!("`{part}` is no level: use {}, or module=level", LEVELS.join(", ")));
        }
    }
    EnvFilter::builder().parse(level).map(drop).map_err(|error| error.to_string())
}

fn log_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic
            .payload()
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.payload().downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, panic = message, "panicked");
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            before(panic);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_never_log_below_info_unless_they_are_named() {
        assert_eq!(directives("warn"), "warn");
        assert_eq!(directives("debug"), "info,feed_worker=debug");
        assert_eq!(directives("info,sqlx=debug"), "info,sqlx=debug");
    }

    #[test]
    fn a_misspelt_level_is_refused() {
        check_level("INFO").unwrap();
        check_level("info,feed_worker::kafka=debug").unwrap();
        assert!(check_level("inof").unwrap_err().contains("`inof` is no level"));
        assert!(check_level("feed_worker=loud").is_err());
    }

    #[test]
    fn auto_follows_the_terminal() {
        assert!(json(LogFormat::Auto, false));
        assert!(!json(LogFormat::Auto, true));
        assert!(json(LogFormat::Json, true));
        assert!(!json(LogFormat::Human, false));
    }
}
