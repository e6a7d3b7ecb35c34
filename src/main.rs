//! Arguments → configuration → telemetry → command → exit code.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use feed_worker::command::{self, Cli};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => {
            // Nobody to tell it to if this fails.
            let _ = told.print();
            return if told.use_stderr() {
                ExitCode::from(command::WRONG_ARGUMENTS)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match command::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("feed-worker: {failure}");
            ExitCode::from(failure.code())
        }
    }
}
