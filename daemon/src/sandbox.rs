//! What the process gives up before it serves anybody, for the case that somebody gets into it: files
//! other than its own (Landlock), starting programs and a list of system calls that it never makes
//! (seccomp), new privileges, core dumps. All threads have it, since it begins before the second one.

use crate::config::Config;
use landlock::{
    path_beneath_rules, Access as _, AccessFs, BitFlags, CompatLevel, Compatible, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, ABI,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Read, as far as they are there: name resolution and time zones, what the C library loads for them,
/// what the process and the kernel say of themselves.
const READ: [&str; 8] = [
    "/etc",
    "/lib",
    "/lib64",
    "/proc",
    "/run/systemd/resolve",
    "/sys",
    "/usr/lib",
    "/usr/share/zoneinfo",
];
/// Read and written, but not made.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/urandom"];
/// Numbers of x86-64's second set of system calls have this bit.
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;

/// What was given up, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// Nothing: it was not wanted.
    Off,
    /// Everything.
    Full,
    /// Everything but files: the kernel has no Landlock, or an old one.
    WithoutPaths,
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off, with --no-sandbox: this process may do what its user may",
            Self::Full => "only its own files, no programs, no core dumps",
            Self::WithoutPaths => {
                "no programs, no core dumps; files are not restricted: this kernel has no Landlock, or \
                 an old one"
            }
        })
    }
}

/// Gives it up, for good. To be called while the process has one thread.
///
/// # Errors
/// When the system refuses, or what was given up can still be done.
pub fn enter(config: &Config, config_file: Option<&Path>) -> Result<Sandbox, String> {
    let failed = |what: &str, why: &dyn fmt::Display| {
        format!("cannot {what}: {why}; --no-sandbox starts without, for looking into it")
    };
    // A folder that is not there can't be allowed.
    let mut builder = DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(&config.data);
    made.map_err(|e| failed(&format!("make {}", config.data.display()), &e))?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none)
        .map_err(|e| failed("turn core dumps off", &e))?;
    // Also for handlers of core dumps that take no notice of the limit, and against tracing.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| failed("turn core dumps off", &e))?;
    let paths = restrict_paths(config, config_file).map_err(|e| failed("restrict paths", &e))?;
    for program in filters().map_err(|e| failed("restrict system calls", &e))? {
        seccompiler::apply_filter(&program).map_err(|e| failed("restrict system calls", &e))?;
    }
    let sandbox = match paths {
        RulesetStatus::FullyEnforced => Sandbox::Full,
        RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => Sandbox::WithoutPaths,
    };
    check(sandbox).map_err(|e| failed("trust the sandbox", &e))?;
    Ok(sandbox)
}

/// Tries what must not work any more.
fn check(sandbox: Sandbox) -> Result<(), &'static str> {
    let refused = |result: io::Result<()>| matches!(result, Err(e) if e.kind() == io::ErrorKind::PermissionDenied);
    if !refused(run_program(Path::new("/proc/self/exe"))) {
        return Err("a program can still be started");
    }
    if sandbox == Sandbox::Full && !refused(File::open("/").map(drop)) {
        return Err("a folder that is not the daemon's can still be opened");
    }
    match rustix::process::dumpable_behavior() {
        Ok(DumpableBehavior::NotDumpable) => Ok(()),
        _ => Err("memory with keys in it can still be dumped"),
    }
}

fn run_program(path: &Path) -> io::Result<()> {
    let mut command = Command::new(path);
    command.arg("--version");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().map(drop)
}

/// Tries to read, write and run a file, and says how that went. For tests, in which it stands for what
/// somebody who got into the process would try.
#[must_use]
pub fn probe(path: &Path) -> String {
    let told = |result: io::Result<()>| match result {
        Ok(()) => "done".to_owned(),
        Err(e) => format!("{:?}", e.kind()),
    };
    let read = File::open(path).map(drop);
    let write = File::options().append(true).open(path).map(drop);
    let new = File::create_new(path.with_extension("new")).map(drop);
    format!(
        "read {}, write {}, create {}, run {}",
        told(read),
        told(write),
        told(new),
        told(run_program(path))
    )
}

fn restrict_paths(
    config: &Config,
    config_file: Option<&Path>,
) -> Result<RulesetStatus, landlock::RulesetError> {
    // What exists since Linux 6.10; what later kernels add is no matter of files on a disk.
    let all = AccessFs::from_all(ABI::V5);
    let own = all & !AccessFs::Execute;
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev | AccessFs::Truncate;
    let store_folders = config.stores.iter().map(|store| folder_of(store));
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .create()?
        .add_rules(path_beneath_rules(written(config), own))?
        .add_rules(path_beneath_rules(devices(config), device))?
        .add_rules(path_beneath_rules(only_read(config, config_file), read))?
        // An entry of a folder is made durable through the folder.
        .add_rules(path_beneath_rules(store_folders, AccessFs::ReadDir))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// Folders in which the daemon makes files: its own, those of stores that are not there yet, that of the
/// keyring, that of a recording.
fn written(config: &Config) -> Vec<PathBuf> {
    let mut folders = vec![config.data.clone()];
    let to_make = config.stores.iter().filter(|store| !store.exists());
    folders.extend(to_make.map(|store| folder_of(store)));
    let keyring = config.keys.keyring();
    folders.extend(keyring.map(|path| folder_of(&config.data.join(path))));
    let record = std::env::var_os("ESKER_RECORD");
    folders.extend(record.map(|path| folder_of(Path::new(&path))));
    folders
}

/// Files and devices that are there and written in place.
fn devices(config: &Config) -> Vec<PathBuf> {
    let stores = config.stores.iter().filter(|store| store.exists()).cloned();
    stores.chain(DEVICES.map(PathBuf::from)).collect()
}

/// Folders, since the files in them may be replaced by others of the same name.
fn only_read(config: &Config, config_file: Option<&Path>) -> Vec<PathBuf> {
    let mut folders: Vec<_> = READ.map(PathBuf::from).to_vec();
    let tls = config.tls.files.iter();
    let tls = tls.flat_map(|f| [Some(&f.cert), Some(&f.key), f.ca.as_ref()]);
    let files = tls.flatten().map(PathBuf::as_path).chain(config_file);
    let files = files.chain(config.keys.files());
    for file in files {
        folders.push(folder_of(file));
        // Where it really lies, when its name is a link.
        folders.extend(file.canonicalize().ok().map(|real| folder_of(&real)));
    }
    folders
}

fn folder_of(path: &Path) -> PathBuf {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).to_path_buf()
}

/// The filters: what is refused, and `clone3`, of which a filter cannot see the arguments: it is said not
/// to exist, and who wants a thread uses `clone`.
fn filters() -> Result<[BpfProgram; 2], seccompiler::Error> {
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for number in REFUSED {
        refused.insert(*number, Vec::new());
    }
    let thread = u64::try_from(libc::CLONE_THREAD).unwrap_or(u64::MAX);
    let no_thread = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(thread),
        0,
    )?;
    refused.insert(libc::SYS_clone, vec![SeccompRule::new(vec![no_thread])?]);
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let errno = |number: i32| SeccompAction::Errno(number.unsigned_abs());
    let arch = std::env::consts::ARCH;
    let program = |rules, number| -> Result<BpfProgram, seccompiler::Error> {
        let arch = arch.try_into()?;
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno(number), arch)?;
        Ok(filter.try_into()?)
    };
    Ok([
        program(unknown, libc::ENOSYS)?,
        program(refused, libc::EPERM)?,
    ])
}

/// System calls that the daemon never makes, and with which more could be reached than it has.
const REFUSED: &[i64] = &[
    // Other programs and processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    (X32 | 520), // execve of the second set
    #[cfg(target_arch = "x86_64")]
    (X32 | 545), // and execveat
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // The system's shape.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    libc::SYS_personality,
    // Files by other ways than their paths, and who one is.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    // Keys of the kernel.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];
