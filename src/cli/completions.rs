//! `weft completions`: prints the script that lets a shell complete the command line.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use weft::error::Result;

/// Print a completion script for a shell
#[derive(Args)]
#[command(after_help = "Example:\n  weft completions bash > ~/.local/share/bash-completion/completions/weft")]
pub struct Completions {
    /// The shell: bash, elvish, fish, powershell or zsh
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<ExitCode> {
        clap_complete::generate(self.shell, &mut super::Cli::command(), "weft", &mut std::io::stdout());
        Ok(ExitCode::SUCCESS)
    }
}
