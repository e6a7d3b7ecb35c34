//! The worker with failpoints: `cargo run --features failpoints --example failpoints -- run`. See docs/failpoints.md.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use feed_worker::command::{self, Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match command::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("feed-worker: {failure}");
            ExitCode::from(failure.code())
        }
    }
}
