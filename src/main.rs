//! Arguments → configuration → telemetry → command → exit code.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use feed_worker::command::{self, Cli};
use feed_worker::kafka::security;
use feed_worker::trust;

fn main() -> ExitCode {
    // Without this OpenSSL frees at the process's end what a Kafka client that is still closing uses: it would end with
    // SIGSEGV, now and then.
    openssl_sys::init();
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
            let text = failure.to_string();
            eprintln!("feed-worker: {text}");
            let advice = security::advice_on_creation(&text).or_else(|| trust::advice(&text));
            if let Some(advice) = advice.filter(|advice| !text.contains(advice)) {
                eprintln!("  {advice}");
            }
            ExitCode::from(failure.code())
        }
    }
}
