//! A rank's own log, if one is asked for: what each of its steps took, so that a slow rank or link can be found.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::step::StepReport;
use crate::error::{Error, Result};
use crate::files::make_folder;
use crate::parallel::collective::Collective;

/// A file to which each step adds a line.
pub struct RankLog {
    path: PathBuf,
    file: File,
    rank: usize,
}

impl RankLog {
    /// Opens `rank-R.jsonl` in a folder and appends to what an earlier run wrote into it.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn open(folder: &Path, ranks: &dyn Collective) -> Result<Self> {
        make_folder(folder)?;
        let path = folder.join(format!("rank-{}.jsonl", ranks.rank()));
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(|source| Error::Write { path: path.clone(), source })?;
        Ok(Self { path, file, rank: ranks.rank() })
    }

    /// Logs a step, in which this rank had `micro_batches` micro-batches.
    ///
    /// # Errors
    /// A file that can't be written.
    pub(super) fn step(&mut self, report: &StepReport, micro_batches: usize) -> Result<()> {
        let line = json!({
            "step": report.step,
            "rank": self.rank,
            "micro_batches": micro_batches,
            "phases": report.phases,
            "sent_bytes": report.traffic.sent_bytes,
            "communication_seconds": report.traffic.seconds,
        });
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.map_err(|source| Error::Write { path: self.path.clone(), source })
    }
}
