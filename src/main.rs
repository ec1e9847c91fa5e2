//! The `weft` command: parses the command line and turns errors into one sentence and an exit status.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::Parser;
use weft::error::Error;

fn main() -> ExitCode {
    sigpipe::reset();
    match cli::Cli::parse().run() {
        Ok(code) => code,
        // No mistake of anyone's.
        Err(stopped @ Error::Stopped { .. }) => {
            eprintln!("{stopped}");
            ExitCode::from(cli::STOPPED)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(if error.is_users() { 2 } else { 1 })
        }
    }
}
