//! `scripts/gpu_check`, which measures a GPU: a wrong kernel fails it, a step that hangs costs only itself, and the page that
//! it writes has the JSON's figures. CI rehearses the whole script beside these tests.

#[macro_use]
mod emulated;
mod scratch;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use emulated::{LIBRARIES, text};
use scratch::folder;
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The script with these arguments; `None` where there is no Python.
fn gpu_check(arguments: &[&str]) -> Option<Command> {
    if Command::new("python3").arg("-V").output().is_err() {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "SKIPPED: scripts/gpu_check needs python3");
        return None;
    }
    let mut command = Command::new(root().join("scripts/gpu_check"));
    command.args(arguments).current_dir(root());
    Some(command)
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("the file is there")).expect("it is JSON")
}

/// The rehearsal of some steps by the given binaries on the emulated GPU, and its JSON.
fn rehearsed(folder: &Path, steps: &[&str], variables: &[(&str, &str)]) -> Option<(Output, Value)> {
    let (out, binaries) = (folder.join("out"), folder.join("binaries"));
    let fixed = ["run", shown(&out), "--small", "--binaries", shown(&binaries), "--steps"];
    let mut command = gpu_check(&[&fixed[..], steps].concat())?;
    if let Ok(libraries) = &*LIBRARIES {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let output = command.envs(variables.iter().copied()).output().expect("the script starts");
    Some((output, read_json(&out.join("gpu_check.json"))))
}

#[test]
fn a_flipped_sign_in_a_kernel_fails_the_comparison_with_pytorch() {
    needs_emulator!();
    let folder = folder("flipped");
    fs::create_dir(folder.join("binaries")).expect("the folder is made");
    symlink(env!("CARGO_BIN_EXE_weft"), folder.join("binaries/weft")).expect("a link");
    let with = |replacement: &str| rehearsed(&folder, &["c"], &[("EMULATED_CUDA_REPLACE", replacement)]);
    let Some((output, report)) = with("scale - x[i] * shrink=>scale + x[i] * shrink") else { return };
    let (told, step) = (text(&output.stdout), &report["steps"]["c"]);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert_eq!(step["result"], "failed", "{step}");
    // Gradients, in every family, whole and LoRA, in both precisions; the forward and the samples are right.
    assert_eq!(step["problems"].as_array().map(Vec::len), Some(20), "{step}");
    for family in ["llada", "dream", "a2d-qwen3", "a2d-qwen2", "illada"] {
        for (what, dtype) in [("whole", "f32"), ("whole", "bf16"), ("LoRA", "f32"), ("LoRA", "bf16")] {
            let start = format!("{family} {what} in {dtype}: ");
            let line = told.lines().find(|line| line.contains(&start) && !line.starts_with('|'));
            assert!(line.is_some_and(|line| line.contains("past the tolerance") && line.contains(".grad")), "{told}");
        }
    }
    // What can't be replaced is told, so that no undamaged kernel passes for a damaged one.
    for (replacement, words) in [("no such text=>x", "the source lacks"), ("float=>int", "more than once")] {
        let (output, report) = with(replacement).expect("Python is there");
        assert_eq!(output.status.code(), Some(1));
        assert!(report["steps"]["c"]["problems"].to_string().contains(words), "{report}");
    }
}

/// A `weft` whose comparisons hang in a process of their own, and whose profile has four kernels.
const FAKE: &str = r#"#!/bin/sh
case "$*" in
parity*) sleep 600 & echo $! >>"$FAKE_PIDS"; wait ;;
*--help*) echo "  --profile" ;;
*--profile*) echo '{"kernels": [
{"kernel": "slow", "launches": 4, "seconds": 0.5, "tflops": 1, "gbps": 10, "bound_seconds": 0.1},
{"kernel": "at its bound", "launches": 1, "seconds": 0.3, "tflops": 700, "gbps": 10, "bound_seconds": 0.3},
{"kernel": "middling", "launches": 2, "seconds": 0.1, "tflops": 2, "gbps": 10, "bound_seconds": 0.01},
{"kernel": "small", "launches": 9, "seconds": 0.1, "tflops": 3, "gbps": 2000, "bound_seconds": 0.05}]}' | tr -d '\n' ;;
*) echo "error: unexpected" >&2; exit 2 ;;
esac
"#;

fn fake_binaries(folder: &Path) -> PathBuf {
    let weft = folder.join("binaries/weft");
    fs::create_dir(folder.join("binaries")).expect("the folder is made");
    fs::write(&weft, FAKE).expect("written");
    fs::set_permissions(&weft, fs::Permissions::from_mode(0o755)).expect("it may run");
    folder.join("pids")
}

#[test]
#[cfg(target_os = "linux")]
fn a_step_that_hangs_costs_only_itself() {
    let folder = folder("hanging");
    let pids = fake_binaries(&folder);
    let variables = [("FAKE_PIDS", shown(&pids))];
    let Some((output, report)) = rehearsed(&folder, &["ceg", "--limit", "c=3"], &variables) else { return };
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    let result = |letter: &str| report["steps"][letter]["result"].as_str().unwrap_or_default().to_owned();
    assert_eq!([result("c"), result("e"), result("g")], ["failed", "failed", "passed"], "{report}");
    assert!(report["steps"]["c"]["problems"][0].as_str().is_some_and(|p| p.contains("longer than 3 s")), "{report}");
    assert!(report["steps"]["e"]["problems"][0].as_str().is_some_and(|p| p.contains("error: unexpected")), "{report}");
    // Its processes are gone, those included that its commands had started.
    for pid in fs::read_to_string(&pids).expect("the comparison began").lines() {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }
    let slowest = &report["steps"]["g"]["details"]["rows"][0]["slowest"];
    assert_eq!(slowest, &json!(["slow", "middling", "small"]));
    // Nothing is begun that has no time left.
    let (_, report) = rehearsed(&folder, &["cg", "--deadline", "4"], &variables).expect("Python is there");
    assert_eq!(
        report["steps"]["g"],
        json!({
            "title": "rates by kernel", "result": "skipped", "figure": "no time was left", "speed": "", "problems": [],
            "details": {}, "seconds": report["steps"]["g"]["seconds"], "limit_seconds": report["steps"]["g"]["limit_seconds"],
        })
    );
}

/// A run's JSON as a GPU would give it, with two measured configurations and a profile.
fn measured() -> Value {
    let config =
        |recomputed: bool| json!({"sequences": 1, "tokens": 4096, "objective": "weft", "recomputed": recomputed});
    let with = |mut row: Value, more: Value| {
        let more = more.as_object().expect("an object").clone();
        row.as_object_mut().expect("an object").extend(more);
        row
    };
    let speed = json!({"step_seconds": 0.5, "tokens_per_second": 8192.0, "gemm_gflops": 700_000.0, "gemm_share": 0.487,
        "peak_bytes": 33_100_000_000u64, "planned_bytes": 33_500_000_000u64});
    let peer = json!({"pytorch": {"step_seconds": 0.65, "reserved": 41_000_000_000u64}, "ratio": 1.3});
    let kernels = json!({"slowest": ["attention"], "kernels": [{"kernel": "attention", "launches": 64, "seconds": 0.08,
        "tflops": 210.0, "gbps": 400.0, "bound_seconds": 0.02}]});
    let step = |title: &str, rows: Value| {
        json!({"title": title, "result": "passed", "figure": "all", "speed": "0.5 s a step", "problems": [],
            "seconds": 12.3, "details": {"rows": rows}})
    };
    json!({
        "gpu": "NVIDIA H100 80GB HBM3", "is_rehearsal": false, "is_small": false, "date": "2026-12-01", "seconds": 400.0,
        "manifest": {"weft": "weft 0.1.0", "commit": "0123456789abcdef", "has_changes": false},
        "steps": {
            "e": step("steps", json!([with(config(false), speed.clone()), with(config(true), speed)])),
            "f": step("PyTorch", json!([with(config(false), peer)])),
            "g": step("kernels", json!([with(config(false), kernels)])),
        },
    })
}

#[test]
fn the_page_has_the_jsons_figures_and_filling_it_again_changes_nothing() {
    let folder = folder("page");
    let (page, real) = (folder.join("cuda.md"), folder.join("real.json"));
    let rehearsal = root().join("docs/gpu_check.json");
    fs::write(&real, measured().to_string()).expect("written");
    let original = fs::read_to_string(root().join("docs/cuda.md")).expect("the page is there");
    fs::write(&page, &original).expect("written");
    let fill = |report: &Path, check: &[&str]| {
        let arguments = [&["docs", shown(report), "--page", shown(&page)], check].concat();
        let status = gpu_check(&arguments).map(|mut command| command.output().expect("the script starts").status);
        status.map(|status| (status.success(), fs::read_to_string(&page).expect("the page is there")))
    };
    let Some((_, first)) = fill(&real, &[]) else { return };
    for figure in
        ["NVIDIA H100", "0.500", "48.7%", "33.1", "33.5", "0.650", "**1.30**", "41.0", "**attention**", "0123456789ab"]
    {
        assert!(first.contains(figure), "{figure} in {first}");
    }
    assert!(!first.contains("Nothing has been measured"), "{first}");
    assert_eq!(fill(&real, &[]), Some((true, first.clone())), "again");
    assert_eq!(fill(&real, &["--check"]), Some((true, first.clone())));
    assert_eq!(fill(&rehearsal, &["--check"]), Some((false, first)), "another run's page");
    // Back again, nothing of the other run is left, and the rest of the page was never touched.
    let (_, back) = fill(&rehearsal, &[]).expect("Python is there");
    assert!(back == original, "docs/cuda.md is not what docs/gpu_check.json says");
}
