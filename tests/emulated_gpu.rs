//! Whole commands on an emulated GPU: the goldens, trainings beside the CPU's, what must not change a bit, what a plan
//! says, and what is told where something is missing.

#[macro_use]
mod emulated;
mod scratch;

use std::fs;
use std::path::Path;

use emulated::{LIBRARIES, command, fails, metrics, succeeds, text, train};
use scratch::folder;
use serde_json::Value;

fn golden(family: &str, file: &str) -> String {
    format!("{}/tests/golden/{family}/{file}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn pytorchs_numbers_hold_on_a_gpu() {
    needs_emulator!();
    let cache = folder("emulated-goldens");
    for family in ["llada", "dream", "a2d-qwen3"] {
        let model = golden(family, "");
        let own = ["--reference", &golden(family, "objectives.safetensors")].map(str::to_owned).to_vec();
        let adapted = ["--adapter", &golden(family, "lora/adapter"), "--reference"].map(str::to_owned).to_vec();
        let adapted = [adapted, vec![golden(family, "lora/objectives.safetensors")]].concat();
        let sampled =
            ["--sampling", &golden(family, "sampling.safetensors"), "--cases", &golden(family, "sampling.json")];
        for reference in [own, adapted, sampled.map(str::to_owned).to_vec()] {
            // Threads in another order: where a barrier is missing, the numbers are others.
            for order in ["forward", "shuffled"] {
                let mut weft = command(&cache);
                weft.args(["parity", "--device", "cuda", "--model", &model]).args(&reference);
                let told = succeeds(weft.env("EMULATED_CUDA_ORDER", order));
                assert!(told.contains("every quantity is within 1e-4"), "{told}");
            }
        }
    }
}

#[test]
fn a_training_is_the_cpus() {
    needs_emulator!();
    let folder = folder("emulated-training");
    // In bf16 the same tokens are masked by SFT alone: entropies that are rounded otherwise make other rates.
    let bf16 = ["model.precision=bf16", "objective.kind=sft"];
    let [dropout, full] = [["model.lora_dropout=0.1"; 2], ["model.trainable=full", "train.lr=1e-4"]];
    let nf4 = ["model.quantize=nf4", "model.lora_dropout=0.1"];
    let trainings: [(&str, &[&str], f64); 6] = [
        ("lora", &dropout, 1e-4),
        ("lora-bf16", &[dropout, bf16].concat(), 5e-2),
        ("nf4", &nf4, 1e-4),
        ("nf4-bf16", &[nf4, bf16].concat(), 5e-2),
        ("full", &full, 1e-4),
        ("full-bf16", &[full, bf16].concat(), 5e-2),
    ];
    for (name, settings, tolerance) in trainings {
        let [cpu, gpu] = ["cpu", "cuda"].map(|device| {
            let output = folder.join(format!("{name}-{device}"));
            succeeds(train(&mut command(&folder), device, &output, settings));
            output
        });
        for key in ["loss", "grad_norm", "held_out_nll_bound", "mean_entropy"] {
            let [cpu, gpu] = [&cpu, &gpu].map(|output| metrics(output, key));
            assert_eq!(cpu.len(), gpu.len(), "{name}: {key}");
            assert!(!cpu.is_empty() || key == "mean_entropy", "{name}: {key}");
            for (cpu, gpu) in cpu.iter().zip(&gpu) {
                assert!((cpu - gpu).abs() <= tolerance * cpu.abs(), "{name}: {key} {cpu} on the CPU, {gpu} on a GPU");
            }
        }
        let results: Value = serde_json::from_str(&fs::read_to_string(gpu.join("results.json")).expect("it ended"))
            .expect("results are JSON");
        let [used, planned] = ["peak_memory_bytes", "planned_memory_bytes"].map(|key| results[key].as_f64());
        let (used, planned) = (used.expect("bytes"), planned.expect("bytes"));
        assert!((used / planned - 1.0).abs() < 0.02, "{name}: {used} bytes of the GPU, {planned} were planned");
    }
}

#[test]
fn nothing_but_the_seed_changes_a_bit() {
    needs_emulator!();
    let folder = folder("emulated-bits");
    let adapter = |output: &Path| fs::read(output.join("adapter/adapter_model.safetensors")).expect("it was saved");
    let settings = ["model.lora_dropout=0.1", "model.precision=bf16"];
    let whole = folder.join("whole");
    succeeds(train(&mut command(&folder), "cuda", &whole, &settings));
    let again = folder.join("again");
    succeeds(train(&mut command(&folder), "cuda", &again, &settings).env("EMULATED_CUDA_ORDER", "reverse"));
    assert!(adapter(&whole) == adapter(&again), "the same run in another order of threads");
    // From its first checkpoint on, as after a crash.
    fs::remove_dir_all(again.join("checkpoints/step-00000002")).expect("the second checkpoint is there");
    fs::remove_file(again.join("results.json")).expect("the run ended");
    succeeds(train(&mut command(&folder), "cuda", &again, &settings).arg("--resume"));
    assert!(adapter(&whole) == adapter(&again), "a resumed run");
    // Two ranks, as torchrun starts them, each with a GPU.
    let ranks = folder.join("ranks");
    train_on_two_gpus(&folder, &ranks, &settings);
    assert!(adapter(&whole) == adapter(&ranks), "two ranks");
}

#[test]
fn ranks_split_the_weights_of_a_full_run() {
    needs_emulator!();
    let folder = folder("emulated-masters");
    let settings = ["model.trainable=full", "model.precision=bf16", "train.lr=1e-4", "train.checkpoint_every=0"];
    let (one, two) = (folder.join("one"), folder.join("two"));
    succeeds(train(&mut command(&folder), "cuda", &one, &settings));
    train_on_two_gpus(&folder, &two, &settings);
    let [one, two] = [one, two].map(|run| fs::read(run.join("checkpoint/model.safetensors")).expect("it was saved"));
    assert!(one == two, "each rank has its part of the f32 weights");
}

/// Half of the micro-batches at each of two ranks.
fn train_on_two_gpus(folder: &Path, output: &Path, settings: &[&str]) {
    let port = 20_000 + std::process::id() % 20_000 + output.as_os_str().len() as u32;
    let rank = |rank: &str| {
        let mut weft = command(folder);
        weft.envs([("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2"), ("EMULATED_CUDA_DEVICES", "2")]);
        weft.envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port.to_string())]);
        let settings = [settings, &["train.grad_accum_steps=1"]].concat();
        train(&mut weft, "cuda", output, &settings).stdout(std::process::Stdio::null()).spawn().expect("a rank starts")
    };
    for mut rank in [rank("0"), rank("1")] {
        assert!(rank.wait().expect("a rank ends").success());
    }
}

#[test]
fn a_bench_tells_the_gpus_memory_as_planned() {
    needs_emulator!();
    let folder = folder("emulated-bench");
    let mut weft = command(&folder);
    weft.args(["bench", "--quiet", "--json", "--device", "cuda", "--dtype", "bf16", "--objective", "weft"]);
    let told =
        succeeds(weft.args(["--sequences", "2", "--tokens", "16", "--warm-up", "1", "--steps", "1", "--profile"]));
    let line: Value = serde_json::from_str(&told).expect("one line of JSON");
    let [used, planned] = ["peak_gpu_bytes", "planned_gpu_bytes"].map(|key| line[key].as_f64().expect("bytes"));
    // The plan takes the largest share of masked tokens.
    assert!(used <= planned && used > 0.9 * planned, "{line}");
    for key in ["gemm_gflops", "planned_step_seconds"] {
        assert!(line[key].as_f64().is_some_and(|figure| figure > 0.0), "{key}: {line}");
    }
    let kernels = line["kernels"].as_array().expect("the profiled step's kernels");
    let of = |name: &str| kernels.iter().find(|k| k["kernel"] == name).unwrap_or_else(|| panic!("{name}: {line}"));
    for name in ["matmul_bf16", "attention_forward_bf16_64", "head_statistics", "adamw"] {
        assert!(of(name)["seconds"].as_f64().is_some_and(|s| s > 0.0), "{name}: {line}");
    }
    // P's embedding, eight layers, and no trained weight but the adapters.
    assert_eq!(of("attention_forward_bf16_64")["launches"], 16, "pass 1 and pass 2");
}

/// What the emulator's log says was copied, in bytes.
fn copies(log: &Path, kind: &str) -> Vec<u64> {
    let log = fs::read_to_string(log).expect("the emulator wrote its log");
    let bytes = |line: &str| line.strip_prefix(kind)?.trim().parse().ok();
    log.lines().filter_map(bytes).collect()
}

#[test]
fn a_samplers_logits_stay_on_the_gpu() {
    needs_emulator!();
    let folder = folder("emulated-sampler");
    for (remasking, more) in [("low_confidence", "--cfg-scale=0.5"), ("entropy", "--top-p=0.9")] {
        let log = folder.join(format!("{remasking}.log"));
        let mut weft = command(&folder);
        weft.args(["generate", "--quiet", "--device", "cuda", "--model", "tiny-base", "--prompt", "1 2 3"]);
        weft.args(["--gen-length", "16", "--block-length", "16", "--diffusion-steps", "4", "--temperature", "0.5"]);
        succeeds(weft.args(["--remasking", remasking, more]).env("EMULATED_CUDA_LOG", &log));
        let copied = copies(&log, "dtoh");
        // A token and a confidence of each of 16 rows; a row of logits is 2 kB and more.
        assert!(copied.len() >= 8 && copied.iter().all(|bytes| *bytes <= 8 * 16), "{remasking}: {copied:?}");
    }
}

#[test]
fn dropout_keys_are_uploaded_once_for_all_adapters() {
    needs_emulator!();
    let folder = folder("emulated-dropout");
    let uploads = |name: &str, targets: &str, steps: usize| {
        let (log, output) = (folder.join(format!("{name}-{steps}.log")), folder.join(format!("{name}-{steps}")));
        let targets = format!("model.lora_targets={targets}");
        let steps = format!("train.max_steps={steps}");
        let settings = [&targets, &steps, "model.lora_dropout=0.1", "train.checkpoint_every=0"];
        succeeds(train(&mut command(&folder), "cuda", &output, &settings).env("EMULATED_CUDA_LOG", &log));
        copies(&log, "htod").len()
    };
    let of_a_step = |name: &str, targets: &str| uploads(name, targets, 4) - uploads(name, targets, 2);
    assert_eq!(of_a_step("one", r#"["q_proj"]"#), of_a_step("three", r#"["q_proj","k_proj","v_proj"]"#));
}

#[test]
fn a_step_waits_for_its_numbers_alone() {
    needs_emulator!();
    let folder = folder("emulated-waits");
    let waits = |kind: &str, steps: usize| {
        let (log, output) = (folder.join(format!("{kind}-{steps}.log")), folder.join(format!("{kind}-{steps}")));
        let settings =
            [&format!("objective.kind={kind}"), &format!("train.max_steps={steps}"), "train.checkpoint_every=0"];
        succeeds(train(&mut command(&folder), "cuda", &output, &settings).env("EMULATED_CUDA_LOG", &log));
        let log = fs::read_to_string(&log).expect("the emulator wrote its log");
        log.lines().filter(|line| line.starts_with("dtoh")).count()
    };
    // A step of two micro-batches: each one's nll, and the gradient's norm; with pass 1 each one's entropies.
    for (kind, expected) in [("sft", 3), ("weft", 5)] {
        assert_eq!(waits(kind, 4) - waits(kind, 2), 2 * expected, "{kind}");
    }
}

#[test]
fn a_cache_gives_the_cpus_answers() {
    needs_emulator!();
    let folder = folder("emulated-answers");
    for cache in ["none", "prefix", "dual"] {
        let answers = ["cpu", "cuda"].map(|device| {
            let mut weft = command(&folder);
            weft.args([
                "generate",
                "--quiet",
                "--device",
                device,
                "--model",
                "tiny-base",
                "--prompt",
                "What is 7 + 5?",
            ]);
            weft.args(["--gen-length", "16", "--block-length", "8", "--diffusion-steps", "8", "--cache", cache]);
            succeeds(&mut weft)
        });
        assert_eq!(answers[0], answers[1], "{cache}");
    }
}

#[test]
fn kernels_are_kept_and_damaged_ones_made_again() {
    needs_emulator!();
    let folder = folder("emulated-kernels");
    let run = || {
        let mut weft = command(&folder);
        weft.args(["parity", "--device", "cuda", "--model", &golden("llada", ""), "--reference"]);
        weft.arg(golden("llada", "objectives.safetensors"));
        succeeds(&mut weft)
    };
    let kept = || {
        let files = fs::read_dir(folder.join("kernels")).expect("kernels are kept").flatten();
        files
            .map(|file| (file.path(), file.metadata().expect("a file").modified().expect("a time")))
            .collect::<Vec<_>>()
    };
    run();
    let first = kept();
    assert!(first.len() == 1 && first[0].0.extension().is_some_and(|e| e == "cubin"), "{first:?}");
    run();
    assert_eq!(first, kept(), "nothing is compiled again");
    let whole = fs::read(&first[0].0).expect("it is there");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0xff;
    for damaged in [&b"half a file"[..], b"", &whole[..5000], &flipped] {
        fs::write(&first[0].0, damaged).expect("written");
        run();
        assert!(fs::read(&first[0].0).expect("it is there") == whole, "what was damaged is made again");
    }
}

#[test]
fn what_is_missing_is_told_in_a_sentence() {
    needs_emulator!();
    let folder = folder("emulated-errors");
    let libraries = LIBRARIES.as_ref().expect("the emulator is built");
    let ask = |changes: &[(&str, &str)], device: &str| {
        let mut weft = command(&folder);
        weft.args(["generate", "--device", device, "--model", "tiny-base", "--prompt", "1"]);
        fails(weft.envs(changes.iter().copied()))
    };
    // Folders that lack one library each.
    let without = |name: &str, left_out: &[&str]| {
        let partial = folder.join(name);
        fs::create_dir_all(&partial).expect("the folder is made");
        for entry in fs::read_dir(libraries).expect("the libraries are there").flatten() {
            let file = entry.file_name().into_string().expect("a name");
            // The bare names are links to these, which would become libraries of their own.
            if file.contains(".so.") && !left_out.iter().any(|library| file.starts_with(library)) {
                fs::copy(entry.path(), partial.join(&file)).expect("the library is copied");
            }
        }
        partial.display().to_string()
    };
    let driver = without("driver", &["libcuda"]);
    let (nvrtc, blas) = (without("nvrtc", &["libnvrtc"]), without("blas", &["libcublasLt"]));
    // What is changed in the environment, the device, and words of what is told.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a [&'a str]);
    let cases: [Case; 7] = [
        (&[("LD_LIBRARY_PATH", &driver)], "cuda", &["libcuda.so.1", &driver, "--device cpu"]),
        (&[("LD_LIBRARY_PATH", &nvrtc)], "cuda", &["libnvrtc.so.13", "pip install nvidia-cuda-nvrtc", &nvrtc]),
        (&[("LD_LIBRARY_PATH", &blas)], "cuda", &["libcublasLt.so.13", "pip install nvidia-cublas", &blas]),
        (&[("EMULATED_CUDA_DEVICES", "0")], "cuda", &["no GPU can be used here", "--device cpu"]),
        (&[], "cuda:3", &["--device cuda:3: this machine has 1 GPU"]),
        (&[("EMULATED_CUDA_CAPABILITY", "7.5")], "cuda", &["compute capability 7.5", "8.0"]),
        (&[], "gpu", &["--device gpu", "cpu, cuda, cuda:N and auto"]),
    ];
    for (changes, device, words) in cases {
        let (told, status) = ask(changes, device);
        assert_eq!(status, 2, "{told}");
        words.iter().for_each(|word| assert!(told.contains(word), "{word} in {told}"));
    }
    // Without a wish, a machine that lacks a driver computes on the CPU without a word; one that lacks more tells.
    for (path, word) in [(&driver, ""), (&nvrtc, "warning: computing on the CPU: libnvrtc.so.13")] {
        let mut weft = command(&folder);
        weft.args(["generate", "--model", "tiny-base", "--prompt", "1", "--gen-length", "8"]);
        let output = weft.env("LD_LIBRARY_PATH", path).output().expect("the program starts");
        assert!(output.status.success());
        let told = text(&output.stderr);
        assert!(if word.is_empty() { told.is_empty() } else { told.contains(word) }, "{told}");
    }
}

#[test]
fn a_run_that_does_not_fit_is_refused_and_one_that_is_begun_ends_with_a_sentence() {
    needs_emulator!();
    let folder = folder("emulated-memory");
    let small = |skip_plan: bool| {
        let mut weft = command(&folder);
        weft.env("EMULATED_CUDA_MEMORY", (45 << 20).to_string());
        train(&mut weft, "cuda", &folder.join("run"), &["train.micro_batch_size=8"]);
        weft.args(skip_plan.then_some("--skip-plan"));
        fails(&mut weft)
    };
    let (told, status) = small(false);
    assert!(status == 2 && told.contains("GB are available") && told.contains("it fits with"), "{told}");
    let (told, status) = small(true);
    assert!(status == 1 && told.contains("has no room for") && told.contains("train.micro_batch_size"), "{told}");
    assert!(!folder.join("run/adapter").exists(), "nothing half-written is left");
}
