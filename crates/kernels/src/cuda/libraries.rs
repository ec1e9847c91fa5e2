//! Opens NVIDIA's libraries: by name where the system looks, then in the folders of a CUDA toolkit or of Python's
//! packages. A library found in such a folder is opened by its path and stays open, so that the process then knows its
//! name.

use std::cell::LazyCell;
use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// A library that work on a GPU needs.
pub(super) struct Needed {
    /// The stem of its file name, without a version.
    stem: &'static str,
    /// What it is, and how to get it.
    what: &'static str,
    /// The major versions that work, the best first; the driver's only version is 1.
    versions: &'static [u32],
    /// Whether it comes only with the driver.
    is_drivers: bool,
}

/// The CUDA driver.
pub(super) const DRIVER: Needed = Needed {
    stem: "libcuda.so",
    what: "NVIDIA's driver; install it, or use --device cpu",
    versions: &[1],
    is_drivers: true,
};
/// The compiler of CUDA kernels.
pub(super) const NVRTC: Needed = Needed {
    stem: "libnvrtc.so",
    what: "the compiler of CUDA kernels; `pip install nvidia-cuda-nvrtc` or a CUDA toolkit installs it",
    versions: &[13, 12],
    is_drivers: false,
};
/// The library of matmuls.
pub(super) const CUBLASLT: Needed = Needed {
    stem: "libcublasLt.so",
    what: "NVIDIA's matmul library; `pip install nvidia-cublas` or a CUDA toolkit installs it",
    versions: &[13, 12],
    is_drivers: false,
};
/// The library of communication between GPUs.
pub(super) const NCCL: Needed = Needed {
    stem: "libnccl.so",
    what: "NVIDIA's library for communication between GPUs; `pip install nvidia-nccl-cu13` installs it",
    versions: &[2],
    is_drivers: false,
};

impl Needed {
    /// Makes sure that the library is open: by its name where the system looks, then in the other folders. It takes the
    /// newest version that works, up to the `newest` CUDA version that the driver supports.
    ///
    /// # Errors
    /// One sentence that names the library and says where it was looked for.
    pub(super) fn open(&self, newest: u32) -> Result<(), String> {
        let folders = LazyCell::new(|| if self.is_drivers { vec![] } else { folders() });
        let versions = self.versions.iter().filter(|version| **version <= newest);
        let names: Vec<String> = versions.map(|version| format!("{}.{version}", self.stem)).collect();
        let is_found = |name: &String| {
            let in_folders = || folders.iter().map(|folder| folder.join(name)).filter(|path| path.exists());
            is_opened(Path::new(name)) || in_folders().any(|path| self.is_opened_at(&path))
        };
        if names.iter().any(is_found) || is_opened(Path::new(self.stem)) {
            return Ok(());
        }
        let path = env::var("LD_LIBRARY_PATH").unwrap_or_default();
        let path = if path.is_empty() { "(not set)".to_owned() } else { format!("= {path}") };
        let others: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        let others = if others.is_empty() { String::new() } else { format!(", {}", others.join(", ")) };
        Err(format!(
            "{} was not found in the system's folders, LD_LIBRARY_PATH {path}{others}; it is {}",
            names.join(" or "),
            self.what
        ))
    }

    /// Opens the library at a path. NVRTC looks for its second library by name alone, and not every package tells the
    /// loader where that is, so the second library is opened first.
    fn is_opened_at(&self, path: &Path) -> bool {
        let prefix = format!("{}-builtins.so.", self.stem.trim_end_matches(".so"));
        let is_second = |path: &PathBuf| name_of(path).starts_with(&prefix);
        let folder = path.parent().unwrap_or(Path::new("."));
        entries(folder).filter(is_second).for_each(|second| {
            is_opened(&second);
        });
        is_opened(path)
    }
}

/// Opens a library and never closes it.
fn is_opened(path: &Path) -> bool {
    // SAFETY: NVIDIA's libraries run their own initialisers, as in every program that links them.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map(std::mem::forget).is_ok()
}

/// The existing folders in which toolkits and Python's packages put libraries.
fn folders() -> Vec<PathBuf> {
    let of_variables = |names: &[&str]| names.iter().filter_map(env::var_os).map(PathBuf::from).collect::<Vec<_>>();
    let toolkits = [of_variables(&["CUDA_HOME", "CUDA_PATH"]), vec![PathBuf::from("/usr/local/cuda")]].concat();
    // Python's prefixes: of an environment, of a program on PATH, of the user, and of the system.
    let mut prefixes = of_variables(&["VIRTUAL_ENV", "CONDA_PREFIX"]);
    let programs = env::var_os("PATH").unwrap_or_default();
    prefixes.extend(env::split_paths(&programs).filter_map(|folder| folder.parent().map(Path::to_owned)));
    prefixes.extend(env::var_os("HOME").map(|home| PathBuf::from(home).join(".local")));
    prefixes.extend(["/opt/conda", "/usr/local", "/usr"].map(PathBuf::from));
    let is_python = |path: &PathBuf| name_of(path).starts_with("python");
    let packages = |python: PathBuf| ["site-packages", "dist-packages"].map(|kind| python.join(kind).join("nvidia"));
    let libs = prefixes.iter().map(|prefix| prefix.join("lib"));
    let nvidia = libs.flat_map(|lib| entries(&lib)).filter(is_python).flat_map(packages);
    let of_python = nvidia.flat_map(|nvidia| entries(&nvidia)).map(|package| package.join("lib"));
    let all = toolkits.iter().map(|home| home.join("lib64")).chain(of_python);
    let mut folders: Vec<PathBuf> = vec![];
    for folder in all.filter(|folder| folder.is_dir()) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries.into_iter()
}
