//! A GPU's two streams: one computes, and the other moves numbers between ranks beside it. A thread's work goes to the
//! first stream unless a [`Beside`] is alive; work that uses what the other stream wrote must wait for its mark first.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError};

thread_local! {
    static IS_BESIDE: Cell<bool> = const { Cell::new(false) };
}

/// The two streams of a GPU.
#[derive(Debug)]
pub(super) struct Streams {
    compute: Arc<CudaStream>,
    transfer: Arc<CudaStream>,
}

/// While this guard lives, this thread's work goes to the stream that moves numbers between ranks.
#[derive(Debug)]
pub struct Beside {
    was_beside: bool,
    /// The guard is valid on one thread only.
    _thread: PhantomData<*const ()>,
}

impl Beside {
    /// Redirects this thread's work until the guard is dropped.
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

    /// The stream for this thread's work.
    pub(super) fn current(&self) -> &Arc<CudaStream> {
        if IS_BESIDE.get() { &self.transfer } else { &self.compute }
    }

    /// The stream that computes.
    pub(super) fn compute(&self) -> &Arc<CudaStream> {
        &self.compute
    }

    /// Calls `f` with the stream between ranks. What `f` starts runs after everything this thread has asked for so far
    /// and before everything it asks for later. So every rank's calls reach the communicator in the order of one
    /// stream.
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

    /// Makes it safe to free memory on `owner`, the stream that allocated it: everything this thread has asked for is
    /// done first.
    pub(super) fn release(&self, owner: &Arc<CudaStream>) -> Result<(), DriverError> {
        let current = self.current();
        if Arc::ptr_eq(owner, current) { Ok(()) } else { owner.join(current) }
    }

    /// Returns when both streams are idle.
    pub(super) fn synchronize(&self) -> Result<(), DriverError> {
        self.compute.synchronize()?;
        self.transfer.synchronize()
    }
}
