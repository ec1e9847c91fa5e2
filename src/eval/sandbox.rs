//! Runs programs of answers with their tests, each in a child `python3` with limits on time, memory, files and processes,
//! in an empty folder of its own, and without network where the kernel allows it. What the child does to itself before the
//! program begins is in `sandbox.py`.
//!
//! This protects against what a model's program may do by accident, and against the usual ways to end early. It isn't a
//! wall against a program that was written to attack it.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::code::Program;
use super::sandbox_use::excess;
use crate::error::{Error, Result};

/// What the child runs before the program.
const GUARD: &str = include_str!("sandbox.py");
/// The most bytes that are read of a child's report.
const MAX_REPORT_BYTES: u64 = 1 << 16;
/// Seconds that Python may take to start, beyond the program's own.
const START_SECONDS: u64 = 20;
/// The time between two looks at what a program takes.
const LOOK: Duration = Duration::from_millis(50);
/// The most programs that run at a time.
const MAX_WORKERS: usize = 16;

/// The limits on a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Seconds until it is killed with everything that it started.
    pub seconds: u64,
    /// The address space of each of its processes, in bytes.
    pub memory_bytes: u64,
    /// The size of each file that it writes, in bytes.
    pub file_bytes: u64,
    /// The number of its processes and threads.
    pub processes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { seconds: 10, memory_bytes: 2 << 30, file_bytes: 16 << 20, processes: 64 }
    }
}

/// What became of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its tests passed.
    Passed,
    /// Why they didn't.
    Failed(String),
}

/// A place to run programs in.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The programs that start the interpreter, and the interpreter.
    command: Vec<OsString>,
    limits: Limits,
    lacking: Vec<String>,
}

/// Why code isn't run, for tasks that need it.
pub fn refusal(task: &str) -> Error {
    Error::Usage(format!(
        "the answers to {task} are programs, and scoring them runs what the model wrote on this machine; add --run-code (in a \
         recipe, eval.run_code = true) to run them in a child with limits (docs/tasks.md)"
    ))
}

impl Sandbox {
    /// Finds the interpreter, `python` or `python3` by default, and what of the machine's means of isolation works.
    ///
    /// # Errors
    /// An interpreter that doesn't start; a system that isn't Unix.
    pub fn open(python: Option<&Path>, limits: Limits) -> Result<Self> {
        if !cfg!(unix) {
            return Err(Error::Usage(
                "programs of answers are run on Linux and macOS alone; leave out --run-code".to_owned(),
            ));
        }
        let wrapper = wrapper();
        let named = python.map(Path::to_owned);
        // An interpreter that only root can read can't be started as nobody, so that of the system is tried too.
        let candidates: Vec<PathBuf> =
            named.map_or_else(|| vec!["python3".into(), "/usr/bin/python3".into()], |python| vec![python]);
        let opened = candidates.iter().filter_map(|python| {
            let python = executable(python)?;
            let command = wrapper.iter().map(OsString::from).chain([python]).collect();
            Self { command, limits, lacking: vec![] }.probed()
        });
        let best = opened.min_by_key(|sandbox| sandbox.lacking.len());
        best.ok_or_else(|| {
            let name = candidates[0].display();
            Error::Usage(format!(
                "{name} can't be started, and programs of answers need it; install Python 3 or name its path with --python"
            ))
        })
    }

    /// The protections that this machine lacks, one sentence each.
    pub fn lacking(&self) -> &[String] {
        &self.lacking
    }

    /// Runs programs, several at a time, and returns their outcomes in order.
    pub fn run_all(&self, programs: &[Program]) -> Vec<Outcome> {
        let next = AtomicUsize::new(0);
        let workers = thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS).min(programs.len());
        let work = || {
            let mut own = vec![];
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(program) = programs.get(index) else { return own };
                own.push((index, self.run(program)));
            }
        };
        let mut all: Vec<(usize, Outcome)> = thread::scope(|scope| {
            let started: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            started.into_iter().flat_map(|worker| worker.join().expect("a worker doesn't panic")).collect()
        });
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// Runs a program. It has passed only if the child reports so with a token that the program wasn't given.
    pub fn run(&self, program: &Program) -> Outcome {
        let Program { solution, tests } = program;
        let limit = Duration::from_secs(self.limits.seconds);
        let ended = "the program ended before its tests had passed";
        match self.report(json!(solution), tests, limit) {
            Ok(Some(report)) => match report["outcome"].as_str() {
                Some("passed") => Outcome::Passed,
                Some(reason) => Outcome::Failed(reason.to_owned()),
                None => Outcome::Failed(ended.to_owned()),
            },
            Ok(None) => Outcome::Failed(ended.to_owned()),
            Err(reason) => Outcome::Failed(reason),
        }
    }

    /// Starts the interpreter without a program, to see which protections it has.
    fn probed(mut self) -> Option<Self> {
        let report = self.report(Value::Null, "", Duration::from_secs(START_SECONDS)).ok()??;
        let has = |program: &str, option: &str| {
            let mut words = self.command.iter();
            words.any(|word| word == program) && words.any(|word| word == option)
        };
        let is_locked = |version: u64| report["landlock"].as_u64().is_some_and(|own| own >= version);
        let missing = [
            (!has("unshare", "--net") && !is_locked(4), "the network is reachable"),
            (!has("unshare", "--pid"), "processes that a program detaches from its group survive it"),
            (!is_locked(1), "a program can write wherever this user can"),
            (report["bounded"] != true, "the number of processes isn't limited for this user"),
            (report["unlimited_memory"] == true, "memory isn't limited"),
        ];
        self.lacking = missing.iter().filter(|(lacks, _)| *lacks).map(|(_, what)| (*what).to_owned()).collect();
        Some(self)
    }

    /// What the child reports before the limit, if it reports anything with its token.
    fn report(&self, solution: Value, tests: &str, limit: Duration) -> std::result::Result<Option<Value>, String> {
        let folder = Folder::new().map_err(|e| format!("no temporary folder can be made: {e}"))?;
        let token = token();
        let Limits { seconds, memory_bytes, file_bytes, processes } = self.limits;
        let job = json!({
            "solution": solution,
            "tests": tests,
            "token": token,
            "seconds": seconds,
            "memory_bytes": memory_bytes,
            "file_bytes": file_bytes,
            "processes": processes,
        });
        let mut child = self.start(&folder.0).map_err(|e| format!("Python can't be started: {e}"))?;
        let (mut input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        thread::spawn(move || input.write_all(job.to_string().as_bytes()));
        let (sender, received) = channel();
        thread::spawn(move || {
            let mut line = vec![];
            let _ = BufReader::new(output.take(MAX_REPORT_BYTES)).read_until(b'\n', &mut line);
            let _ = sender.send(line);
        });
        let line = self.wait(&received, (child.id(), &folder.0), limit);
        end(&mut child);
        match line? {
            Err(RecvTimeoutError::Timeout) => Err(format!("timed out after {} s", limit.as_secs())),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Ok(line) => {
                let report: Option<Value> = serde_json::from_slice(&line).ok();
                Ok(report.filter(|report| report["token"] == token.as_str()))
            }
        }
    }

    /// Waits for a child's report; an error is what the child takes too much of.
    fn wait(
        &self,
        received: &Receiver<Vec<u8>>,
        (process, folder): (u32, &Path),
        limit: Duration,
    ) -> std::result::Result<std::result::Result<Vec<u8>, RecvTimeoutError>, String> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match received.recv_timeout(left.min(LOOK)) {
                Err(RecvTimeoutError::Timeout) if !left.is_zero() => {
                    excess(process, folder, &self.limits).map_or(Ok(()), Err)?;
                }
                ended => return Ok(ended),
            }
        }
    }

    fn start(&self, folder: &Path) -> std::io::Result<Child> {
        let (program, wrapped) = self.command.split_first().expect("there is an interpreter");
        let mut command = Command::new(program);
        command.args(wrapped).args(["-s", "-B", "-X", "utf8", "-c", GUARD]).current_dir(folder).env_clear();
        command.envs([("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LANG", "C.UTF-8"), ("PYTHONHASHSEED", "0")]);
        command.envs([("OMP_NUM_THREADS", "1"), ("OPENBLAS_NUM_THREADS", "1")]);
        command.env("HOME", folder).env("TMPDIR", folder);
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
    }
}

/// The programs that isolate the interpreter, with their options, as far as they work here.
fn wrapper() -> Vec<&'static str> {
    let works = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("true").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    // The child ends with this process, whatever ends it.
    const TIED: &[&str] = &["setpriv", "--pdeathsig", "KILL"];
    const ALONE: [&[&str]; 4] = [
        &["unshare", "--net", "--ipc", "--pid", "--fork", "--kill-child"],
        &["unshare", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child"],
        &["unshare", "--map-root-user", "--net"],
        &[],
    ];
    let alone = ALONE.iter().find(|words| words.is_empty() || works(words)).expect("the last one is empty");
    let tied = if works(TIED) { TIED } else { &[] };
    [tied, alone].concat()
}

/// The path of an interpreter: what is found by its name may be a script that starts it.
fn executable(python: &Path) -> Option<OsString> {
    let mut command = Command::new(python);
    command.args(["-c", "import sys; print(sys.executable)"]).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    let path = String::from_utf8(output.stdout).ok()?;
    Some(OsString::from(path.trim()))
}

/// Kills a child and everything in its process group; a namespace of processes ends with its first one.
fn end(child: &mut Child) {
    // The child isn't waited for yet, so that its number can't be another group's. The standard library has no call for this.
    let group = format!("-{}", child.id());
    let mut kill = Command::new("kill");
    kill.args(["-KILL", "--", &group]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _ = kill.status();
    let _ = child.kill();
    let _ = child.wait();
}

/// A text that nobody can guess.
fn token() -> String {
    use std::hash::{BuildHasher, RandomState};
    (0..2).map(|part| format!("{:016x}", RandomState::new().hash_one(part))).collect()
}

/// An empty folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("weft-code-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The program may have taken its own rights away, or nested folders deeper than a recursion can follow.
        #[cfg(unix)]
        let _ = fs::set_permissions(&self.0, std::os::unix::fs::PermissionsExt::from_mode(0o700));
        let has_folders = fs::read_dir(&self.0)
            .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())));
        let _ = match has_folders {
            true => Command::new("rm").arg("-rf").arg("--").arg(&self.0).status().map(|_| ()),
            false => fs::remove_dir_all(&self.0),
        };
    }
}
