//! `weft recipe`: prints every key that a recipe may have.

use std::process::ExitCode;

use clap::Args;
use weft::error::Result;

/// A recipe with every key, its default, its values and its meaning.
const EVERY_KEY: &str = include_str!("../../recipes/every-key.toml");

/// Print a recipe with every key: its default, its values, what it does
#[derive(Args)]
#[command(after_help = "Example:\n  weft recipe > my.toml")]
pub struct Recipe {}

impl Recipe {
    pub fn run(self) -> Result<ExitCode> {
        say!("{}", EVERY_KEY.trim_end());
        Ok(ExitCode::SUCCESS)
    }
}
