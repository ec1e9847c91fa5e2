//! The program under a real `mpirun`: what the tests of ranks share.
#![allow(dead_code)] // each test binary uses a part

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::scratch::folder;

/// Ends the test where `mpirun` is missing.
macro_rules! needs_mpirun {
    () => {
        if std::process::Command::new("mpirun").arg("--version").output().is_err() {
            eprintln!("SKIPPED: mpirun is not installed; apt-get install openmpi-bin");
            return;
        }
    };
}

/// A recipe of few steps, the last one smaller: 26 rows in global batches of 8.
pub const RECIPE: &str = "[data]\ngenerate = \"sudoku\"\ntrain_rows = 26\nheld_out_rows = 6\n[train]\noutput = \"run\"\n\
                      lr = 1e-3\nepochs = 2\nmicro_batch_size = 2\n[model]\nlora_dropout = 0.1\n";

pub fn start(name: &str, recipe: &str) -> PathBuf {
    let folder = folder(name);
    fs::write(folder.join("recipe.toml"), recipe).expect("the recipe is written");
    folder
}

/// `mpirun -n ranks weft`, or one process without it.
pub fn weft(ranks: usize, folder: &Path, args: &[&str]) -> Command {
    let program = env!("CARGO_BIN_EXE_weft");
    let mut command = match ranks {
        1 => Command::new(program),
        _ => {
            let mut command = Command::new("mpirun");
            command.args(["--oversubscribe", "--allow-run-as-root", "-n", &ranks.to_string(), program]);
            command
        }
    };
    command.args(args).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn train(ranks: usize, folder: &Path, settings: &[&str]) -> Output {
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let args: Vec<&str> = ["train", "recipe.toml", "--threads", "1"].into_iter().chain(settings).collect();
    weft(ranks, folder, &args).output().expect("it starts")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn trained(ranks: usize, folder: &Path, settings: &[&str]) -> Output {
    let output = train(ranks, folder, settings);
    assert!(output.status.success(), "{ranks} ranks: {}", stderr(&output));
    output
}

/// The run's steps as metrics.jsonl has them.
pub fn steps(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("run/metrics.jsonl")).expect("there are metrics");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
    lines.filter(|line| line["loss"].is_f64()).collect()
}

/// What must be the same however many ranks there are.
pub fn essence(folder: &Path) -> Vec<String> {
    let keys =
        ["loss", "nll", "grad_norm", "masked_share", "mean_entropy", "entropy_quantiles", "entropy_drift", "tokens"];
    steps(folder).iter().map(|step| keys.map(|key| step[key].to_string()).join(" ")).collect()
}

pub fn adapter(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("run/adapter/adapter_model.safetensors")).expect("there is an adapter")
}

pub fn checkpoint(folder: &Path) -> HashMap<String, Vec<u32>> {
    let bytes = fs::read(folder.join("run/checkpoint/model.safetensors")).expect("there is a checkpoint");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("it is whole");
    let bits = |data: &[u8]| data.chunks(4).map(|x| u32::from_le_bytes(x.try_into().expect("four"))).collect();
    file.tensors().into_iter().map(|(name, t)| (name, bits(t.data()))).collect()
}
