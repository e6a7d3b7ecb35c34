//! What the worker says about itself: log lines, metrics, probes.

pub mod health;
mod log_limit;
pub mod logging;
pub mod metrics;
pub mod recorder;
mod statsd;
pub mod traces;

pub use logging::init_logging;

/// An environment variable that somebody has set to something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
