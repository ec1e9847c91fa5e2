//! Ranks over MPI: the installed library, called by one thread at a time. Buffers are sent as they are, a GPU's through
//! host memory; the caller has to split a message whose count of numbers doesn't fit into 32 bits (`shards` does).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::{CommunicatorCollectives, Root};
use weft_kernels::tensor::Tensor;

use super::collective::{Collective, Traffic};
use crate::error::{Error, Result};

/// All ranks that `mpirun` started. The library's handles can't move between threads, so each call gets the world's
/// anew.
#[derive(Debug)]
pub struct Mpi {
    rank: usize,
    size: usize,
    sent_bytes: AtomicU64,
    nanoseconds: AtomicU64,
}

/// Joins the other ranks; MPI is finalized when the universe is dropped, which may happen once in a process.
///
/// # Errors
/// A library that can't be called from a thread other than the one that initialized it.
pub fn join() -> Result<(Universe, Mpi)> {
    let joined = mpi::initialize_with_threading(Threading::Serialized);
    let (universe, provided) =
        joined.ok_or_else(|| Error::Run("MPI was initialized twice in this process".to_owned()))?;
    if provided < Threading::Serialized {
        return Err(Error::Run(format!(
            "this MPI library provides the thread level {provided:?}, and Weft needs Serialized; \
             use one built with thread support"
        )));
    }
    let world = universe.world();
    let [rank, size] = [world.rank(), world.size()].map(|n| n as usize);
    Ok((universe, Mpi { rank, size, sent_bytes: AtomicU64::new(0), nanoseconds: AtomicU64::new(0) }))
}

/// Ends every rank with an exit status.
pub(crate) fn abort(status: u8) -> ! {
    SimpleCommunicator::world().abort(i32::from(status))
}

impl Mpi {
    /// Calls `f` with the world, and adds its time and what it sent to the traffic.
    fn call<R>(&self, sent_numbers: usize, f: impl FnOnce(&SimpleCommunicator) -> R) -> R {
        let started = Instant::now();
        let result = f(&SimpleCommunicator::world());
        self.nanoseconds.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.sent_bytes.fetch_add(size_of::<f32>() as u64 * sent_numbers as u64, Ordering::Relaxed);
        result
    }

    /// How many numbers this rank passes on in a ring all-gather.
    fn passed_on(&self, counts: &[usize]) -> usize {
        let next = (self.rank + 1) % self.size;
        counts.iter().sum::<usize>() - counts[next]
    }
}

/// Counts in MPI's type.
fn as_counts(counts: &[usize]) -> Vec<i32> {
    counts.iter().map(|n| i32::try_from(*n).expect("a message is cut below 2^31 numbers")).collect()
}

/// The offset at which each block begins.
fn starts(counts: &[i32]) -> Vec<i32> {
    let start = |at: &mut i32, count: &i32| {
        let start = *at;
        *at += count;
        Some(start)
    };
    counts.iter().scan(0, start).collect()
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&self, send: &Tensor, counts: &[usize], received: &mut Tensor) {
        let own = counts[self.rank];
        let send = &*send.to_host();
        received.change_on_host(|received| {
            self.call(send.len() - own, |world| {
                let (counts, own) = (as_counts(counts), as_counts(&vec![own; self.size]));
                let (to, from) = (starts(&counts), starts(&own));
                let send = Partition::new(send, counts, to);
                world.all_to_all_varcount_into(&send, &mut PartitionMut::new(received, own, from));
            })
        });
    }

    fn all_gather(&self, own: &Tensor, counts: &[usize], all: &mut Tensor) {
        let own = &*own.to_host();
        all.change_on_host(|all| {
            self.call(self.passed_on(counts), |world| {
                let counts = as_counts(counts);
                let from = starts(&counts);
                world.all_gather_varcount_into(own, &mut PartitionMut::new(all, counts, from));
            })
        });
    }

    fn all_gather_bytes(&self, own: &[u8]) -> Vec<Vec<u8>> {
        let mut lens = vec![0u64; self.size];
        self.call(2 * (self.size - 1), |world| world.all_gather_into(&(own.len() as u64), &mut lens[..]));
        let lens: Vec<usize> = lens.into_iter().map(|len| len as usize).collect();
        let mut all = vec![0u8; lens.iter().sum()];
        self.call(self.passed_on(&lens).div_ceil(size_of::<f32>()), |world| {
            let counts = as_counts(&lens);
            let from = starts(&counts);
            world.all_gather_varcount_into(own, &mut PartitionMut::new(&mut all[..], counts, from));
        });
        let mut rest = all.as_slice();
        let block = |len: &usize| {
            let block;
            (block, rest) = rest.split_at(*len);
            block.to_vec()
        };
        lens.iter().map(block).collect()
    }

    fn broadcast(&self, numbers: &mut [f32]) {
        let sent = if self.rank == 0 { numbers.len() } else { 0 };
        for piece in numbers.chunks_mut(1 << 28) {
            self.call(0, |world| world.process_at_rank(0).broadcast_into(piece));
        }
        self.sent_bytes.fetch_add(size_of::<f32>() as u64 * sent as u64, Ordering::Relaxed);
    }

    fn traffic(&self) -> Traffic {
        Traffic {
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            seconds: self.nanoseconds.load(Ordering::Relaxed) as f64 * 1e-9,
        }
    }
}
