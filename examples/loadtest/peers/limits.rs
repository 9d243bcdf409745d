//! Which limit of this system is too low for so many peers, before anything is started.
//!
//! Owns: nothing. Threads: the measuring thread. Locks: none. Blocks on: reading `/proc` and the control groups.
//! Upholds: a limit is named by where it is set, with what it allows and what is needed; a limit that the system does
//! not tell is not guessed: then the run itself shows it.

use std::fs;

/// Threads of a node for each peer.
const THREADS: u64 = 2;
/// Memory maps of a thread: its stack, its signal stack, a guard page below each.
const MAPS: u64 = 4;
/// Maps, descriptors and threads of a process beside its peers, with room to spare.
const MAPS_BESIDE: u64 = 500;
const DESCRIPTORS_BESIDE: u64 = 64;
const THREADS_BESIDE: u64 = 64;

/// One thing that so many peers need and the system bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Need {
    what: &'static str,
    needed: u64,
    limit: String,
    allowed: u64,
}

/// The first limit that `count` peers in processes of at most `per_process` would meet, as a sentence.
pub fn first_too_low(count: usize, per_process: usize) -> Option<String> {
    let too_low = needs(count as u64, per_process as u64).into_iter().find(|need| need.needed > need.allowed)?;
    let Need { what, needed, limit, allowed } = too_low;
    Some(format!("{count} peers need {needed} {what}, and {limit} allows {allowed}"))
}

fn needs(count: u64, per_process: u64) -> Vec<Need> {
    let mut needs = Vec::new();
    let mut need = |what, needed, limit: &str, allowed: Option<u64>| {
        needs.extend(allowed.map(|allowed| Need { what, needed, limit: limit.to_owned(), allowed }));
    };
    let files = process_limit("Max open files");
    need("descriptors in the node's process", count + DESCRIPTORS_BESIDE, "RLIMIT_NOFILE (ulimit -n)", files);
    let hosted = count.min(per_process);
    need("descriptors in each process of peers", hosted + DESCRIPTORS_BESIDE, "RLIMIT_NOFILE (ulimit -n)", files);
    let maps = number("/proc/sys/vm/max_map_count");
    need("memory maps in the node's process", count * THREADS * MAPS + MAPS_BESIDE, "vm.max_map_count", maps);
    let threads = count * THREADS + THREADS_BESIDE;
    need("threads of this user", threads, "RLIMIT_NPROC (ulimit -u)", process_limit("Max processes"));
    let running = running_threads().unwrap_or(0);
    need("threads on this system", threads + running, "kernel.threads-max", number("/proc/sys/kernel/threads-max"));
    need("thread numbers", threads + running, "kernel.pid_max", number("/proc/sys/kernel/pid_max"));
    for (place, current) in control_groups() {
        need("threads in this control group", threads + current.unwrap_or(0), &place, number(&place));
    }
    need("ports of the peers' side", count, "net.ipv4.ip_local_port_range", ports());
    needs
}

/// A file with one number; `max` and what is not there are no limit.
fn number(place: &str) -> Option<u64> {
    fs::read_to_string(place).ok()?.trim().parse().ok()
}

/// The soft limit of this process in the line that begins with `name`.
fn process_limit(name: &str) -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Threads that exist on this system now.
fn running_threads() -> Option<u64> {
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    load.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// Where the control groups of this process bound its threads, and how many there are now.
fn control_groups() -> Vec<(String, Option<u64>)> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let folder = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        match controllers {
            "" => Some(format!("/sys/fs/cgroup{path}")),
            "pids" => Some(format!("/sys/fs/cgroup/pids{path}")),
            _ => None,
        }
    };
    let folders = groups.lines().filter_map(folder).map(|folder| folder.trim_end_matches('/').to_owned());
    folders.map(|folder| (format!("{folder}/pids.max"), number(&format!("{folder}/pids.current")))).collect()
}

/// Ports that one address has for dials.
fn ports() -> Option<u64> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut bounds = range.split_whitespace().map(str::parse::<u64>);
    let (first, last) = (bounds.next()?.ok()?, bounds.next()?.ok()?);
    Some((last + 1).saturating_sub(first))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_few_peers_meet_no_limit() {
        assert_eq!(first_too_low(1, 1), None);
    }

    #[test]
    fn too_many_peers_are_told_which_limit_is_in_the_way() {
        let sentence = first_too_low(100_000_000, 1000).unwrap();
        assert!(sentence.starts_with("100000000 peers need ") && sentence.contains(" allows "), "{sentence}");
    }

    #[test]
    fn every_limit_of_the_kernel_was_found() {
        let limits: Vec<_> = needs(1, 1).into_iter().map(|need| need.limit).collect();
        for limit in ["vm.max_map_count", "kernel.threads-max", "kernel.pid_max", "net.ipv4.ip_local_port_range"] {
            assert!(limits.iter().any(|found| found == limit), "{limit} is not among {limits:?}");
        }
    }
}
