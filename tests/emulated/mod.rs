//! The program on a GPU that the CPU emulates (tests/cuda_emulator): its own binary, with libraries that stand for
//! NVIDIA's. What this can't show is a real GPU's speed, and what happens where work isn't done at once.
#![allow(dead_code)] // each test binary uses a part

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;

/// Ends the test where the emulator can't be built.
macro_rules! needs_emulator {
    () => {
        if let Err(reason) = &*crate::emulated::LIBRARIES {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "SKIPPED: no GPU is emulated: {reason}");
            return;
        }
    };
}

/// The folder of the emulator's libraries.
pub static LIBRARIES: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_emulator");
    if Command::new("g++").arg("--version").output().is_err() {
        return Err("g++ is not installed; apt-get install g++".to_owned());
    }
    // Test binaries run one after the other, but a run of one may meet another's.
    fs::create_dir_all(&folder).expect("the folder is made");
    let lock = fs::File::create(folder.join("lock")).expect("the lock is made");
    lock.lock().expect("the lock is taken");
    let built = Command::new(root.join("tests/cuda_emulator/build.sh")).arg(&folder).output().expect("it starts");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Ok(folder)
});

/// The program with the emulator's libraries and nobody's cache; `cache` is where it keeps kernels.
pub fn command(cache: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.env("LD_LIBRARY_PATH", LIBRARIES.as_ref().expect("the emulator is built"));
    command.env("WEFT_CACHE", cache);
    // No library from elsewhere, and no wish.
    for name in ["VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_HOME", "CUDA_PATH", "WEFT_DEVICE"] {
        command.env_remove(name);
    }
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a command prints; it succeeds.
pub fn succeeds(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?}\n{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The sentence that a command ends with, and its exit status.
pub fn fails(command: &mut Command) -> (String, i32) {
    let Output { status, stderr, .. } = command.output().expect("the program starts");
    let stderr = text(&stderr);
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(errors.len(), 1, "one sentence: {stderr}");
    (errors[0].to_owned(), status.code().expect("it exits"))
}

/// A training of a few steps into a folder.
pub const SMALL: [&str; 9] = [
    "train.micro_batch_size=2",
    "train.grad_accum_steps=2",
    "train.max_steps=2",
    "data.train_rows=32",
    "data.held_out_rows=4",
    "eval.limit=1",
    "eval.samples=0",
    "sampler.gen_length=16",
    "sampler.block_length=16",
];

pub fn train<'a>(command: &'a mut Command, device: &str, output: &Path, settings: &[&str]) -> &'a mut Command {
    command.args(["train", "--quiet", "--device", device, "--set", &format!("train.output={}", output.display())]);
    for setting in SMALL.iter().chain(&["sampler.diffusion_steps=2", "train.checkpoint_every=1"]).chain(settings) {
        command.args(["--set", setting]);
    }
    command
}

/// A run's numbers of one kind, step by step.
pub fn metrics(output: &Path, key: &str) -> Vec<f64> {
    let lines = fs::read_to_string(output.join("metrics.jsonl")).expect("the run wrote its metrics");
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
    lines.filter_map(|line| line[key].as_f64()).collect()
}
