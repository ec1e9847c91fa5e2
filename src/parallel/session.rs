//! A process among those that a launcher started: joining them, leaving them, and ending them all where one fails.

use std::env;
use std::time::{Duration, Instant};

use super::collective::{Ranks, solo};
use super::nccl::Launched;
#[cfg(not(feature = "mpi"))]
use crate::error::Error;
use crate::error::Result;
use crate::interrupt;

/// How long a rank other than the first waits before it tells of its error: what all meet alike, a mistake in the recipe
/// for one, the first tells of and ends them.
const PATIENCE: Duration = Duration::from_secs(2);

/// This process's part in a run of one or more ranks. Dropped in the end, it leaves the others.
pub struct Session {
    /// The ranks.
    pub ranks: Ranks,
    #[cfg(feature = "mpi")]
    _universe: Option<mpi::environment::Universe>,
}

/// Variables in which a launcher says how many processes it started: Open MPI's and MPICH's `mpirun`, and Slurm's `srun`
/// where it speaks to an MPI library.
const SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// How many processes were started together; `None` where this one was started alone.
pub fn launched() -> Option<usize> {
    let of_slurm = || env::var_os("PMIX_RANK").and_then(|_| number("SLURM_STEP_NUM_TASKS"));
    SIZES.iter().find_map(|name| number(name)).or_else(of_slurm)
}

/// Variables in which a launcher says which of its machine's processes this one is.
const LOCAL_RANKS: [&str; 4] = ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "LOCAL_RANK", "SLURM_LOCALID"];

/// This process's number among those of its machine: which GPU is its own.
pub fn local_rank() -> usize {
    LOCAL_RANKS.iter().find_map(|name| number(name)).unwrap_or(0)
}

/// A number that a launcher left in the environment.
fn number(name: &str) -> Option<usize> {
    env::var(name).ok()?.parse().ok()
}

impl Session {
    /// Joins the processes that this one was started with, if any.
    ///
    /// # Errors
    /// Several processes and a build without MPI; an MPI library that doesn't serve.
    #[cfg(not(feature = "mpi"))]
    pub fn join() -> Result<Self> {
        match launched() {
            Some(size @ 2..) => Err(Error::Usage(format!(
                "{size} processes were started together, and this weft is built without the feature mpi: each would train \
                 the same; build it with `cargo install weft-dllm --features mpi`, or start one process"
            ))),
            _ => Ok(Self { ranks: solo() }),
        }
    }

    /// Joins the processes that this one was started with, if any.
    ///
    /// # Errors
    /// An MPI library that doesn't serve.
    #[cfg(feature = "mpi")]
    pub fn join() -> Result<Self> {
        if launched().is_none() {
            return Ok(Self { ranks: solo(), _universe: None });
        }
        let (universe, ranks) = super::mpi::join()?;
        Ok(Self { ranks: std::sync::Arc::new(ranks), _universe: Some(universe) })
    }

    /// Ends the run with an error: alone it is only told; among others this rank names itself and ends all.
    pub fn fail(&self, reason: &str, status: u8) -> u8 {
        let (rank, size) = (self.ranks.rank(), self.ranks.size());
        if size == 1 {
            let rank = Launched::read().ok().flatten().map(|launched| launched.rank);
            eprintln!("{}{reason}", rank.map_or(String::new(), |rank| format!("rank {rank}: ")));
            return status;
        }
        let failed = Instant::now();
        while rank > 0 && failed.elapsed() < PATIENCE {
            // The launcher is ending all already.
            if interrupt::is_asked() {
                std::process::exit(i32::from(status));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("rank {rank}: {reason}");
        #[cfg(feature = "mpi")]
        super::mpi::abort(status);
        #[cfg(not(feature = "mpi"))]
        status
    }
}

/// Threads of each rank where nobody says how many: those processors that the rank may use, shared with the ranks of the
/// same machine that may use the same ones. 0 for one rank alone, which the pool's own default is for.
pub fn threads_per_rank(ranks: &Ranks) -> usize {
    if ranks.size() == 1 { 0 } else { processors_per_rank(ranks) }
}

/// Whether there is room for a thread that waits for messages beside those that compute: a processor of its own, or so
/// many that its part of them is small. It asks again and again whether a message is there.
pub fn has_room_beside(ranks: &Ranks) -> bool {
    let processors = processors_per_rank(ranks);
    processors >= ROOMY || processors > rayon::current_num_threads()
}

/// Processors of a rank from which on a thread more hardly matters.
const ROOMY: usize = 4;

fn processors_per_rank(ranks: &Ranks) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let status = read("/proc/self/status");
    let allowed = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap_or_default();
    (processors / same(ranks, &format!("{}{allowed}", machine()))).max(1)
}

/// Ranks on this machine.
pub fn ranks_here(ranks: &Ranks) -> usize {
    if ranks.size() == 1 { 1 } else { same(ranks, &machine()) }
}

/// This machine, by the names that its kernel has for it.
fn machine() -> String {
    ["boot_id", "../hostname"].map(|name| read(&format!("/proc/sys/kernel/random/{name}"))).concat()
}

/// How many ranks say the same.
fn same(ranks: &Ranks, own: &str) -> usize {
    ranks.all_gather_bytes(own.as_bytes()).iter().filter(|other| **other == own.as_bytes()).count()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}
