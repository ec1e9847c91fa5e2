//! strace as a breaker of disks: which calls of a command change or open its folder's files, and the command again with
//! one of them killed or failed. Paths are relative to the folder the command runs in.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The calls that make, change, flush, name and remove files, under every architecture's names.
const CALLS: &str = "?openat,?write,?pwrite64,?writev,?pwritev,?ftruncate,?truncate,?fallocate,?fsync,?fdatasync,?msync,\
                     ?rename,?renameat,?renameat2,?mkdir,?mkdirat,?unlink,?unlinkat,?rmdir,?link,?linkat,?symlink,\
                     ?symlinkat,?copy_file_range,?sendfile";

/// A call of a command.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its name, `fsync`.
    pub name: String,
    /// The file or folder it names, below the command's folder; the old name of a rename.
    pub path: PathBuf,
    /// Which of the calls of this name on this path it is, counted from 1.
    pub nth: usize,
    /// Whether it changes something; an opening to read doesn't.
    pub changes: bool,
    /// Whether it fails without a fault, as making a folder that is there does.
    pub fails: bool,
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed where it makes the call.
    Kill,
    /// The call fails with the error of this name.
    Error(&'static str),
}

/// Why no fault can be injected here; none where one can.
pub fn missing() -> Option<String> {
    let tried = Command::new("strace").args(["-f", "-qq", "-o", "/dev/null", "true"]).output();
    match tried {
        Err(error) => Some(format!("strace doesn't start: {error}")),
        Ok(output) if !output.status.success() => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Ok(_) => None,
    }
}

/// The calls on files below `folder` that a command makes there, in their order.
pub fn calls(folder: &Path, command: &Command) -> Vec<Call> {
    let log = folder.with_extension("log");
    let options = ["-f", "-qq", "-y", "-s", "0", "-e", &format!("trace={CALLS}"), "-o"].map(str::to_owned);
    let output = run(folder, &[&options[..], &[log.display().to_string()]].concat(), command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(&log).expect("strace writes a log");
    fs::remove_file(&log).expect("the log can be removed");
    let (mut counts, mut calls) = (HashMap::new(), vec![]);
    for (name, paths, line) in text.lines().filter_map(|line| parse(line, folder)) {
        for path in &paths {
            *counts.entry((name.clone(), path.clone())).or_insert(0) += 1;
        }
        let path = paths[0].clone();
        let nth = counts[&(name.clone(), path.clone())];
        let changes = name != "openat" || line.contains("O_CREAT") || line.contains("O_WRONLY");
        calls.push(Call { name, path, nth, changes, fails: line.contains(" = -1 ") });
    }
    calls
}

/// Runs a command with a fault at one of its calls.
pub fn disturb(folder: &Path, command: &Command, call: &Call, fault: Fault) -> Output {
    let Call { name, path, nth, .. } = call;
    let what = match fault {
        Fault::Kill => "signal=KILL".to_owned(),
        Fault::Error(error) => format!("error={error}"),
    };
    let log = folder.with_extension("log");
    let mut options = vec!["-f".to_owned(), "-qq".to_owned(), "-o".to_owned(), log.display().to_string()];
    options.extend(["-e".to_owned(), format!("trace={name}"), "-e".to_owned()]);
    options.push(format!("inject={name}:{what}:when={nth}"));
    // A call names its file by the path it was given or by a descriptor; the folder itself by that alone.
    let paths = match path.as_os_str().is_empty() {
        true => vec![folder.to_owned()],
        false => vec![path.clone(), folder.join(path)],
    };
    options.extend(paths.iter().flat_map(|path| ["-P".to_owned(), path.display().to_string()]));
    let mut output = run(folder, &options, command);
    let log_text = fs::read_to_string(&log).unwrap_or_default();
    let hit = if fault == Fault::Kill { !output.status.success() } else { log_text.contains("(INJECTED)") };
    assert!(hit, "{call:?} is met by {fault:?}: {log_text}{}", String::from_utf8_lossy(&output.stderr));
    let _ = fs::remove_file(log);
    // strace tells of its own that a path is a link or isn't there.
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let own = |line: &&str| !line.starts_with("strace: ");
    output.stderr = told.lines().filter(own).map(|line| format!("{line}\n")).collect::<String>().into_bytes();
    output
}

fn run(folder: &Path, options: &[String], command: &Command) -> Output {
    let mut strace = Command::new("strace");
    strace.args(options).arg(command.get_program()).args(command.get_args()).current_dir(folder).stdin(Stdio::null());
    strace.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    strace.output().expect("strace starts")
}

/// A line's call and the paths below the folder that it names: `1234 fsync(3</folder/run/file>) = 0`.
fn parse<'a>(line: &'a str, folder: &Path) -> Option<(String, Vec<PathBuf>, &'a str)> {
    let (head, arguments) = line.split_once('(')?;
    let name = head.split_whitespace().last()?;
    let below = |path: &str| Some(folder.join(path).strip_prefix(folder).ok()?.to_owned());
    let paths: Vec<PathBuf> = if name.starts_with("rename") || name.starts_with("mkdir") || name.starts_with("open") {
        arguments.split('"').skip(1).step_by(2).filter_map(below).collect()
    } else if arguments.starts_with("AT_FDCWD<") {
        arguments.split('"').nth(1).and_then(below).into_iter().collect()
    } else {
        arguments.split_once('<').and_then(|(_, rest)| below(rest.split('>').next()?)).into_iter().collect()
    };
    (!paths.is_empty()).then(|| (name.to_owned(), paths, line))
}
