//! The `weft` command: parses the command line, joins the group of ranks it was started with, and turns errors into one
//! sentence and an exit status.
#![forbid(unsafe_code)]

mod cli;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;

use clap::Parser;
use weft::error::Error;
use weft::parallel::session::Session;
use weft_kernels::cuda::Failure;

fn main() -> ExitCode {
    sigpipe::reset();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => cli::hints::exit(&error),
    };
    let session = match Session::join() {
        Ok(session) => session,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(status(&error));
        }
    };
    match catch_unwind(AssertUnwindSafe(|| cli.run(&session.ranks))) {
        Ok(Ok(code)) => code,
        // Stopping isn't an error, and every rank does it.
        Ok(Err(stopped @ Error::Stopped { .. })) => {
            if session.ranks.is_first() {
                eprintln!("{stopped}");
            }
            ExitCode::from(cli::STOPPED)
        }
        Ok(Err(error)) => ExitCode::from(session.fail(&format!("error: {error}"), status(&error))),
        Err(panic) => match panic.downcast::<Failure>() {
            Ok(failure) => ExitCode::from(session.fail(&format!("error: {}", failure.0), 1)),
            Err(panic) if session.ranks.size() == 1 => resume_unwind(panic),
            // The other ranks wait for this one, so it can't end without telling them.
            Err(panic) => ExitCode::from(session.fail(&format!("error: a bug in Weft: {}", text_of(&*panic)), 101)),
        },
    }
}

/// The exit status of an error.
fn status(error: &Error) -> u8 {
    if error.is_users() { 2 } else { 1 }
}

/// The message of a panic.
fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason")
}
