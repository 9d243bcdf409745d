//! The self-check: what the configuration may come to need, against what the system gives.
//!
//! Owns: nothing. Threads: the application's, at the start of a node. Locks: none. Blocks on: a few files of `/proc`.
//! Upholds: each limit that is lower than the configuration needs is told once, with what it is for and how to raise it;
//! what cannot be read is not judged.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// Descriptors beside the sockets: standard streams, the poll and its waker, files of the application.
const OTHER_DESCRIPTORS: u64 = 32;
/// Threads of a node beside those of its sessions: acceptor, supervisor, workers, resolvers, the application's main.
const OTHER_THREADS: u64 = 16;
/// Memory maps a thread takes: its stack and the guard page, and those of its signal stack.
const MAPS_PER_THREAD: u64 = 4;
/// Memory maps of a program without threads.
const OTHER_MAPS: u64 = 512;

/// A limit of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SystemLimit {
    /// Open descriptors of the process (`ulimit -n`).
    Descriptors,
    /// Threads of the user (`ulimit -u`).
    UserThreads,
    /// Threads of the whole system (`kernel.threads-max`).
    SystemThreads,
    /// Threads of the control group (`pids.max`).
    GroupThreads,
    /// Memory maps of the process (`vm.max_map_count`).
    MemoryMaps,
    /// Connections that wait to be accepted (`net.core.somaxconn`).
    Backlog,
}

impl fmt::Display for SystemLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "open descriptors (RLIMIT_NOFILE)",
            Self::UserThreads => "threads of the user (RLIMIT_NPROC)",
            Self::SystemThreads => "threads of the system (kernel.threads-max)",
            Self::GroupThreads => "threads of the control group (pids.max)",
            Self::MemoryMaps => "memory maps of the process (vm.max_map_count)",
            Self::Backlog => "connections that wait to be accepted (net.core.somaxconn)",
        })
    }
}

/// A limit of the system that is lower than the configuration may need. `Display` says all of it in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// Which.
    pub limit: SystemLimit,
    /// What the configuration may come to need.
    pub needed: u64,
    /// What the system gives.
    pub allowed: u64,
    /// What it is needed for.
    pub why: String,
}

impl Finding {
    /// How to raise the limit.
    pub fn remedy(&self) -> String {
        let needed = self.needed;
        match self.limit {
            SystemLimit::Descriptors => format!("ulimit -n {needed}, or LimitNOFILE={needed} of its systemd unit"),
            SystemLimit::UserThreads => format!("ulimit -u {needed}, or LimitNPROC={needed} of its systemd unit"),
            SystemLimit::SystemThreads => format!("sysctl kernel.threads-max={needed}"),
            SystemLimit::GroupThreads => {
                format!("TasksMax={needed} of its systemd unit, or --pids-limit={needed} of its container")
            }
            SystemLimit::MemoryMaps => format!("sysctl vm.max_map_count={needed}"),
            SystemLimit::Backlog => format!("sysctl net.core.somaxconn={needed}"),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, needed, allowed, why } = self;
        write!(f, "{limit}: {allowed} allowed, {needed} needed for {why}; raise it: {}", self.remedy())?;
        match limit {
            SystemLimit::Backlog => Ok(()),
            SystemLimit::Descriptors => f.write_str("; or lower inbound, outbound or half_open"),
            _ => f.write_str("; or lower inbound or outbound"),
        }
    }
}

/// What a configuration may come to need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needs {
    /// Sessions there may be.
    pub(super) sessions: u64,
    /// Connections in a handshake there may be.
    pub(super) half_open: u64,
    /// Addresses it listens on.
    pub(super) listeners: u64,
    /// Sockets of the metrics endpoint.
    pub(super) scrapers: u64,
    /// Connections that may wait to be accepted.
    pub(super) backlog: u64,
}

/// What the system gives; `None` is no limit, or one that could not be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Readings {
    pub(super) descriptors: Option<u64>,
    pub(super) user_threads: Option<u64>,
    pub(super) system_threads: Option<u64>,
    pub(super) group_threads: Option<u64>,
    pub(super) memory_maps: Option<u64>,
    pub(super) backlog: Option<u64>,
}

/// The limits that are lower than what is needed.
pub(super) fn check(needs: &Needs, readings: &Readings) -> Vec<Finding> {
    let Needs { sessions, half_open, listeners, scrapers, backlog } = *needs;
    let sockets = sessions.saturating_add(half_open).saturating_add(listeners).saturating_add(scrapers);
    let descriptors = sockets.saturating_add(OTHER_DESCRIPTORS);
    let threads = sessions.saturating_mul(2).saturating_add(OTHER_THREADS);
    let maps = threads.saturating_mul(MAPS_PER_THREAD).saturating_add(OTHER_MAPS);
    let for_threads = format!("two threads for each of {sessions} sessions (inbound + outbound)");
    let for_maps = format!("{MAPS_PER_THREAD} maps for each of {threads} threads (the process aborts without them)");
    let for_descriptors = format!("{sessions} sessions (inbound + outbound) and {half_open} handshakes (half_open)");
    let limits = [
        (SystemLimit::Descriptors, readings.descriptors, descriptors, &for_descriptors),
        (SystemLimit::UserThreads, readings.user_threads, threads, &for_threads),
        (SystemLimit::SystemThreads, readings.system_threads, threads, &for_threads),
        (SystemLimit::GroupThreads, readings.group_threads, threads, &for_threads),
        (SystemLimit::MemoryMaps, readings.memory_maps, maps, &for_maps),
        (SystemLimit::Backlog, readings.backlog, backlog, &"a burst of dials to this node".to_owned()),
    ];
    let mut findings = Vec::new();
    for (limit, allowed, needed, why) in limits {
        if let Some(allowed) = allowed.filter(|allowed| *allowed < needed) {
            findings.push(Finding { limit, needed, allowed, why: why.clone() });
        }
    }
    findings
}

impl Readings {
    /// Asks the system.
    pub(super) fn take() -> Self {
        Self {
            descriptors: getrlimit(Resource::Nofile).current,
            user_threads: getrlimit(Resource::Nproc).current,
            system_threads: number_in("/proc/sys/kernel/threads-max".as_ref()),
            group_threads: group_threads(),
            memory_maps: number_in("/proc/sys/vm/max_map_count".as_ref()),
            backlog: number_in("/proc/sys/net/core/somaxconn".as_ref()),
        }
    }
}

/// The number a file holds; `max` is none.
fn number_in(path: &Path) -> Option<u64> {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().parse().ok(),
        Err(error) => {
            log::debug!(target: "threadwire::node", "self-check: {}: {error}", path.display());
            None
        }
    }
}

/// The least `pids.max` of the control group and those above it.
fn group_threads() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let files = groups.lines().filter_map(group_folder).flat_map(|(root, group)| limits_above(&root, &group));
    files.filter(|file| file.exists()).filter_map(|file| number_in(&file)).min()
}

/// Where the process limits of a line of `/proc/self/cgroup` are, and the group below it: of version 2, or of the pids
/// controller of version 1.
fn group_folder(line: &str) -> Option<(PathBuf, String)> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
    let root = match controllers {
        "" => "/sys/fs/cgroup",
        _ if controllers.split(',').any(|controller| controller == "pids") => "/sys/fs/cgroup/pids",
        _ => return None,
    };
    Some((root.into(), group.trim_start_matches('/').to_owned()))
}

/// The `pids.max` of a group and of all groups above it.
fn limits_above(root: &Path, group: &str) -> Vec<PathBuf> {
    let folder = root.join(group);
    folder.ancestors().take_while(|folder| folder.starts_with(root)).map(|folder| folder.join("pids.max")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The defaults of `config.toml`.
    const NEEDS: Needs = Needs { sessions: 576, half_open: 256, listeners: 1, scrapers: 0, backlog: 1024 };

    /// Just enough of everything.
    fn enough() -> Readings {
        Readings {
            descriptors: Some(865),
            user_threads: Some(1168),
            system_threads: Some(1168),
            group_threads: Some(1168),
            memory_maps: Some(5184),
            backlog: Some(1024),
        }
    }

    #[test]
    fn what_is_enough_or_unknown_is_not_told() {
        assert_eq!(check(&NEEDS, &enough()), []);
        assert_eq!(check(&NEEDS, &Readings::default()), []);
        let most = u64::MAX;
        let greedy = Needs { sessions: most, half_open: most, listeners: most, scrapers: most, backlog: most };
        assert_eq!(check(&greedy, &enough()).len(), 6, "without overflow");
    }

    #[test]
    fn each_limit_that_is_one_too_low_is_told_alone_with_need_reason_and_remedy() {
        type Lower = fn(&mut Readings) -> &mut Option<u64>;
        let limits: [(SystemLimit, Lower, u64, &[&str]); 6] = [
            (
                SystemLimit::Descriptors,
                |r| &mut r.descriptors,
                865,
                &["576 sessions", "256 handshakes", "ulimit -n 865"],
            ),
            (SystemLimit::UserThreads, |r| &mut r.user_threads, 1168, &["two threads", "ulimit -u 1168"]),
            (SystemLimit::SystemThreads, |r| &mut r.system_threads, 1168, &["sysctl kernel.threads-max=1168"]),
            (SystemLimit::GroupThreads, |r| &mut r.group_threads, 1168, &["TasksMax=1168", "--pids-limit=1168"]),
            (SystemLimit::MemoryMaps, |r| &mut r.memory_maps, 5184, &["aborts", "sysctl vm.max_map_count=5184"]),
            (SystemLimit::Backlog, |r| &mut r.backlog, 1024, &["burst", "sysctl net.core.somaxconn=1024"]),
        ];
        for (limit, lower, needed, words) in limits {
            let mut readings = enough();
            *lower(&mut readings) = Some(needed - 1);
            let findings = check(&NEEDS, &readings);
            let [finding] = &findings[..] else { panic!("{findings:?}") };
            assert_eq!((finding.limit, finding.needed, finding.allowed), (limit, needed, needed - 1));
            let line = finding.to_string();
            assert!(
                !line.contains('\n') && line.contains(&format!("{} allowed, {needed} needed", needed - 1)),
                "{line}"
            );
            assert!(words.iter().all(|word| line.contains(word)), "{line}");
        }
    }

    #[test]
    fn the_limits_of_control_groups_are_found_where_the_system_keeps_them() {
        let of = |line| group_folder(line).map(|(root, group)| limits_above(&root, &group));
        let paths = |paths: &[&str]| Some(paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(
            of("0::/a.slice/b"),
            paths(&["/sys/fs/cgroup/a.slice/b/pids.max", "/sys/fs/cgroup/a.slice/pids.max", "/sys/fs/cgroup/pids.max"])
        );
        assert_eq!(of("4:cpu,pids:/"), paths(&["/sys/fs/cgroup/pids/pids.max"]));
        assert_eq!((of("3:memory:/x"), of("nonsense"), of("")), (None, None, None));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_says_something() {
        let readings = Readings::take();
        assert!(readings.system_threads.is_some() && readings.memory_maps.is_some(), "{readings:?}");
    }
}
