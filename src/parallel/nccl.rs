//! Ranks that each hold a GPU, over NCCL: numbers go from GPU to GPU. The ranks find each other through those that a
//! launcher has already joined (MPI), or at an address that the launcher gave to all (torchrun's variables).

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use weft_kernels::cuda::Gpu;
use weft_kernels::cuda::nccl::{Group, Id, id_at, new_id};
use weft_kernels::device::Device;
use weft_kernels::tensor::Tensor;

use super::collective::{Collective, Ranks, Traffic};
use crate::error::{Error, Result};

/// How long a rank waits for the others before it says so.
const PATIENCE: Duration = Duration::from_secs(5);

/// The NCCL group of the ranks.
#[derive(Debug)]
pub struct Nccl {
    group: Group,
    sent_bytes: AtomicU64,
    nanoseconds: AtomicU64,
}

/// What a launcher such as torchrun tells each process about the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// This process's rank, counted from 0.
    pub rank: usize,
    /// The number of processes.
    pub size: usize,
    /// The address of rank 0, `host:port`.
    pub address: String,
}

impl Launched {
    /// Reads torchrun's variables `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`; `None` if one process was
    /// started alone. torchrun itself uses the port, so the group meets at the next one; `NCCL_COMM_ID` names another
    /// address.
    ///
    /// # Errors
    /// Several processes, and a variable that is missing or makes no sense.
    pub fn read() -> Result<Option<Self>> {
        let text = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let wrong = |name: &str, wanted: &str| {
            let has = text(name).map_or("is not set".to_owned(), |value| format!("is {value}"));
            Error::Usage(format!("{name} {has}, and a launcher of several processes sets it to {wanted}"))
        };
        let number = |name: &str, wanted: &str| {
            text(name).and_then(|value| value.parse::<usize>().ok()).ok_or_else(|| wrong(name, wanted))
        };
        let size = if text("WORLD_SIZE").is_some() { number("WORLD_SIZE", "their number")? } else { 1 };
        if size <= 1 {
            return Ok(None);
        }
        let wanted = format!("a process's number, 0 to {}", size - 1);
        let rank = number("RANK", &wanted)?;
        if rank >= size {
            return Err(wrong("RANK", &wanted));
        }
        let address = match text("NCCL_COMM_ID") {
            Some(address) => address,
            None => {
                let host = text("MASTER_ADDR").ok_or_else(|| wrong("MASTER_ADDR", "the first one's machine"))?;
                let port = number("MASTER_PORT", "a port, 1 to 65534")?;
                if !(1..65_535).contains(&port) {
                    return Err(wrong("MASTER_PORT", "a port, 1 to 65534"));
                }
                format!("{host}:{}", port + 1)
            }
        };
        Ok(Some(Self { rank, size, address }))
    }
}

impl Nccl {
    /// Joins ranks that a launcher has already joined, each with its GPU.
    ///
    /// # Errors
    /// NCCL isn't there or fails, at any rank.
    pub fn among(ranks: &Ranks, gpu: &Arc<Gpu>) -> Result<Self> {
        // Every rank learns whether rank 0 has an id, so that none waits for a rank that gave up.
        let id = if ranks.is_first() { new_id() } else { Ok([0; 128]) };
        let told = ranks.bytes_of_first(&id.as_ref().map_or(vec![], |id| id.to_vec()));
        let id: Id = match (id, told.try_into()) {
            (Err(reason), _) => return Err(Error::Run(reason)),
            (_, Ok(id)) => id,
            (_, Err(_)) => return Err(Error::Run("the first rank has no NCCL".to_owned())),
        };
        Self::join(gpu, (ranks.rank(), ranks.size()), id)
    }

    /// Joins the processes that a launcher such as torchrun started.
    ///
    /// # Errors
    /// NCCL isn't there or fails.
    pub fn launched(launched: &Launched, gpu: &Arc<Gpu>) -> Result<Self> {
        let Launched { rank, size, address } = launched;
        let id = id_at(address).map_err(Error::Run)?;
        let (joined, waiting) = mpsc::channel::<()>();
        let told = format!("rank {rank} of {size} waits for the others at {address}");
        std::thread::spawn(move || {
            if waiting.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{told}");
            }
        });
        let group = Self::join(gpu, (*rank, *size), id);
        drop(joined);
        group
    }

    /// The ranks of a process: over NCCL if there are several and each has a GPU, otherwise the given ones.
    ///
    /// # Errors
    /// Several processes that torchrun started without GPUs; ranks of which only some have a GPU; and those of
    /// [`Nccl::among`].
    pub fn ranks(ranks: &Ranks, device: &Device) -> Result<Ranks> {
        let launched = if ranks.size() == 1 { Launched::read()? } else { None };
        // Every rank makes these calls, whatever its device, because collectives must match.
        let is_gpu = matches!(device, Device::Cuda(_));
        if [ranks.any(is_gpu), ranks.any(!is_gpu)] == [true; 2] {
            return Err(Error::Run("some ranks have a GPU and some have none; name one --device for all".to_owned()));
        }
        Ok(match (device, launched) {
            (Device::Cuda(gpu), Some(launched)) => Arc::new(Self::launched(&launched, gpu)?),
            (Device::Cuda(gpu), None) if ranks.size() > 1 => Arc::new(Self::among(ranks, gpu)?),
            (Device::Cpu, Some(Launched { size, .. })) => {
                return Err(Error::Usage(format!(
                    "{size} processes were started together (WORLD_SIZE), and each would do the same on its CPU; give them GPUs \
                     (--device cuda), or start them by mpirun (docs/scaling.md)"
                )));
            }
            _ => ranks.clone(),
        })
    }

    fn join(gpu: &Arc<Gpu>, (rank, size): (usize, usize), id: Id) -> Result<Self> {
        let group = Group::join(gpu, (rank, size), id).map_err(Error::Run)?;
        Ok(Self { group, sent_bytes: AtomicU64::new(0), nanoseconds: AtomicU64::new(0) })
    }

    /// Calls `f`, and adds its time and what was sent to the traffic. The GPU's own time isn't included.
    fn call<R>(&self, sent_bytes: usize, f: impl FnOnce(&Group) -> R) -> R {
        let started = Instant::now();
        let result = f(&self.group);
        self.nanoseconds.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.sent_bytes.fetch_add(sent_bytes as u64, Ordering::Relaxed);
        result
    }
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn size(&self) -> usize {
        self.group.size()
    }

    fn exchange(&self, send: &Tensor, counts: &[usize], received: &mut Tensor) {
        let sent = send.len() - counts[self.rank()];
        self.call(size_of::<f32>() * sent, |group| group.exchange(send, counts, received));
    }

    fn all_gather(&self, own: &Tensor, counts: &[usize], all: &mut Tensor) {
        let sent = own.len() * (self.size() - 1);
        self.call(size_of::<f32>() * sent, |group| group.all_gather(own, counts, all));
    }

    fn all_gather_bytes(&self, own: &[u8]) -> Vec<Vec<u8>> {
        self.call(own.len() * (self.size() - 1), |group| group.all_gather_bytes(own))
    }

    fn broadcast(&self, numbers: &mut [f32]) {
        let sent = if self.is_first() { numbers.len() } else { 0 };
        self.call(size_of::<f32>() * sent, |group| group.broadcast(numbers));
    }

    fn leave(&self) {
        self.group.leave();
    }

    fn traffic(&self) -> Traffic {
        Traffic {
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            seconds: self.nanoseconds.load(Ordering::Relaxed) as f64 * 1e-9,
        }
    }
}
