//! Facts about the machine: how much memory it can give and this process uses, its processor, and the build of the program
//! that runs on it.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

use crate::counted::counted;

/// Memory that the system can give; `None` where it doesn't say. A control group's limit counts where it is lower.
pub fn available_bytes() -> Option<u64> {
    let of_system = field("/proc/meminfo", "MemAvailable:");
    let groups = read_to_string("/proc/self/cgroup").unwrap_or_default();
    let of_groups = groups.lines().flat_map(limit_files).filter_map(|file| limit(&file));
    of_system.into_iter().chain(of_groups).min()
}

/// The resident size of this process; 0 where the system doesn't say.
pub fn resident_bytes() -> u64 {
    field("/proc/self/status", "VmRSS:").unwrap_or(0)
}

/// The largest resident size of this process so far; 0 where the system doesn't say.
pub fn peak_rss_bytes() -> u64 {
    field("/proc/self/status", "VmHWM:").unwrap_or(0)
}

/// The processor's name as the system gives it, and its number of threads.
pub fn processor() -> String {
    let text = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = name.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{name}, {}", counted(threads, "thread"))
}

/// The program's version with the commit that it was built from; a debug build has only the version.
pub fn build() -> String {
    match env!("WEFT_COMMIT") {
        "" => env!("CARGO_PKG_VERSION").to_owned(),
        commit => format!("{} (commit {commit})", env!("CARGO_PKG_VERSION")),
    }
}

/// The value of a line `name N kB` in one of the system's files, in bytes.
fn field(file: &str, name: &str) -> Option<u64> {
    let text = read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// The files that may limit memory according to a line of /proc/self/cgroup, `number:controllers:path`: those of its
/// group and of the groups around it, in version 2 or 1 of control groups.
fn limit_files(line: &str) -> Vec<PathBuf> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return vec![] };
    let (root, file) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return vec![],
    };
    let group = Path::new(path.trim_start_matches('/'));
    group.ancestors().map(|group| Path::new(root).join(group).join(file)).collect()
}

/// A limit in bytes; `None` if there is no file or the file says `max`.
fn limit(file: &Path) -> Option<u64> {
    read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_limited_by_those_around_it() {
        let files = |line| limit_files(line).into_iter().map(|f| f.display().to_string()).collect::<Vec<_>>();
        let of_second = ["/sys/fs/cgroup/user/job/memory.max", "/sys/fs/cgroup/user/memory.max"];
        assert_eq!(files("0::/user/job")[..2], of_second);
        assert_eq!(files("0::/user/job")[2], "/sys/fs/cgroup/memory.max");
        assert_eq!(files("4:cpu,memory:/job")[0], "/sys/fs/cgroup/memory/job/memory.limit_in_bytes");
        assert_eq!(files("6:freezer:/job"), Vec::<String>::new());
        assert!(files("not a group").is_empty());
    }

    #[test]
    fn this_process_takes_memory_that_the_system_has() {
        if !cfg!(target_os = "linux") {
            return;
        }
        assert!(resident_bytes() > 1 << 20 && peak_rss_bytes() >= resident_bytes() / 2);
        assert!(available_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
