//! Files mapped read-only, whose pages become resident when they are read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;

/// A file mapped read-only.
#[derive(Clone, Debug)]
pub struct MappedFile(Arc<Mmap>);

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn open(file: &File) -> io::Result<Self> {
        // SAFETY: the map is read-only and private to this process. A file that another process truncates
        // meanwhile ends the run by SIGBUS; checkpoints are immutable by convention, as in every loader that maps.
        Ok(Self(Arc::new(unsafe { Mmap::map(file)? })))
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Gives the pages of a range back to the system. They are read from the file again if they are needed again.
    pub fn give_back(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.0.len(), "a range of the file");
        #[cfg(target_os = "linux")]
        if !range.is_empty() {
            // SAFETY: the map is of a file and never written to, so that its pages can be read again at any time. A
            // system that refuses only keeps the pages.
            let _ =
                unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
    }
}
