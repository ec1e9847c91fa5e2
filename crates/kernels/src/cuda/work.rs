//! What a GPU's kernels do: launches, operations and bytes, counted at each launch; on a GPU that computes, also their
//! seconds. A plan's meta GPU counts the same launches.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::CudaEvent;

/// A lower bound on the work of one launch of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Work {
    /// The multiplications and additions of a matmul or of attention.
    pub operations: u64,
    /// Bytes read or written in the GPU's memory, with each number counted once.
    pub bytes: u64,
    /// Whether the operands are bf16; else they are f32.
    pub is_bf16: bool,
}

/// Equal launches of a kernel.
#[derive(Clone, Debug)]
pub struct Launches {
    /// The kernel's name.
    pub kernel: String,
    /// The work of each launch.
    pub work: Work,
    /// The number of launches.
    pub count: u64,
    /// Total seconds of all of them; 0 on a GPU that doesn't compute.
    pub seconds: f64,
}

/// The launches since counting began; `None` when counting is off.
#[derive(Debug, Default)]
pub(super) struct Counter(Mutex<Option<Counts>>);

type Counts = HashMap<(String, Work), (u64, Vec<[CudaEvent; 2]>)>;

impl Counter {
    pub(super) fn start(&self) {
        *self.counts() = Some(Counts::new());
    }

    /// The launches that were counted, those with most seconds first, then by name.
    pub(super) fn stop(&self) -> Vec<Launches> {
        let counts = self.counts().take().unwrap_or_default();
        let seconds = |[from, to]: &[CudaEvent; 2]| from.elapsed_ms(to).map_or(0.0, |ms| f64::from(ms) * 1e-3);
        let launches = |((kernel, work), (count, marks)): ((String, Work), (u64, Vec<_>))| Launches {
            kernel,
            work,
            count,
            seconds: marks.iter().map(seconds).sum(),
        };
        let mut all: Vec<Launches> = counts.into_iter().map(launches).collect();
        let order = |l: &Launches| (l.kernel.clone(), l.work.operations, l.work.bytes);
        all.sort_by(|a, b| b.seconds.total_cmp(&a.seconds).then_with(|| order(a).cmp(&order(b))));
        all
    }

    pub(super) fn is_on(&self) -> bool {
        self.counts().is_some()
    }

    /// Counts a launch, with the marks before and after it if it was computed.
    pub(super) fn add(&self, kernel: &str, work: Work, marks: Option<[CudaEvent; 2]>) {
        if let Some(counts) = &mut *self.counts() {
            let (count, all) = counts.entry((kernel.to_owned(), work)).or_default();
            *count += 1;
            all.extend(marks);
        }
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Option<Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
