//! Files mapped read-only, whose pages become resident when they are read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;

/// A file mapped read-only.
#[derive(Clone, Debug)]
pub struct MappedFile {
    map: Arc<Mmap>,
    #[cfg_attr(not(unix), allow(dead_code))]
    file: Arc<File>,
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn open(file: &File) -> io::Result<Self> {
        // SAFETY: the map is read-only and private to this process. A file that another process truncates
        // meanwhile ends the run by SIGBUS; checkpoints are immutable by convention, as in every loader that maps.
        let map = Arc::new(unsafe { Mmap::map(file)? });
        Ok(Self { map, file: Arc::new(file.try_clone()?) })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Copies the bytes from `start` on without making the map's pages resident: for single rows of a large table, of
    /// whose file Linux 6.18 maps up to 2 MB for each page that is touched.
    pub(crate) fn copy(&self, start: usize, to: &mut [u8]) {
        #[cfg(unix)]
        if std::os::unix::fs::FileExt::read_exact_at(&*self.file, to, start as u64).is_ok() {
            return;
        }
        to.copy_from_slice(&self.map[start..start + to.len()]);
    }

    /// Gives the pages of a range back to the system. They are read from the file again if they are needed again.
    pub fn give_back(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.map.len(), "a range of the file");
        #[cfg(target_os = "linux")]
        if !range.is_empty() {
            // SAFETY: the map is of a file and never written to, so that its pages can be read again at any time. A
            // system that refuses only keeps the pages.
            let _ = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weight::{Dtype, Weight, to_bf16_bytes};

    #[test]
    fn a_row_that_is_copied_is_the_mapped_one() {
        let path = std::env::temp_dir().join(format!("weft-mapped-{}", std::process::id()));
        let numbers: Vec<f32> = (0..7 * 5).map(|i| i as f32 * 0.37 - 3.0).collect();
        for (dtype, bytes) in
            [(Dtype::F32, bytemuck::cast_slice(&numbers).to_vec()), (Dtype::Bf16, to_bf16_bytes(&numbers))]
        {
            // The tensor begins behind other bytes, as it does in a checkpoint.
            std::fs::write(&path, [vec![0; 64], bytes.clone()].concat()).expect("the file is written");
            let file = MappedFile::open(&File::open(&path).expect("it is there")).expect("it is mapped");
            std::fs::remove_file(&path).expect("it is removed");
            let weight = Weight::mapped(7, 5, dtype, file, 64..64 + bytes.len());
            for row in 0..7 {
                let mut copy = [0.0; 5];
                weight.copy_row(row, &mut copy);
                assert_eq!(copy[..], weight.rows_f32(row..row + 1)[..], "row {row} in {dtype:?}");
            }
        }
    }
}
