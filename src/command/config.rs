//! `feed-worker config`: what the worker would run with, and where each value comes from.

use std::io::Write;

use crate::config::{Config, ConfigError, Format, Provenance};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Prints the effective configuration to stdout, secrets redacted. What `run` would still miss is an error
/// all the same: whoever checks a configuration before a deployment asks this command.
pub fn run(args: &Args, config: &Config, provenance: &Provenance) -> Result<(), ConfigError> {
    let text = config.dump(provenance, args.format);
    // Whoever closed the pipe has read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    config.require(provenance)
}
