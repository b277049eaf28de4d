"""The seccomp allow-list of containers that do not bring their own: Docker's, for this machine and these capabilities.

Rule: a call is allowed unconditionally (``ALWAYS``), or because a capability already allows what it does
(``BY_CAPABILITY``), or with certain arguments only (``_conditional``); all else is ``EPERM``. Sources: "Seccomp
security profiles for Docker", and the capability checks of the calls, capabilities(7).
"""

from __future__ import annotations

import functools
import platform
from typing import Any

import msgspec

from oci.errors import InvalidArgument

ENOSYS = 38
AF_ALG, AF_VSOCK = 38, 40
NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET: without them clone(2) makes threads, children."""

PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX and PER_LINUX32, each with and without UNAME26, and the query."""

_ALWAYS_TEXT = """
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime
clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64
close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat
faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat
fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs
fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat
get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32
getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid
getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy
io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill
landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen
listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise
map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap
mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2
pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease
pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg
recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall
riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area
set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid
setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid
setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync
sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat
utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
"""

ALWAYS: tuple[str, ...] = tuple(_ALWAYS_TEXT.split())

SINCE_4_8 = ("process_vm_readv", "process_vm_writev", "ptrace")
"""Harmless since Linux 4.8 checks seccomp after ptrace; Gantry needs newer kernels anyway."""

BY_CAPABILITY: dict[str, str] = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": (
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr "
        "lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl "
        "quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare"
    ),
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

BY_MACHINE: dict[str, str] = {
    "x86_64": "arch_prctl modify_ldt",
    "aarch64": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    "ppc64le": "sync_file_range2 swapcontext",
    "s390x": "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
    "riscv64": "riscv_flush_icache",
}

ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "loongarch64": ("SCMP_ARCH_LOONGARCH64",),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
}
"""The kernel's own architecture and those it also runs programs of."""

GO_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def default_profile(capabilities: list[str], machine: str = "") -> dict[str, Any]:
    """The OCI ``linux.seccomp`` object for a container with these capabilities. Callers must not change it."""
    return _default_profile(frozenset(capabilities), machine or platform.machine())


@functools.lru_cache(maxsize=32)
def _default_profile(capabilities: frozenset[str], machine: str) -> dict[str, Any]:
    names = [*ALWAYS, *SINCE_4_8, *BY_MACHINE.get(machine, "").split()]
    for capability, calls in BY_CAPABILITY.items():
        if capability in capabilities:
            names += calls.split()
    profile: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1}
    if machine in ARCHITECTURES:
        profile["architectures"] = list(ARCHITECTURES[machine])
    profile["syscalls"] = [
        {"names": sorted(set(names)), "action": "SCMP_ACT_ALLOW"},
        *_conditional(admin="CAP_SYS_ADMIN" in capabilities, machine=machine),
    ]
    return profile


def _conditional(*, admin: bool, machine: str) -> list[dict[str, Any]]:
    """Rules that look at arguments: sockets not for containers, personalities, clone without namespaces."""
    rules = [
        _rule("socket", 0, AF_ALG, "SCMP_CMP_LT"),
        *(_rule("socket", 0, family, "SCMP_CMP_EQ") for family in range(AF_ALG + 1, AF_VSOCK)),
        _rule("socket", 0, AF_VSOCK, "SCMP_CMP_GT"),
        *(_rule("personality", 0, value, "SCMP_CMP_EQ") for value in PERSONALITIES),
    ]
    if not admin:
        clone = _rule("clone", 1 if machine == "s390x" else 0, NAMESPACE_FLAGS, "SCMP_CMP_MASKED_EQ")
        clone["args"][0]["valueTwo"] = 0
        # clone3's flags are behind a pointer: ENOSYS makes C libraries fall back to clone.
        rules += [clone, {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}]
    return rules


def _rule(name: str, index: int, value: int, operator: str) -> dict[str, Any]:
    argument: dict[str, Any] = {"index": index, "value": value, "op": operator}
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument]}


def custom_profile(text: str, capabilities: list[str]) -> dict[str, Any]:
    """A user's profile (Docker's JSON format) for this machine: conditions resolved, ``archMap`` chosen.

    Raises InvalidArgument in Docker's words when it is no JSON or has no default action.
    """
    try:
        document = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"Decoding seccomp profile failed: {error}") from None
    if not isinstance(document, dict):
        raise InvalidArgument("Decoding seccomp profile failed: a JSON object is expected")
    if document.get("architectures") and document.get("archMap"):
        raise InvalidArgument("both 'architectures' and 'archMap' are specified in the seccomp profile, use either one")
    machine = platform.machine()
    profile = {
        key: document[key]
        for key in ("defaultAction", "defaultErrnoRet", "architectures", "flags", "listenerPath", "listenerMetadata")
        if document.get(key)
    }
    profile["defaultAction"] = document.get("defaultAction") or ""
    for entry in document.get("archMap") or ():
        native = ARCHITECTURES.get(machine, ("",))[0]
        if entry.get("architecture") == native:
            profile["architectures"] = [native, *(entry.get("subArchitectures") or ())]
    profile["syscalls"] = [
        rule
        for call in document.get("syscalls") or ()
        if (rule := _resolve(call, frozenset(capabilities), machine)) is not None
    ]
    return profile


def _resolve(call: dict[str, Any], capabilities: frozenset[str], machine: str) -> dict[str, Any] | None:
    """One entry of a user's profile without its conditions; None when they do not hold here."""
    names = call.get("names") or ([call["name"]] if call.get("name") else [])
    if call.get("name") and call.get("names"):
        raise InvalidArgument("both 'name' and 'names' are specified in the seccomp profile, use either one")
    includes, excludes = call.get("includes") or {}, call.get("excludes") or {}
    if any(capability not in capabilities for capability in includes.get("caps") or ()):
        return None
    if any(capability in capabilities for capability in excludes.get("caps") or ()):
        return None
    machines = {GO_MACHINES.get(name, name) for name in includes.get("arches") or ()}
    if machines and machine not in machines:
        return None
    if machine in {GO_MACHINES.get(name, name) for name in excludes.get("arches") or ()}:
        return None
    minimum, maximum = includes.get("minKernel"), excludes.get("minKernel")
    if minimum and not _kernel_at_least(minimum):
        return None
    if maximum and _kernel_at_least(maximum):
        return None
    rule = {"names": names, "action": call.get("action", "")}
    if call.get("errnoRet") is not None:
        rule["errnoRet"] = call["errnoRet"]
    if call.get("args"):
        rule["args"] = call["args"]
    return rule


def _kernel_at_least(version: str) -> bool:
    try:
        wanted = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        raise InvalidArgument(f"invalid minKernel in the seccomp profile: {version!r}") from None
    release = platform.release().split("-")[0].split(".")[:2]
    return tuple(int(part) for part in release) >= wanted
