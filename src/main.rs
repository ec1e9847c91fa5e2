//! The `weft` command: parses the command line and turns errors into one sentence and an exit status.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    sigpipe::reset();
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(if error.is_users() { 2 } else { 1 })
        }
    }
}
