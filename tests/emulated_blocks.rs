//! Block diffusion on an emulated GPU: PyTorch's numbers in f32 and bf16 with threads in another order, trainings beside
//! the CPU's, and runs that nothing but the seed changes.

#[macro_use]
mod emulated;
mod scratch;

use std::fs;
use std::path::Path;

use emulated::{command, metrics, succeeds, train};
use scratch::folder;

fn golden(family: &str, file: &str) -> String {
    format!("{}/tests/golden/{family}/{file}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn pytorchs_numbers_of_block_diffusion_hold_on_a_gpu() {
    needs_emulator!();
    let cache = folder("emulated-blocks");
    for (family, block_length) in [("a2d-qwen3", "8"), ("a2d-qwen2", "4")] {
        let reference = golden(family, "bd3lm.safetensors");
        for (dtype, order) in [("f32", "forward"), ("f32", "shuffled"), ("bf16", "shuffled")] {
            let mut weft = command(&cache);
            weft.args(["parity", "--device", "cuda", "--model", &golden(family, ""), "--reference", &reference]);
            weft.args(["--blocks", "bd3lm", "--block-length", block_length, "--dtype", dtype]);
            let told = succeeds(weft.env("EMULATED_CUDA_ORDER", order));
            assert!(told.contains("every quantity is within"), "{told}");
        }
    }
}

#[test]
fn a_training_in_blocks_is_the_cpus() {
    needs_emulator!();
    let folder = folder("emulated-blocks-training");
    for (name, settings) in [
        ("bd3lm", ["objective.blocks=bd3lm", "objective.block_length=8", "model.lora_dropout=0.1"]),
        ("blockwise", ["objective.blocks=blockwise", "objective.block_length=8", "model.lora_dropout=0.1"]),
    ] {
        let [cpu, gpu] = ["cpu", "cuda"].map(|device| {
            let output = folder.join(format!("{name}-{device}"));
            succeeds(train(&mut command(&folder), device, &output, &settings));
            output
        });
        for key in ["loss", "grad_norm", "held_out_nll_bound", "mean_entropy"] {
            let [cpu, gpu] = [&cpu, &gpu].map(|output| metrics(output, key));
            assert!(cpu.len() == gpu.len() && !cpu.is_empty(), "{name}: {key}");
            for (cpu, gpu) in cpu.iter().zip(&gpu) {
                assert!((cpu - gpu).abs() <= 1e-4 * cpu.abs(), "{name}: {key} {cpu} on the CPU, {gpu} on a GPU");
            }
        }
        let text = fs::read_to_string(gpu.join("results.json")).expect("it ended");
        let results: serde_json::Value = serde_json::from_str(&text).expect("results are JSON");
        let [used, planned] = ["peak_memory_bytes", "planned_memory_bytes"].map(|key| results[key].as_f64());
        let (used, planned) = (used.expect("bytes"), planned.expect("bytes"));
        assert!((used / planned - 1.0).abs() < 0.03, "{name}: {used} bytes of the GPU, {planned} were planned");
    }
}

#[test]
fn a_resumed_run_in_blocks_changes_no_bit() {
    needs_emulator!();
    let folder = folder("emulated-blocks-bits");
    let adapter = |output: &Path| fs::read(output.join("adapter/adapter_model.safetensors")).expect("it was saved");
    let settings = ["objective.blocks=bd3lm", "objective.block_length=4", "model.precision=bf16"];
    let (whole, again) = (folder.join("whole"), folder.join("again"));
    succeeds(train(&mut command(&folder), "cuda", &whole, &settings));
    succeeds(train(&mut command(&folder), "cuda", &again, &settings).env("EMULATED_CUDA_ORDER", "reverse"));
    assert!(adapter(&whole) == adapter(&again), "the same run in another order of threads");
    fs::remove_dir_all(again.join("checkpoints/step-00000002")).expect("the second checkpoint is there");
    fs::remove_file(again.join("results.json")).expect("the run ended");
    succeeds(train(&mut command(&folder), "cuda", &again, &settings).arg("--resume"));
    assert!(adapter(&whole) == adapter(&again), "a resumed run");
}

#[test]
fn sampling_in_blocks_is_the_cpus() {
    needs_emulator!();
    let folder = folder("emulated-blocks-sampling");
    let of = |device: &str, more: &[&str]| {
        let mut weft = command(&folder);
        weft.args(["generate", "--model", "tiny-base", "--device", device, "--raw", "--prompt", "Sudoku 12 = "]);
        weft.args([
            "--gen-length",
            "20",
            "--diffusion-steps",
            "10",
            "--attention",
            "block-causal",
            "--block-length",
            "8",
        ]);
        succeeds(weft.args(more))
    };
    for more in [&[][..], &["--cfg-scale", "1"]] {
        assert_eq!(of("cpu", more), of("cuda", more), "{more:?}");
    }
}
