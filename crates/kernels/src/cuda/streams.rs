//! A GPU's two streams: one computes, and one moves numbers between ranks beside it. A thread's work goes to the first
//! unless it is within [`Beside`]; who uses what the other stream wrote waits for its mark first.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError};

thread_local! {
    static IS_BESIDE: Cell<bool> = const { Cell::new(false) };
}

/// The streams.
#[derive(Debug)]
pub(super) struct Streams {
    compute: Arc<CudaStream>,
    transfer: Arc<CudaStream>,
}

/// While it lives, this thread's work goes to the stream that moves numbers between ranks.
#[derive(Debug)]
pub struct Beside {
    was_beside: bool,
    /// It speaks of one thread.
    _thread: PhantomData<*const ()>,
}

impl Beside {
    /// Begins it.
    pub fn begin() -> Self {
        Self { was_beside: IS_BESIDE.replace(true), _thread: PhantomData }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        IS_BESIDE.set(self.was_beside);
    }
}

impl Streams {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        Ok(Self { compute: context.new_stream()?, transfer: context.new_stream()? })
    }

    /// The stream of this thread's work.
    pub(super) fn current(&self) -> &Arc<CudaStream> {
        if IS_BESIDE.get() { &self.transfer } else { &self.compute }
    }

    /// The stream that computes.
    pub(super) fn compute(&self) -> &Arc<CudaStream> {
        &self.compute
    }

    /// Calls `f` with the stream between ranks, where it runs behind all that this thread has asked for; what this thread
    /// asks for from then on runs behind it. Every rank's calls reach the communicator in one stream's order so.
    pub(super) fn transfer<R>(&self, f: impl FnOnce(&Arc<CudaStream>) -> R) -> Result<R, DriverError> {
        let is_other = !IS_BESIDE.get();
        if is_other {
            self.transfer.join(&self.compute)?;
        }
        let result = f(&self.transfer);
        if is_other {
            self.compute.join(&self.transfer)?;
        }
        Ok(result)
    }

    /// Makes memory that was taken on `owner` safe to give back there: all that this thread has asked for is done first.
    pub(super) fn release(&self, owner: &Arc<CudaStream>) -> Result<(), DriverError> {
        let current = self.current();
        if Arc::ptr_eq(owner, current) { Ok(()) } else { owner.join(current) }
    }

    /// Returns when both have done everything.
    pub(super) fn synchronize(&self) -> Result<(), DriverError> {
        self.compute.synchronize()?;
        self.transfer.synchronize()
    }
}
