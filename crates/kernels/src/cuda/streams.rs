//! A GPU's streams: one computes, one moves numbers between ranks beside it, and one dequantises the next weight. A
//! thread's work goes to the first stream unless a [`Beside`] is alive; work that uses what another stream wrote must wait
//! for its mark first.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError};

thread_local! {
    static CURRENT: Cell<Stream> = const { Cell::new(Stream::Compute) };
}

/// One of a GPU's streams.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stream {
    Compute,
    Transfer,
    Dequantize,
}

/// The streams of a GPU.
#[derive(Debug)]
pub(super) struct Streams {
    compute: Arc<CudaStream>,
    transfer: Arc<CudaStream>,
    dequantize: Arc<CudaStream>,
}

/// While this guard lives, this thread's work goes to another stream than the one that computes.
#[derive(Debug)]
pub struct Beside {
    before: Stream,
    /// The guard is valid on one thread only.
    _thread: PhantomData<*const ()>,
}

impl Beside {
    /// Redirects this thread's work to the stream between ranks until the guard is dropped.
    pub fn begin() -> Self {
        Self { before: CURRENT.replace(Stream::Transfer), _thread: PhantomData }
    }

    /// Redirects this thread's work to the stream that dequantises until the guard is dropped.
    pub(super) fn dequantize() -> Self {
        Self { before: CURRENT.replace(Stream::Dequantize), _thread: PhantomData }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

impl Streams {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let stream = || context.new_stream();
        Ok(Self { compute: stream()?, transfer: stream()?, dequantize: stream()? })
    }

    /// The stream for this thread's work.
    pub(super) fn current(&self) -> &Arc<CudaStream> {
        match CURRENT.get() {
            Stream::Compute => &self.compute,
            Stream::Transfer => &self.transfer,
            Stream::Dequantize => &self.dequantize,
        }
    }

    /// The stream that computes.
    pub(super) fn compute(&self) -> &Arc<CudaStream> {
        &self.compute
    }

    /// Calls `f` with the stream between ranks. What `f` starts runs after everything this thread has asked for so far
    /// and before everything it asks for later. So every rank's calls reach the communicator in the order of one
    /// stream.
    pub(super) fn transfer<R>(&self, f: impl FnOnce(&Arc<CudaStream>) -> R) -> Result<R, DriverError> {
        let is_other = CURRENT.get() != Stream::Transfer;
        if is_other {
            self.transfer.join(&self.compute)?;
        }
        let result = f(&self.transfer);
        if is_other {
            self.compute.join(&self.transfer)?;
        }
        Ok(result)
    }

    /// Makes it safe to free memory on `owner`, the stream that allocated it: everything this thread has asked for is
    /// done first.
    pub(super) fn release(&self, owner: &Arc<CudaStream>) -> Result<(), DriverError> {
        let current = self.current();
        if Arc::ptr_eq(owner, current) { Ok(()) } else { owner.join(current) }
    }

    /// Returns when all streams are idle.
    pub(super) fn synchronize(&self) -> Result<(), DriverError> {
        [&self.compute, &self.transfer, &self.dequantize].into_iter().try_for_each(|stream| stream.synchronize())
    }
}
