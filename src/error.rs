//! Everything that can go wrong, each as one sentence with the value, the place and the fix.

use std::io;
use std::path::PathBuf;

/// The library's error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that can't be read.
    #[error("cannot read {}: {source}; check the path and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file that isn't what its name says.
    #[error("{} is damaged or of another format: {reason}; fetch or write it again", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A configuration that Weft doesn't compute.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field, its value and the fix.
        reason: String,
    },
    /// A tensor that is missing or has another shape.
    #[error("tensor {name} in {}: {reason}; is this the checkpoint that config.json describes?", folder.display())]
    Tensor {
        /// Its name.
        name: String,
        /// The checkpoint's folder.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A result of the library.
pub type Result<T> = std::result::Result<T, Error>;
