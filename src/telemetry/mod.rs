//! What the worker says about itself: log lines, metrics, probes.

pub mod health;
mod log_limit;
pub mod logging;
pub mod metrics;
pub mod recorder;
mod statsd;
pub mod traces;

pub use logging::init_logging;
