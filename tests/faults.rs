//! A run that is killed, or whose disk fails, at any call on its files: it tells of the failure, and goes on to the same
//! bits. strace injects the faults; where it isn't there, the tests say so.

mod scratch;
mod strace;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use scratch::folder;
use serde_json::Value;
use strace::{Call, Fault};

/// What is disturbed.
struct Scenario {
    /// The folder that every disturbed run begins with.
    start: PathBuf,
    /// Whether the disturbed run goes on with one that is there.
    resume: bool,
    /// The file that must come out with the same bytes.
    matmul: &'static str,
    num_steps: u64,
    /// Whether a call's file is this scenario's concern.
    concerns: fn(&Path) -> bool,
}

fn weft(folder: &Path, resume: bool) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).env("WEFT_CACHE", "cache").stdin(Stdio::null());
    command.args(["train", "recipe.toml", "--quiet", "--threads", "1"]).args(resume.then_some("--resume"));
    command
}

/// A folder with rows and a recipe: six steps, three checkpoints, three evaluations, unless `settings` say otherwise.
fn start(name: &str, rows: usize, settings: &str) -> PathBuf {
    let folder = folder(name).canonicalize().expect("the folder is there");
    let row = |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"{}\"}}\n", i + 1);
    fs::write(folder.join("rows.jsonl"), (0..rows).map(row).collect::<String>()).expect("the rows are written");
    fs::write(folder.join("recipe.toml"), settings).expect("the recipe is written");
    folder
}

const ADAPTER: &str = "[model]\nlora_rank = 1\nlora_targets = [\"q_proj\"]\n";
const ROWS: &str = "[data]\ntrain = \"rows.jsonl\"\nheld_out = \"rows.jsonl\"\nheld_out_rows = 2\n";
const TRAIN: &str = "[train]\noutput = \"run\"\nmicro_batch_size = 4\nlr = 1e-3\nmax_steps = 6\nepochs = 3\n\
                     eval_every = 3\ncheckpoint_every = 2\n";
const EVENTS: &str = "run/events.out.tfevents.weft";
const RESULTS: &str = "run/results.json";
const PRODUCT: &str = "run/adapter/adapter_model.safetensors";

/// strace, or loud words in its stead.
fn can_inject() -> bool {
    let missing = strace::missing();
    if let Some(reason) = &missing {
        // The harness keeps what a test that passes prints.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no fault is injected: {reason}");
    }
    missing.is_none()
}

#[test]
fn any_call_of_a_run_may_be_killed_or_fail() {
    let start = start("run", 8, &[ADAPTER, ROWS, TRAIN].concat());
    let points = Scenario { start, resume: false, matmul: PRODUCT, num_steps: 6, concerns: |_| true }.disturb();
    assert!(points.is_none_or(|points| points >= 200), "{points:?}");
}

#[test]
fn any_call_of_a_run_that_goes_on_may_be_killed_or_fail() {
    if !can_inject() {
        return;
    }
    // The run was killed where it saved the last checkpoint, and the one before it is damaged: it is written anew.
    let start = start("resumed", 8, &[ADAPTER, ROWS, TRAIN].concat());
    let partial = |call: &Call| call.path.ends_with("checkpoints/step-00000006.partial");
    let calls = copied(&start, |folder| strace::calls(folder, &weft(folder, false)));
    let last = calls.iter().rfind(|call| partial(call) && call.name.starts_with("rename")).expect("it is renamed");
    strace::disturb(&start, &weft(&start, false), last, Fault::Kill);
    flip(&start.join("run/checkpoints/step-00000004/state.safetensors"), 9_000);
    let concerns = |path: &Path| !path.starts_with("run/adapter");
    Scenario { start, resume: true, matmul: PRODUCT, num_steps: 6, concerns }.disturb();
}

#[test]
fn generated_rows_and_answers_are_whole_or_not_there() {
    let settings = "[data]\ngenerate = \"countdown\"\ntrain_rows = 8\nheld_out_rows = 2\n[eval]\ntask = \"countdown\"\n\
                    limit = 2\n[sampler]\ngen_length = 32\ndiffusion_steps = 1\n";
    let start = start("generated", 0, &[ADAPTER, settings, TRAIN].concat());
    let concerns = |path: &Path| {
        path.starts_with("run/data") || path.to_string_lossy().contains("generations") || path.ends_with("run")
    };
    Scenario { start, resume: false, matmul: PRODUCT, num_steps: 6, concerns }.disturb();
}

#[test]
fn a_trained_checkpoint_is_replaced_at_once() {
    let settings = "[model]\ntrainable = \"full\"\n";
    let rows = "[data]\ntrain = \"rows.jsonl\"\n";
    let start = start("full", 8, &[settings, rows, &TRAIN.replace("max_steps = 6", "max_steps = 1")].concat());
    assert!(weft(&start, false).status().expect("weft starts").success());
    unfinish(&start);
    let concerns =
        |path: &Path| path.to_string_lossy().starts_with("run/checkpoint") && !path.starts_with("run/checkpoints");
    let matmul = "run/checkpoint/model.safetensors";
    Scenario { start, resume: true, matmul, num_steps: 1, concerns }.disturb();
}

#[test]
fn a_run_does_without_the_tokens_it_cannot_keep() {
    let start = start("tokens", 8_500, &[ADAPTER, "[data]\ntrain = \"rows.jsonl\"\n", TRAIN].concat());
    let concerns = |path: &Path| path.starts_with("cache");
    Scenario { start, resume: false, matmul: PRODUCT, num_steps: 6, concerns }.disturb();
}

#[test]
fn a_checkpoint_with_any_byte_changed_is_told_of_and_passed_over() {
    let start = start("flipped", 8, &[ADAPTER, ROWS, TRAIN].concat());
    assert!(weft(&start, false).status().expect("weft starts").success());
    unfinish(&start);
    let matmul = fs::read(start.join(PRODUCT)).expect("there is an adapter");
    for (file, at) in
        ["state.safetensors", "state.json", "checksums"].iter().flat_map(|f| [(f, 3), (f, 1_000), (f, 77)])
    {
        let path = Path::new("run/checkpoints/step-00000006").join(file);
        copied(&start, |folder| {
            flip(&folder.join(&path), at);
            let output = weft(folder, true).output().expect("weft starts");
            // The fixture's rows are trained on and held out, which is warned of first.
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            let (shared, told) = told.split_once('\n').expect("two warnings");
            assert!(shared.contains("held-out examples are trained on too"), "{shared}");
            // A changed checksum speaks against its file.
            let begins = "warning: run/checkpoints/step-00000006/";
            assert!(output.status.success() && told.starts_with(begins), "{told}");
            assert!(told.contains(" is damaged or in another format: its bytes don't match"), "{told}");
            assert!(told.ends_with("trying the checkpoint before it\n"), "{told}");
            assert_eq!(fs::read(folder.join(PRODUCT)).expect("there is an adapter"), matmul);
        });
    }
}

impl Scenario {
    /// Runs on with a fault at each call: a kill where it changes something, and an error. The number of faults.
    fn disturb(&self) -> Option<usize> {
        if !can_inject() {
            return None;
        }
        let (calls, whole) =
            copied(&self.start, |folder| (strace::calls(folder, &weft(folder, self.resume)), Whole::of(folder, self)));
        flushes(&calls);
        let concerned = calls.into_iter().filter(|call| (self.concerns)(&call.path) && is_written(call));
        let faults = |call: Call| {
            let error = if call.name.contains("sync") || call.name.contains("unlink") { "EIO" } else { "ENOSPC" };
            let kill = call.changes.then(|| (call.clone(), Fault::Kill));
            kill.into_iter().chain([(call, Fault::Error(error))])
        };
        let points: Vec<(Call, Fault)> = concerned.flat_map(faults).collect();
        let kills = points.iter().filter(|(_, fault)| *fault == Fault::Kill).count();
        println!("{kills} kills and {} errors: {}", points.len() - kills, self.start.display());
        assert!(kills > 0, "there are calls to disturb");
        let next = AtomicUsize::new(0);
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(4);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some((call, fault)) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                        copied(&self.start, |folder| self.survives(folder, &whole, call, *fault));
                    }
                });
            }
        });
        Some(points.len())
    }

    /// Disturbs a run, goes on with it, and holds what comes out against an undisturbed one.
    fn survives(&self, folder: &Path, whole: &Whole, call: &Call, fault: Fault) {
        let output = strace::disturb(folder, &weft(folder, self.resume), call, fault);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let (errors, others): (Vec<&str>, Vec<&str>) = told.lines().partition(|line| line.starts_with("error: "));
        assert!(others.iter().all(|line| line.starts_with("warning: ")), "{call:?} {fault:?}: {told}");
        match (fault, &errors[..]) {
            (Fault::Kill, []) => tear(folder),
            (Fault::Error(_), [error]) if output.status.code() == Some(2) => {
                // A checkpoint that can't be read is warned of.
                let is_named = |line: &str| names(line, &call.path);
                let is_told = is_named(error) || !call.changes && others.iter().any(|line| is_named(line));
                assert!(is_told, "{call:?} {fault:?}: {told}");
            }
            // Nothing is lost where tokens aren't kept, a folder was there already, or a damaged file is passed over.
            (Fault::Error(_), []) if output.status.success() => {
                let is_told = !others.is_empty() || call.fails || !call.changes;
                assert!(is_told, "{call:?} {fault:?} goes unnoticed");
            }
            _ => panic!("{call:?} {fault:?}: {:?}, {told}", output.status),
        }
        let resumed = weft(folder, folder.join("run/recipe.json").exists()).output().expect("weft starts");
        assert!(resumed.status.success(), "{call:?} {fault:?}: {}", String::from_utf8_lossy(&resumed.stderr));
        let now = Whole::of(folder, self);
        assert!(now == *whole, "{call:?} {fault:?}: {now:?} instead of {whole:?}");
    }
}

/// What a kill can't show, since the system outlives it: whatever gets its final name was flushed before, and the name
/// after; and so was the log that a checkpoint stands on.
fn flushes(calls: &[Call]) {
    let is_sync = |call: &Call, path: &Path| call.name.contains("sync") && call.path == path;
    let is_flushed = |before: &[Call], path: &Path| {
        let written = before.iter().rposition(|call| call.name == "write" && call.path == path);
        before[written.unwrap_or(0)..].iter().any(|call| is_sync(call, path))
    };
    let is_named = |call: &Call| call.name.starts_with("rename") && call.path.to_string_lossy().ends_with(".partial");
    for (i, named) in calls.iter().enumerate().filter(|(_, call)| is_named(call)) {
        let (path, folder) = (&named.path, named.path.parent().expect("it lies in a folder"));
        assert!(is_flushed(&calls[..i], path), "{path:?} is flushed before it has its name");
        let next = calls[i + 1..].iter().find(|call| call.changes);
        assert!(next.is_some_and(|call| is_sync(call, folder)), "{folder:?} is flushed after {path:?} has its name");
        let is_checkpoint = folder.ends_with("run/checkpoints");
        let logs = ["run/metrics.jsonl", EVENTS].map(|log| is_flushed(&calls[..i], Path::new(log)));
        assert!(!is_checkpoint || logs == [true; 2], "the logs before {path:?}");
        // A run with results is taken for finished.
        let is_last = path.ends_with("run/results.json.partial");
        assert!(!is_last || logs == [true; 2], "the logs before {path:?}");
    }
}

/// What must be the same after any fault.
#[derive(Debug, PartialEq)]
struct Whole {
    matmul: u128,
    /// Each step's loss; they are in the lines of metrics.jsonl, which are all JSON.
    losses: Vec<String>,
    held_out: Vec<String>,
    num_events: usize,
    /// Every file; none is half written.
    files: Vec<PathBuf>,
}

impl Whole {
    fn of(folder: &Path, scenario: &Scenario) -> Self {
        let metrics = fs::read_to_string(folder.join("run/metrics.jsonl")).expect("there are metrics");
        assert!(metrics.ends_with('\n'), "the last line is whole");
        let lines: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).expect("a line is JSON")).collect();
        let of = |key: &str| -> Vec<String> {
            let told = lines.iter().filter(|line| line[key].is_number());
            told.map(|line| format!("{}: {}", line["step"], line[key])).collect()
        };
        let losses = of("loss");
        assert_eq!(losses.len() as u64, scenario.num_steps);
        assert!(losses.iter().zip(1..).all(|(loss, step)| loss.starts_with(&format!("{step}: "))), "{losses:?}");
        let report = fs::read_to_string(folder.join("run/report.html")).expect("there is a report");
        assert!(report.trim_end().ends_with("</html>"), "the report is whole");
        let num_events = events(&fs::read(folder.join(EVENTS)).expect("events"));
        assert_eq!(num_events, lines.len() + 1, "an event a line after the version");
        let files = files(folder);
        let matmul = weft::files::content_hash(&folder.join(scenario.matmul)).expect("there is a matmul");
        Self { matmul, losses, held_out: of("held_out_nll_bound"), num_events, files }
    }
}

/// The records of an event file, all of them whole.
fn events(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Some((length, _)) = bytes.split_first_chunk::<8>() {
        bytes = bytes.get(16 + u64::from_le_bytes(*length) as usize..).expect("the record is whole");
        count += 1;
    }
    assert!(bytes.is_empty(), "nothing follows the last record");
    count
}

/// What a power cut may leave beyond a kill: of files that weren't flushed, half. Where a run has its results,
/// everything was ([`flushes`]).
fn tear(folder: &Path) {
    if folder.join(RESULTS).exists() {
        return;
    }
    let halve = |path: &Path, from: usize| {
        let bytes = fs::read(path).expect("it is there");
        fs::write(path, &bytes[..from + (bytes.len() - from) / 2]).expect("it is cut");
    };
    for path in files(folder) {
        let path = folder.join(path);
        if path.to_string_lossy().contains(".partial") || path.to_string_lossy().contains("tfevents") {
            halve(&path, 0);
        }
    }
    // metrics.jsonl is flushed with each checkpoint.
    let steps = fs::read_dir(folder.join("run/checkpoints")).into_iter().flatten().flatten();
    let step = |name: String| name.strip_prefix("step-").and_then(|step| step.parse::<u64>().ok());
    let flushed = steps.filter_map(|entry| step(entry.file_name().to_string_lossy().into_owned())).max();
    let Ok(metrics) = fs::read_to_string(folder.join("run/metrics.jsonl")) else { return };
    let of = |line: &str| serde_json::from_str::<Value>(line).ok().and_then(|line| line["step"].as_u64());
    let is_flushed = |line: &&str| of(line).is_some_and(|step| Some(step) <= flushed);
    let from: usize = metrics.split_inclusive('\n').take_while(is_flushed).map(str::len).sum();
    halve(&folder.join("run/metrics.jsonl"), from);
}

/// Whether a line names the file of a call, or the one that is written by it: the file within its folder, the folder of
/// a file, the final name of a partial one.
fn names(line: &str, path: &Path) -> bool {
    let plain = |path: &Path| PathBuf::from(path.to_string_lossy().replace(".partial", "").replace(".earlier", ""));
    let told = ["cannot write ", "cannot read "].into_iter().find_map(|verb| line.split_once(verb));
    let Some((told, _)) = told.and_then(|(_, told)| told.split_once(": ")) else { return false };
    let (told, path) = (plain(Path::new(told)), plain(path));
    told.starts_with(&path) || path.starts_with(&told)
}

/// Whether a call concerns what a run writes, its own folder's place included.
fn is_written(call: &Call) -> bool {
    let Call { name, path, .. } = call;
    path.starts_with("run") || path.starts_with("cache") || path.as_os_str().is_empty() && name != "openat"
}

/// As a crash at the very end leaves it: a finished run has nothing to resume.
fn unfinish(folder: &Path) {
    fs::remove_file(folder.join(RESULTS)).expect("there are results");
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("the file is there");
    let at = at % bytes.len();
    bytes[at] ^= 0x20;
    fs::write(path, bytes).expect("the file is written");
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("the folder can be read").flatten() {
            match entry.path().is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path().strip_prefix(folder).expect("it lies below").to_owned()),
            }
        }
    }
    found.sort();
    found
}

/// Calls `with` with a copy of a folder that is removed afterwards.
fn copied<T>(from: &Path, with: impl FnOnce(&Path) -> T) -> T {
    let copy = folder("copy").canonicalize().expect("the folder is there");
    for file in files(from) {
        let to = copy.join(&file);
        fs::create_dir_all(to.parent().expect("it lies in a folder")).expect("the folder can be made");
        fs::copy(from.join(file), to).expect("the file is copied");
    }
    let result = with(&copy);
    fs::remove_dir_all(&copy).expect("the copy can be removed");
    result
}
