//! Compiles the kernels' source with NVRTC for one architecture. The compiled kernels are cached on disk under a name
//! derived from source, architecture and compiler.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use cudarc::nvrtc::{result, sys};

use super::libraries::NVRTC;

/// The source of every kernel; files that others depend on come first.
const SOURCES: [&str; 14] = [
    include_str!("kernels/common.cuh"),
    include_str!("kernels/primitives.cuh"),
    include_str!("kernels/elementwise.cu"),
    include_str!("kernels/nf4.cu"),
    include_str!("kernels/rms_norm.cu"),
    include_str!("kernels/rows.cu"),
    include_str!("kernels/head_loss.cu"),
    include_str!("kernels/adamw.cu"),
    include_str!("kernels/attention.cuh"),
    include_str!("kernels/attention_f32.cu"),
    include_str!("kernels/attention_bf16.cu"),
    include_str!("kernels/attention_bf16_backward.cu"),
    include_str!("kernels/philox.cu"),
    include_str!("kernels/predict.cu"),
];

/// The compute capabilities, major and minor in one number, that tests compile the kernels for: Ampere, Hopper,
/// Blackwell.
pub const ARCHITECTURES: [u32; 3] = [80, 90, 100];

/// The kernels for a GPU whose driver supports CUDA up to `newest`. They are read from `cache` if they are there;
/// `use_cached` is false if what is there doesn't load.
pub(super) fn kernels(
    architecture: u32,
    newest: u32,
    cache: Option<&Path>,
    use_cached: bool,
) -> Result<Vec<u8>, String> {
    NVRTC.open(newest)?;
    let source = SOURCES.concat();
    let path = cache.map(|folder| folder.join(name(&source, architecture)));
    if let Some(kept) = path.as_ref().filter(|_| use_cached).and_then(|path| whole(fs::read(path).ok()?)) {
        return Ok(kept);
    }
    let compiled = compile(&source, architecture)?;
    if let Some(path) = path {
        keep(&path, &compiled);
    }
    Ok(compiled)
}

/// Compiles every kernel for a compute capability; this needs no GPU.
///
/// # Errors
/// There is no compiler, or it reports an error.
pub fn compile_for(architecture: u32) -> Result<Vec<u8>, String> {
    kernels(architecture, u32::MAX, None, false)
}

fn name(source: &str, architecture: u32) -> PathBuf {
    let [major, minor] = version();
    format!(
        "weft-{}-sm{architecture}-nvrtc{major}.{minor}-{:016x}.cubin",
        env!("CARGO_PKG_VERSION"),
        hash(source.as_bytes())
    )
    .into()
}

fn version() -> [i32; 2] {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both pointers are valid for a number.
    let _ = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    [major, minor]
}

/// The cached bytes if their checksum matches: the driver isn't told their length and would read past the end.
fn whole(mut kept: Vec<u8>) -> Option<Vec<u8>> {
    let sum = kept.split_off(kept.len().checked_sub(size_of::<u64>())?);
    (sum == hash(&kept).to_le_bytes()).then_some(kept)
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// Writes the file atomically, with its checksum last; if the cache can't be written, nothing is cached.
fn keep(path: &Path, bytes: &[u8]) {
    let bytes = [bytes, &hash(bytes).to_le_bytes()].concat();
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&partial, bytes));
    if written.and_then(|()| fs::rename(&partial, path)).is_err() {
        let _ = fs::remove_file(&partial);
    }
}

fn compile(source: &str, architecture: u32) -> Result<Vec<u8>, String> {
    let [major, minor] = version();
    let error = |what: String| format!("NVRTC {major}.{minor} can't compile the kernels for sm_{architecture}: {what}");
    let source = std::ffi::CString::new(source).expect("the source has no zeros");
    let program = result::create_program(&source, Some(c"weft")).map_err(|e| error(e.to_string()))?;
    let options = [format!("--gpu-architecture=sm_{architecture}"), "--std=c++17".to_owned()];
    // SAFETY: the program was created above and is destroyed below, once.
    unsafe {
        let compiled = result::compile_program(program, &options).map_err(|e| {
            let log = result::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.into_iter().take_while(|c| *c != 0).map(|c| c as u8).collect();
            error(format!("{e} {}", String::from_utf8_lossy(&log).trim()))
        });
        let cubin = compiled.and_then(|()| cubin(program).map_err(|e| error(e.to_string())));
        let _ = result::destroy_program(program);
        cubin
    }
}

/// A compiled program's bytes.
///
/// # Safety
/// The program is compiled and not destroyed.
unsafe fn cubin(program: sys::nvrtcProgram) -> Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    // SAFETY: the caller's promise; the buffer has the length that the first call returned.
    unsafe {
        sys::nvrtcGetCUBINSize(program, &mut size).result()?;
        let mut cubin = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result()?;
        Ok(cubin)
    }
}
