//! Several GPUs, one per rank, over NVIDIA's NCCL. The library is opened by its own name, which the bindings of the
//! driver don't look for; only the types are theirs.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::nccl::sys::{ncclComm_t, ncclDataType_t, ncclResult_t, ncclUniqueId};
use libloading::os::unix::Library;

use super::array::Memory;
use super::gpu::{Engine, Gpu};
use super::libraries::NCCL;
use crate::tensor::Tensor;

/// The id of a group of ranks: rank 0 creates it and passes it to the others.
pub type Id = [u8; 128];

type Send = unsafe extern "C" fn(*const c_void, usize, ncclDataType_t, i32, ncclComm_t, *mut c_void) -> ncclResult_t;
type Receive = unsafe extern "C" fn(*mut c_void, usize, ncclDataType_t, i32, ncclComm_t, *mut c_void) -> ncclResult_t;
type Broadcast = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    ncclDataType_t,
    i32,
    ncclComm_t,
    *mut c_void,
) -> ncclResult_t;

/// The library's functions.
#[derive(Debug)]
struct Functions {
    get_unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> ncclResult_t,
    join: unsafe extern "C" fn(*mut ncclComm_t, i32, ncclUniqueId, i32) -> ncclResult_t,
    leave: unsafe extern "C" fn(ncclComm_t) -> ncclResult_t,
    abort: unsafe extern "C" fn(ncclComm_t) -> ncclResult_t,
    group_start: unsafe extern "C" fn() -> ncclResult_t,
    group_end: unsafe extern "C" fn() -> ncclResult_t,
    send: Send,
    receive: Receive,
    broadcast: Broadcast,
}

/// This process's membership in a group of ranks.
#[derive(Debug)]
pub struct Group {
    functions: Functions,
    communicator: ncclComm_t,
    gpu: Arc<Gpu>,
    rank: usize,
    size: usize,
    has_left: AtomicBool,
}

// SAFETY: one thread at a time makes the calls, as collectives require, and the library doesn't require a particular
// thread.
unsafe impl std::marker::Send for Group {}
// SAFETY: as above.
unsafe impl Sync for Group {}

impl Functions {
    fn open() -> Result<Self, String> {
        NCCL.open(u32::MAX)?;
        // SAFETY: the library was opened above, and its initialisers have run.
        let library = unsafe { Library::new("libnccl.so.2") }.or_else(|_| unsafe { Library::new("libnccl.so") });
        let library = library.map_err(|e| format!("NCCL can't be opened: {e}"))?;
        macro_rules! function {
            ($name:literal) => {{
                // SAFETY: the function has this type in every version of NCCL 2.
                let found = unsafe { library.get($name) };
                *found.map_err(|e| format!("this NCCL lacks {}: {e}", String::from_utf8_lossy($name)))?
            }};
        }
        let functions = Self {
            get_unique_id: function!(b"ncclGetUniqueId"),
            join: function!(b"ncclCommInitRank"),
            leave: function!(b"ncclCommDestroy"),
            abort: function!(b"ncclCommAbort"),
            group_start: function!(b"ncclGroupStart"),
            group_end: function!(b"ncclGroupEnd"),
            send: function!(b"ncclSend"),
            receive: function!(b"ncclRecv"),
            broadcast: function!(b"ncclBroadcast"),
        };
        std::mem::forget(library);
        Ok(functions)
    }
}

/// The id of a group whose ranks all know an address of rank 0, `host:port`; NCCL derives it from that address.
///
/// # Errors
/// The library is missing or fails.
pub fn id_at(address: &str) -> Result<Id, String> {
    // SAFETY: processes join before they start other threads.
    unsafe { std::env::set_var("NCCL_COMM_ID", address) };
    new_id()
}

/// The id of a new group.
///
/// # Errors
/// The library is missing or fails.
pub fn new_id() -> Result<Id, String> {
    let functions = Functions::open()?;
    let mut id = ncclUniqueId { internal: [0; 128] };
    // SAFETY: the pointer is valid for an id.
    checked(unsafe { (functions.get_unique_id)(&mut id) }, "create a group's id")?;
    Ok(id.internal.map(|byte| byte as u8))
}

impl Group {
    /// Joins a group; returns once every rank has joined.
    ///
    /// # Errors
    /// The library is missing or fails.
    pub fn join(gpu: &Arc<Gpu>, (rank, size): (usize, usize), id: Id) -> Result<Self, String> {
        let functions = Functions::open()?;
        let mut communicator: ncclComm_t = std::ptr::null_mut();
        let id = ncclUniqueId { internal: id.map(|byte| byte as std::ffi::c_char) };
        gpu.bind();
        // SAFETY: the pointer is valid for a communicator, and the GPU's context is current on this thread.
        checked(unsafe { (functions.join)(&mut communicator, size as i32, id, rank as i32) }, "join the ranks")?;
        Ok(Self { functions, communicator, gpu: gpu.clone(), rank, size, has_left: AtomicBool::new(false) })
    }

    /// This rank, counted from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of ranks in the group.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The GPU of this rank.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Sends every rank its block, the next `counts[rank]` numbers of `send`; `received` gets this rank's block from
    /// every rank.
    pub fn exchange(&self, send: &Tensor, counts: &[usize], received: &mut Tensor) {
        let (own, starts) = (counts[self.rank], starts(counts));
        let (send, received) = (send.array(), received.array_mut());
        received.copy(self.rank * own, send, starts[self.rank]..starts[self.rank] + own);
        self.with_others(|rank| (send.at(starts[rank]), counts[rank], received.at(rank * own), own));
    }

    /// All-gather: `all` gets the numbers of every rank.
    pub fn all_gather(&self, own: &Tensor, counts: &[usize], all: &mut Tensor) {
        let (own, all, starts) = (own.array(), all.array_mut(), starts(counts));
        all.copy(starts[self.rank], own, 0..counts[self.rank]);
        self.with_others(|rank| (own.at(0), counts[self.rank], all.at(starts[rank]), counts[rank]));
    }

    /// Overwrites `numbers` with rank 0's on every rank.
    pub fn broadcast(&self, numbers: &mut [f32]) {
        let on_gpu = Memory::of(&self.gpu, numbers);
        self.broadcast_from(0, on_gpu.pointer(), numbers.len());
        on_gpu.read(0, bytemuck::cast_slice_mut(numbers));
    }

    /// All-gather of bytes: returns the bytes of every rank, whose lengths may differ.
    pub fn all_gather_bytes(&self, own: &[u8]) -> Vec<Vec<u8>> {
        let lens = Memory::unset(&self.gpu, 8 * self.size);
        lens.write(8 * self.rank, &(own.len() as u64).to_le_bytes());
        (0..self.size).for_each(|rank| self.broadcast_from(rank, lens.pointer() + 8 * rank as u64, 2));
        let mut of_ranks = vec![0u64; self.size];
        lens.read(0, bytemuck::cast_slice_mut(&mut of_ranks));
        let of_ranks: Vec<usize> = of_ranks.into_iter().map(|len| len as usize).collect();
        let gather = |rank: usize| {
            // Bytes are sent as whole words.
            let words = of_ranks[rank].div_ceil(4);
            let memory = Memory::unset(&self.gpu, 4 * words);
            if rank == self.rank {
                memory.write(0, own);
            }
            self.broadcast_from(rank, memory.pointer(), words);
            let mut bytes = vec![0u8; 4 * words];
            memory.read(0, &mut bytes);
            bytes.truncate(of_ranks[rank]);
            bytes
        };
        (0..self.size).map(gather).collect()
    }

    /// Broadcasts words of `rank` to every rank, in place.
    fn broadcast_from(&self, rank: usize, words: u64, count: usize) {
        let Some(engine) = self.gpu.engine().filter(|_| count > 0) else { return };
        self.gpu.bind();
        let pointer = words as *mut c_void;
        self.on_stream(engine, |stream| {
            // SAFETY: on every rank, the pointer is valid for `count` words.
            self.check(unsafe {
                (self.functions.broadcast)(
                    pointer,
                    pointer,
                    count,
                    ncclDataType_t::ncclFloat32,
                    rank as i32,
                    self.communicator,
                    stream,
                )
            });
        });
    }

    /// Sends to and receives from every other rank at once. `pieces(rank)` is the address and length of what is sent to
    /// `rank` and of where its data are received.
    fn with_others(&self, pieces: impl Fn(usize) -> (u64, usize, u64, usize)) {
        let Some(engine) = self.gpu.engine() else { return };
        self.gpu.bind();
        let (words, communicator) = (ncclDataType_t::ncclFloat32, self.communicator);
        // SAFETY: the pieces lie within the caller's arrays, and the caller has checked that.
        self.on_stream(engine, |stream| unsafe {
            self.check((self.functions.group_start)());
            for rank in (0..self.size).filter(|rank| *rank != self.rank) {
                let (to_send, sent, to_receive, received) = pieces(rank);
                let (to_send, to_receive) = (to_send as *const c_void, to_receive as *mut c_void);
                let peer = rank as i32;
                if sent > 0 {
                    self.check((self.functions.send)(to_send, sent, words, peer, communicator, stream));
                }
                if received > 0 {
                    self.check((self.functions.receive)(to_receive, received, words, peer, communicator, stream));
                }
            }
            self.check((self.functions.group_end)());
        });
    }

    /// Calls `f` with the stream between ranks, in the order of this thread's work.
    fn on_stream(&self, engine: &Engine, f: impl FnOnce(*mut c_void)) {
        let ordered = engine.streams.transfer(|stream| f(stream.cu_stream().cast()));
        ordered.unwrap_or_else(|e| self.gpu.fail("order its streams", e));
    }

    /// Leaves the group after success, once everything sent has arrived; nothing may be sent after this.
    pub fn leave(&self) {
        if !self.has_left.swap(true, Ordering::Relaxed) {
            self.gpu.finish();
            // SAFETY: the communicator was joined once and is left once.
            let _ = unsafe { (self.functions.leave)(self.communicator) };
        }
    }

    fn check(&self, told: ncclResult_t) {
        checked(told, "send and receive").unwrap_or_else(|sentence| super::fail(sentence));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.has_left.load(Ordering::Relaxed) {
            // Something went wrong, and other ranks may have failed too, so this doesn't wait for any of them.
            // SAFETY: the communicator was joined once and is left once.
            let _ = unsafe { (self.functions.abort)(self.communicator) };
        }
    }
}

fn checked(told: ncclResult_t, what: &str) -> Result<(), String> {
    match told {
        ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress => Ok(()),
        ncclResult_t::ncclInvalidUsage => Err(format!(
            "NCCL could not {what}: do two ranks share a GPU? --device cuda gives each its own; NCCL_DEBUG=WARN says more"
        )),
        error => Err(format!("NCCL could not {what}: {error:?}; NCCL_DEBUG=WARN says more")),
    }
}

fn starts(counts: &[usize]) -> Vec<usize> {
    let start = |at: &mut usize, count: &usize| {
        *at += count;
        Some(*at - count)
    };
    counts.iter().scan(0, start).collect()
}
