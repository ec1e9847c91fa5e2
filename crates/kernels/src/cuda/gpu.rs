//! A GPU: its context, its streams, the kernels, and how much of its memory is in use. Without an engine it is a meta
//! GPU, which counts the memory of a run and computes nothing; `weft plan` uses it to predict a GPU's memory.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use cudarc::driver::sys::{
    CUdevice_attribute, CUevent_flags, CUfunction_attribute, CUmemPool_attribute, cuDriverGetVersion,
    cuMemPoolSetAttribute, cuMemPoolTrimTo,
};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaStream, DriverError, LaunchConfig, PushKernelArg, result,
};
use cudarc::nvrtc::Ptx;

use super::compile;
use super::fail;
use super::libraries::{CUBLASLT, DRIVER};
use super::matmul::{Matmuls, WORKSPACE};
use super::nf4::Scratch;
use super::streams::Streams;
use super::work::{Counter, Launches, Work};

/// The first driver version with every function that is called: CUDA 12.8.
const DRIVER_VERSION: i32 = 12_080;
/// The first compute capability with bf16 matmuls.
const CAPABILITY: u32 = 80;
/// How much shared memory a block gets without a request for more.
const SHARED: u32 = 48 << 10;

/// A GPU.
#[derive(Debug)]
pub struct Gpu {
    engine: Option<Engine>,
    used: AtomicUsize,
    most_used: AtomicUsize,
    counter: Counter,
    /// The scratch matrices of quantised weights, while there are such weights.
    pub(super) scratch: Mutex<Weak<Scratch>>,
}

/// The part of a GPU that computes.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) streams: Streams,
    functions: HashMap<&'static str, CudaFunction>,
    pub(super) matmuls: Matmuls,
    name: String,
}

/// A point in a GPU's work.
#[derive(Debug)]
pub struct Mark(Option<CudaEvent>);

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg {
    /// The address of a range, and how many bytes of it are read or written.
    Numbers(u64, usize),
    /// The address of numbers whose bytes don't count, because they are few or counted elsewhere.
    Pointer(u64),
    F32(f32),
    F64(f64),
    I32(i32),
    I64(i64),
}

/// The blocks of a launch and what each of them has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) blocks: [usize; 3],
    pub(super) threads: u32,
    /// Bytes of dynamic shared memory per block.
    pub(super) shared: u32,
    /// Operations of the matmuls within the kernel, and whether their operands are bf16; else they are f32.
    pub(super) operations: (u64, bool),
}

impl Grid {
    /// A grid with one thread for each of `count` items.
    pub(super) fn over(count: usize) -> Self {
        Self { blocks: [count.div_ceil(256), 1, 1], threads: 256, shared: 0, operations: (0, false) }
    }

    /// A grid with a block for each of `rows` rows.
    pub(super) fn rows(rows: usize, threads: u32) -> Self {
        Self { blocks: [rows, 1, 1], threads, shared: 0, operations: (0, false) }
    }
}

impl Gpu {
    /// Opens the GPU with the given index, counted from 0; compiled kernels are cached in `cache`.
    ///
    /// # Errors
    /// A sentence that says which library or GPU is missing or too old.
    pub fn open(ordinal: usize, cache: Option<&Path>) -> Result<Arc<Self>, String> {
        DRIVER.open(u32::MAX)?;
        let context = context(ordinal)?;
        let told = |what: &'static str| move |e: DriverError| format!("GPU {ordinal}: {what}: {e}");
        let name = context.name().map_err(told("its name"))?;
        let (major, minor) = context.compute_capability().map_err(told("its capability"))?;
        let capability = (10 * major + minor) as u32;
        if capability < CAPABILITY {
            return Err(format!(
                "GPU {ordinal}, {name}, has compute capability {major}.{minor}, and matmuls of bf16 need 8.0; use \
                 another GPU or --device cpu"
            ));
        }
        let newest = driver_version() as u32 / 1000;
        CUBLASLT.open(newest)?;
        // SAFETY: `Streams` orders the work of both streams where one reads or gives back what the other uses.
        unsafe { context.disable_event_tracking() };
        keep_freed_memory(&context).map_err(told("its memory pool"))?;
        let streams = Streams::new(&context).map_err(told("a stream"))?;
        let functions = functions(&context, (capability, newest), cache)?;
        let matmuls = Matmuls::new(streams.compute())?;
        let engine = Engine { streams, functions, matmuls, name };
        Ok(Self::with(Some(engine)))
    }

    /// The number of this machine's GPUs that the driver shows to this process.
    pub fn count() -> usize {
        let is_there = DRIVER.open(u32::MAX).is_ok() && result::init().is_ok();
        if is_there { CudaContext::device_count().unwrap_or(0) as usize } else { 0 }
    }

    /// Whether there is a driver that can list GPUs.
    pub fn has_driver() -> bool {
        DRIVER.open(u32::MAX).is_ok()
    }

    /// A meta GPU, which has no engine and computes nothing.
    pub fn meta() -> Arc<Self> {
        Self::with(None)
    }

    fn with(engine: Option<Engine>) -> Arc<Self> {
        let (used, most_used) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { engine, used, most_used, counter: Counter::default(), scratch: Mutex::default() })
    }

    /// Starts counting what kernels do. A GPU that computes also measures their time, which slows it down a little.
    pub fn start_counting(&self) {
        self.counter.start();
    }

    /// Stops counting once all work is done. Equal launches are grouped, and those that took longest come first.
    pub fn stop_counting(&self) -> Vec<Launches> {
        self.finish();
        self.counter.stop()
    }

    /// Counts a launch; on a GPU that computes, `start` launches it.
    pub(super) fn counted<E>(
        &self,
        kernel: &str,
        work: Work,
        start: impl FnOnce(&Engine) -> Result<(), E>,
    ) -> Result<(), E> {
        let is_counting = self.counter.is_on();
        let Some(engine) = &self.engine else {
            self.counter.add(kernel, work, None);
            return Ok(());
        };
        let event = || engine.stream().record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let before = is_counting.then(event);
        start(engine)?;
        if let Some((Ok(before), Ok(after))) = before.map(|before| (before, event())) {
            self.counter.add(kernel, work, Some([before, after]));
        }
        Ok(())
    }

    /// The GPU's name.
    pub fn name(&self) -> &str {
        self.engine.as_ref().map_or("a meta GPU", |engine| &engine.name)
    }

    /// Bytes that a run can use: those that are free, and those that this process has already.
    pub fn available_bytes(&self) -> usize {
        self.memory()[0].saturating_add(self.used_bytes()).saturating_add(WORKSPACE)
    }

    /// Bytes of the GPU's memory: free and total.
    pub fn memory(&self) -> [usize; 2] {
        let Some(engine) = &self.engine else { return [usize::MAX; 2] };
        let (free, all) = engine.stream().context().mem_get_info().unwrap_or((0, 0));
        [free, all]
    }

    /// Bytes in use now, without the workspace of matmuls.
    pub fn used_bytes(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The most bytes that have been in use at once so far.
    pub fn most_used_bytes(&self) -> usize {
        self.most_used.load(Ordering::Relaxed)
    }

    /// Resets the peak to what is in use now.
    pub fn forget_most_used(&self) {
        self.most_used.store(self.used.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Returns unused memory to the driver, once all work is done.
    pub(super) fn give_back_spare(&self) {
        let Some(engine) = &self.engine else { return };
        let _ = engine.streams.synchronize();
        // SAFETY: the pool belongs to the device.
        let _ = unsafe {
            result::device::get_default_mem_pool(engine.stream().context().cu_device())
                .and_then(|pool| cuMemPoolTrimTo(pool, 0).result())
        };
    }

    /// Returns when all work asked for is done.
    pub fn finish(&self) {
        if let Some(engine) = &self.engine {
            engine.stream().synchronize().unwrap_or_else(|e| self.fail("finish its work", e));
        }
    }

    /// The point at which everything asked for so far is done.
    pub fn mark(&self) -> Mark {
        let record = |engine: &Engine| engine.stream().record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        Mark(self.engine.as_ref().map(|engine| record(engine).unwrap_or_else(|e| self.fail("mark its work", e))))
    }

    /// Makes the work that this thread asks for from now on wait for a mark.
    pub fn wait_for(&self, mark: &Mark) {
        if let (Some(engine), Some(event)) = (&self.engine, &mark.0) {
            engine.stream().wait(event).unwrap_or_else(|e| self.fail("wait for its other stream", e));
        }
    }

    /// Makes the GPU's context current on this thread.
    pub(super) fn bind(&self) {
        if let Some(engine) = &self.engine {
            engine.stream().context().bind_to_thread().unwrap_or_else(|e| self.fail("be asked from this thread", e));
        }
    }

    pub(super) fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()
    }

    pub(super) fn take(&self, bytes: usize) {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.most_used.fetch_max(used, Ordering::Relaxed);
    }

    pub(super) fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Launches a kernel.
    ///
    /// # Safety
    /// The arguments match the kernel's parameters, and what they point to lives while the kernel reads and writes it.
    pub(super) unsafe fn launch(&self, kernel: &str, grid: Grid, args: &[Arg]) {
        if grid.blocks.contains(&0) {
            return;
        }
        let bytes = |arg: &Arg| if let Arg::Numbers(_, bytes) = arg { *bytes as u64 } else { 0 };
        let (operations, is_bf16) = grid.operations;
        let work = Work { operations, is_bf16, bytes: args.iter().map(bytes).sum() };
        // SAFETY: the caller's promise.
        let started = self.counted(kernel, work, |engine| unsafe { self.start(engine, kernel, grid, args) });
        started.unwrap_or_else(|e| self.fail(&format!("run {kernel}"), e));
    }

    /// Launches a kernel on an engine.
    ///
    /// # Safety
    /// As for [`Gpu::launch`].
    unsafe fn start(&self, engine: &Engine, kernel: &str, grid: Grid, args: &[Arg]) -> Result<(), DriverError> {
        let function = &engine.functions.get(kernel).unwrap_or_else(|| panic!("no kernel has the name {kernel}"));
        if grid.shared > SHARED {
            let wanted = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let set = function.set_attribute(wanted, grid.shared as i32);
            set.unwrap_or_else(|e| self.fail(&format!("give {kernel} its shared memory"), e));
        }
        let mut launch = engine.stream().launch_builder(function);
        for arg in args {
            match arg {
                Arg::Numbers(x, _) | Arg::Pointer(x) => launch.arg(x),
                Arg::F32(x) => launch.arg(x),
                Arg::F64(x) => launch.arg(x),
                Arg::I32(x) => launch.arg(x),
                Arg::I64(x) => launch.arg(x),
            };
        }
        let [x, y, z] = grid.blocks.map(|n| u32::try_from(n).expect("a grid of fewer than 2^32 blocks"));
        let config =
            LaunchConfig { grid_dim: (x, y, z), block_dim: (grid.threads, 1, 1), shared_mem_bytes: grid.shared };
        // SAFETY: the caller's promise.
        unsafe { launch.launch(config) }.map(|_| ())
    }

    /// Unwinds with a sentence that says what the GPU couldn't do.
    pub(super) fn fail(&self, what: &str, error: impl std::fmt::Display) -> ! {
        fail(format!("GPU {} could not {what}: {error}", self.name()))
    }
}

impl Engine {
    /// The stream for this thread's work.
    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        self.streams.current()
    }
}

impl Mark {
    /// Whether the work before it is done.
    pub fn has_passed(&self) -> bool {
        self.0.as_ref().is_none_or(CudaEvent::is_complete)
    }

    /// Seconds since an earlier mark.
    pub fn seconds_since(&self, earlier: &Self) -> f64 {
        let (Some(this), Some(earlier)) = (&self.0, &earlier.0) else { return 0.0 };
        earlier.elapsed_ms(this).map_or(0.0, |ms| f64::from(ms) * 1e-3)
    }
}

/// The driver's text for an error, without its number.
fn in_words(error: &DriverError) -> String {
    error.error_string().map_or_else(|_| error.to_string(), |words| words.to_string_lossy().into_owned())
}

/// The CUDA version that the driver supports, 13020 for 13.2.
fn driver_version() -> i32 {
    let mut version = 0;
    // SAFETY: the pointer is valid for a number.
    let _ = unsafe { cuDriverGetVersion(&mut version) };
    version
}

/// The context of one of the machine's GPUs.
fn context(ordinal: usize) -> Result<Arc<CudaContext>, String> {
    result::init().map_err(|e| format!("no GPU can be used here ({}); use --device cpu", in_words(&e)))?;
    let version = driver_version();
    if version < DRIVER_VERSION {
        let told = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
        let (has, wants) = (told(version), told(DRIVER_VERSION));
        return Err(format!("NVIDIA's driver supports CUDA {has}, but Weft needs {wants}; install a newer driver"));
    }
    let count = CudaContext::device_count().unwrap_or(0) as usize;
    if ordinal >= count {
        let gpus = if count == 1 { "1 GPU".to_owned() } else { format!("{count} GPUs") };
        return Err(format!("this machine has {gpus}, counted from 0"));
    }
    CudaContext::new(ordinal).map_err(|e| format!("GPU {ordinal} can't be opened: {e}"))
}

/// Makes the pool keep freed memory for later requests, as an allocator does.
fn keep_freed_memory(context: &CudaContext) -> Result<(), DriverError> {
    let pools = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)?;
    if pools == 0 {
        return Ok(());
    }
    let mut all = u64::MAX;
    let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool belongs to the device, and the attribute is a 64-bit number.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        cuMemPoolSetAttribute(pool, threshold, (&raw mut all).cast()).result()
    }
}

/// All kernels by name.
fn functions(
    context: &Arc<CudaContext>,
    (capability, newest): (u32, u32),
    cache: Option<&Path>,
) -> Result<HashMap<&'static str, CudaFunction>, String> {
    let load = |use_cached: bool| -> Result<_, String> {
        let cubin = compile::kernels(capability, newest, cache, use_cached)?;
        context.load_module(Ptx::from_binary(cubin)).map_err(|e| format!("the compiled kernels can't be loaded: {e}"))
    };
    let named = |use_cached: bool| -> Result<_, String> {
        let module = load(use_cached)?;
        let function = |name: &'static str| {
            let function = module.load_function(name).map_err(|e| format!("the kernel {name} can't be loaded: {e}"))?;
            Ok((name, function))
        };
        super::KERNELS.iter().copied().map(function).collect()
    };
    named(true).or_else(|_| named(false))
}
