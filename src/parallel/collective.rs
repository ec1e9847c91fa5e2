//! The collectives. Every rank makes the same calls in the same order; a call returns when this rank's part of it is
//! done. Reductions are left to the caller, who adds in a fixed order, so that sums don't depend on a library's
//! algorithm.

use std::sync::Arc;

use weft_kernels::tensor::Tensor;

/// A handle to the ranks of a run, as one of them holds it.
pub type Ranks = Arc<dyn Collective>;

/// How much this rank has sent to others so far, and how long that took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Bytes that this rank sent.
    pub sent_bytes: u64,
    /// Seconds that this rank spent in calls, including waiting for slower ranks.
    pub seconds: f64,
}

impl Traffic {
    /// The traffic since an earlier state.
    pub fn since(self, earlier: Self) -> Self {
        Self { sent_bytes: self.sent_bytes - earlier.sent_bytes, seconds: self.seconds - earlier.seconds }
    }
}

/// A library that moves numbers between ranks.
pub trait Collective: Send + Sync {
    /// This rank, counted from 0.
    fn rank(&self) -> usize;

    /// The number of ranks.
    fn size(&self) -> usize;

    /// Sends each rank its block of `send`, the next `counts[rank]` numbers; `received` gets the blocks that all ranks
    /// sent to this one, in the order of ranks.
    ///
    /// # Shapes
    /// `send` `[sum of counts]`, `counts` `[size]` and the same at every rank, `received` `[size * counts[own rank]]`.
    fn exchange(&self, send: &Tensor, counts: &[usize], received: &mut Tensor);

    /// Gathers every rank's numbers at every rank, in the order of ranks.
    ///
    /// # Shapes
    /// `own` `[counts[own rank]]`, `counts` `[size]`, `all` `[sum of counts]`.
    fn all_gather(&self, own: &Tensor, counts: &[usize], all: &mut Tensor);

    /// Gathers every rank's bytes at every rank, in the order of ranks; their lengths may differ.
    fn all_gather_bytes(&self, own: &[u8]) -> Vec<Vec<u8>>;

    /// Sends rank 0's numbers to every rank.
    fn broadcast(&self, numbers: &mut [f32]);

    /// The traffic so far.
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    /// Leaves the group after a successful run, if the library requires that; no call may follow.
    fn leave(&self) {}

    /// Whether this is rank 0, which prints and writes.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Whether `holds` is true at any rank.
    fn any(&self, holds: bool) -> bool {
        self.size() > 1 && self.all_gather_bytes(&[u8::from(holds)]).iter().any(|bytes| bytes[0] != 0) || holds
    }

    /// Returns when every rank has called it.
    fn wait(&self) {
        self.any(false);
    }

    /// Gathers every rank's numbers at every rank; their lengths may differ.
    fn all_gather_f64(&self, own: &[f64]) -> Vec<Vec<f64>> {
        if self.size() == 1 {
            return vec![own.to_vec()];
        }
        let bytes: Vec<u8> = own.iter().flat_map(|x| x.to_le_bytes()).collect();
        let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        self.all_gather_bytes(&bytes).iter().map(|all| all.chunks(8).map(number).collect()).collect()
    }

    /// Gathers one number per task, of tasks dealt so that task `i` is at rank `i % size`, and returns them in the
    /// tasks' order.
    fn all_gather_dealt(&self, own: &[f64]) -> Vec<f64> {
        let all = self.all_gather_f64(own);
        let count: usize = all.iter().map(Vec::len).sum();
        (0..count).map(|i| all[i % self.size()][i / self.size()]).collect()
    }

    /// Sends rank 0's bytes to every rank.
    fn bytes_of_first(&self, own: &[u8]) -> Vec<u8> {
        let own = if self.is_first() { own } else { &[] };
        self.all_gather_bytes(own).swap_remove(0)
    }
}

/// The only rank of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

/// The ranks of a run that has only one.
pub(crate) fn solo() -> Ranks {
    Arc::new(Solo)
}

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exchange(&self, send: &Tensor, _counts: &[usize], received: &mut Tensor) {
        received.copy(0, send, 0..send.len());
    }

    fn all_gather(&self, own: &Tensor, _counts: &[usize], all: &mut Tensor) {
        all.copy(0, own, 0..own.len());
    }

    fn all_gather_bytes(&self, own: &[u8]) -> Vec<Vec<u8>> {
        vec![own.to_vec()]
    }

    fn broadcast(&self, _numbers: &mut [f32]) {}
}
