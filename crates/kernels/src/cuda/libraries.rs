//! NVIDIA's libraries: looked for by name where the system looks, then in the folders where a CUDA toolkit or Python's
//! packages put them. What is found elsewhere is opened by its path, and stays open: its name is then known to the process.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// A library that a card's work needs.
pub(super) struct Needed {
    /// Its file's name, any version of it.
    stem: &'static str,
    /// What it is, and how one comes by it.
    what: &'static str,
    /// Major versions that serve, the best first; the driver has no other name than 1.
    versions: &'static [u32],
    /// Whether it comes with the driver alone.
    is_drivers: bool,
}

/// The driver.
pub(super) const DRIVER: Needed = Needed {
    stem: "libcuda.so",
    what: "NVIDIA's driver; install it, or use --device cpu",
    versions: &[1],
    is_drivers: true,
};
/// The compiler of kernels.
pub(super) const NVRTC: Needed = Needed {
    stem: "libnvrtc.so",
    what: "the compiler of CUDA kernels; `pip install nvidia-cuda-nvrtc` or a CUDA toolkit brings it",
    versions: &[13, 12],
    is_drivers: false,
};
/// Products.
pub(super) const CUBLASLT: Needed = Needed {
    stem: "libcublasLt.so",
    what: "NVIDIA's matrix products; `pip install nvidia-cublas` or a CUDA toolkit brings it",
    versions: &[13, 12],
    is_drivers: false,
};
/// Several cards.
pub(super) const NCCL: Needed = Needed {
    stem: "libnccl.so",
    what: "NVIDIA's communication between cards; `pip install nvidia-nccl-cu13` brings it",
    versions: &[2],
    is_drivers: false,
};

impl Needed {
    /// Makes sure that the library is open.
    ///
    /// # Errors
    /// Which it is and where it was looked for, as one sentence.
    pub(super) fn open(&self) -> Result<(), String> {
        let names = || self.versions.iter().map(|version| format!("{}.{version}", self.stem));
        if names().chain([self.stem.to_owned()]).any(|name| is_opened(Path::new(&name))) {
            return Ok(());
        }
        let folders = if self.is_drivers { vec![] } else { folders() };
        let found = |folder: &PathBuf| names().any(|name| is_opened(&folder.join(name)));
        if folders.iter().any(found) {
            return Ok(());
        }
        let path = env::var("LD_LIBRARY_PATH").unwrap_or_default();
        let path =
            if path.is_empty() { "LD_LIBRARY_PATH (not set)".to_owned() } else { format!("LD_LIBRARY_PATH={path}") };
        let others: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        let others = if others.is_empty() { String::new() } else { format!(", {}", others.join(", ")) };
        let named: Vec<String> = names().collect();
        Err(format!(
            "{} is not to be had: looked for in the system's folders, {path}{others}; it is {}",
            named.join(" or "),
            self.what
        ))
    }
}

/// Opens a library for good.
fn is_opened(path: &Path) -> bool {
    // SAFETY: NVIDIA's libraries run initialisers of their own, as for every program that links them.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map(std::mem::forget).is_ok()
}

/// Where toolkits and Python's packages put libraries, as far as the folders are there.
fn folders() -> Vec<PathBuf> {
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let toolkits = toolkits.chain([PathBuf::from("/usr/local/cuda")]);
    let mut folders: Vec<PathBuf> = toolkits.map(|home| home.join("lib64")).filter(|folder| folder.is_dir()).collect();
    let pythons = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    for lib in pythons.map(|python| python.join("lib")) {
        let is_python =
            |path: &PathBuf| path.file_name().and_then(OsStr::to_str).is_some_and(|n| n.starts_with("python"));
        let nvidia = entries(&lib).filter(is_python).map(|python| python.join("site-packages/nvidia"));
        folders.extend(
            nvidia.flat_map(|nvidia| entries(&nvidia)).map(|package| package.join("lib")).filter(|f| f.is_dir()),
        );
    }
    folders
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries.into_iter()
}
