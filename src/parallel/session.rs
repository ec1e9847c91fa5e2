//! A process among those that a launcher started: joining the others, leaving them, and ending them all if one fails.

use std::env;
use std::time::{Duration, Instant};

use super::collective::{Ranks, solo};
use super::nccl::Launched;
#[cfg(not(feature = "mpi"))]
use crate::error::Error;
use crate::error::Result;
use crate::interrupt;

/// How long a rank other than the first waits before it reports its error: if all ranks fail alike, for example by a
/// mistake in the recipe, the first one reports it and ends the others.
const PATIENCE: Duration = Duration::from_secs(2);

/// This process's part in a run of one or more ranks. It leaves the others when it is dropped.
pub struct Session {
    /// The ranks.
    pub ranks: Ranks,
    #[cfg(feature = "mpi")]
    _universe: Option<mpi::environment::Universe>,
}

/// Variables in which a launcher says how many processes it started: `mpirun` of Open MPI and MPICH, and Slurm's `srun`
/// when it serves an MPI library.
const SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// How many processes were started together; `None` if this one was started alone.
pub fn launched() -> Option<usize> {
    let of_slurm = || env::var_os("PMIX_RANK").and_then(|_| number("SLURM_STEP_NUM_TASKS"));
    SIZES.iter().find_map(|name| number(name)).or_else(of_slurm)
}

/// Variables in which a launcher gives this process's number on its machine.
const LOCAL_RANKS: [&str; 4] = ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "LOCAL_RANK", "SLURM_LOCALID"];

/// This process's number on its machine, which selects its GPU.
pub fn local_rank() -> usize {
    LOCAL_RANKS.iter().find_map(|name| number(name)).unwrap_or(0)
}

/// A number that a launcher set in the environment.
fn number(name: &str) -> Option<usize> {
    env::var(name).ok()?.parse().ok()
}

impl Session {
    /// Joins the processes that were started together with this one, if any.
    ///
    /// # Errors
    /// Several processes and a build without MPI; an MPI library that can't be used.
    #[cfg(not(feature = "mpi"))]
    pub fn join() -> Result<Self> {
        match launched() {
            Some(size @ 2..) => Err(Error::Usage(format!(
                "{size} processes were started together, and this weft is built without the feature mpi: each would train \
                 the same; build it with `cargo install --locked --path . --features mpi` in a copy of \
                 its sources, or start one process"
            ))),
            _ => Ok(Self { ranks: solo() }),
        }
    }

    /// Joins the processes that were started together with this one, if any.
    ///
    /// # Errors
    /// An MPI library that can't be used.
    #[cfg(feature = "mpi")]
    pub fn join() -> Result<Self> {
        if launched().is_none() {
            return Ok(Self { ranks: solo(), _universe: None });
        }
        let (universe, ranks) = super::mpi::join()?;
        Ok(Self { ranks: std::sync::Arc::new(ranks), _universe: Some(universe) })
    }

    /// Ends the run with an error: a single rank only prints it; one of several prints it with its rank and ends all.
    pub fn fail(&self, reason: &str, status: u8) -> u8 {
        let (rank, size) = (self.ranks.rank(), self.ranks.size());
        if size == 1 {
            let rank = Launched::read().ok().flatten().map(|launched| launched.rank);
            eprintln!("{}{reason}", rank.map_or(String::new(), |rank| format!("rank {rank}: ")));
            return status;
        }
        let failed = Instant::now();
        while rank > 0 && failed.elapsed() < PATIENCE {
            // The launcher is already ending all ranks.
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

/// The default number of threads of each rank: the processors that the rank may use, divided among the ranks of the
/// same machine that may use the same ones. One rank alone gets 0, which stands for the pool's own default.
pub fn threads_per_rank(ranks: &Ranks) -> usize {
    if ranks.size() == 1 { 0 } else { processors_per_rank(ranks) }
}

/// Whether a thread that waits for messages can run beside those that compute: it polls, so it needs a processor of its
/// own, or so many processors that the share it takes is small.
pub fn has_room_beside(ranks: &Ranks) -> bool {
    let processors = processors_per_rank(ranks);
    processors >= ROOMY || processors > rayon::current_num_threads()
}

/// The number of a rank's processors from which one more thread hardly matters.
const ROOMY: usize = 4;

fn processors_per_rank(ranks: &Ranks) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let status = read("/proc/self/status");
    let allowed = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap_or_default();
    (processors / same(ranks, &format!("{}{allowed}", machine()))).max(1)
}

/// The number of ranks on this machine.
pub fn ranks_here(ranks: &Ranks) -> usize {
    if ranks.size() == 1 { 1 } else { same(ranks, &machine()) }
}

/// An identifier of this machine, from its kernel's boot id and host name.
fn machine() -> String {
    ["boot_id", "../hostname"].map(|name| read(&format!("/proc/sys/kernel/random/{name}"))).concat()
}

/// How many ranks have the same text.
fn same(ranks: &Ranks, own: &str) -> usize {
    ranks.all_gather_bytes(own.as_bytes()).iter().filter(|other| **other == own.as_bytes()).count()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}
