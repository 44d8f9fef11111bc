"""What a process gives up before it runs a third party's code: `shut_in`.

Three locks of the Linux kernel, each open to an unprivileged process, and each without a way back:
- a system call filter (seccomp): no socket, no other process, no signal to one, no look into one;
- a network namespace of its own, without any interface;
- Landlock: no file but those of Python, of the system's libraries and devices, and of the folders that are named.

Imports nothing but the standard library: a process that has threads, such as those of numpy, cannot change its user
namespace any more.
"""

import ctypes
import errno
import os
import platform
import resource
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIGKILL = 9


@dataclass(frozen=True)
class Locks:
    """Which locks hold: "" or why the kernel refused.

    calls: the system call filter.  network: the namespace.  files: Landlock.
    """

    calls: str = ""
    network: str = ""
    files: str = ""

    @property
    def missing(self) -> str:
        """What a third party's code could still do, in words with the kernel's answers; empty: it is shut in.

        The filter alone already keeps the network away; so does the namespace, except for sockets in the file system.
        """
        said = []
        if self.calls:
            said.append(f"it could start processes and signal others (seccomp: {self.calls})")
        if self.calls and self.network:
            said.append(f"it could use the network (network namespace: {self.network})")
        if self.files:
            said.append(f"it could read the node's files (Landlock: {self.files})")
        return "; ".join(said)


def shut_in(read: Iterable[str], write: Iterable[str], limits: dict[int, int]) -> Locks:
    """Give up for good what a model does not need. Returns which locks hold.

    read, write: folders that stay readable, or writable, apart from those of Python and the system.
    limits: by `resource.RLIMIT_...`.
    """
    for name, value in limits.items():
        _, hard = resource.getrlimit(name)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))
    network = _tried(_leave_network)
    # Only now: a change of namespace may forget it.
    _LIBC.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    files = _tried(lambda: _close_files(read, write))
    return Locks(_tried(lambda: filter_calls(_rules())), network, files)


def _tried(lock: Callable[[], None]) -> str:
    try:
        lock()
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


# --- Network ---

_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000


def _leave_network() -> None:
    """A user namespace, and in it a network that leads nowhere. Our files stay ours, though we have no name in it."""
    _checked(_LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC))


# --- Files: Landlock, see linux/landlock.h ---

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on all architectures
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
_ALL_BY_VERSION = ((1, (1 << 13) - 1), (2, 1 << 13), (3, _TRUNCATE), (5, _IOCTL_DEVICE))
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FOR_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/sys")
# Not all of it: the environment of another process may hold a password.
_PROCESS = ("self", "cpuinfo", "meminfo", "stat", "sys", "version", "filesystems", "driver")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_GPUS = ("nvidia", "dri", "kfd")


def _close_files(read: Iterable[str], write: Iterable[str]) -> None:
    version = _checked(_LIBC.syscall(_CREATE_RULESET, None, 0, 1))
    every = sum(rights for since, rights in _ALL_BY_VERSION if version >= since)
    attributes = struct.pack("<Q", every)
    ruleset = _checked(_LIBC.syscall(_CREATE_RULESET, attributes, len(attributes), 0))
    try:
        python = [part for entry in (*sys.path, sys.prefix, sys.base_prefix) if entry for part in _code_in(Path(entry))]
        system = [*map(Path, _SYSTEM), *(Path("/proc") / name for name in _PROCESS)]
        for path in (*python, *system, *map(Path, read)):
            _open_to(ruleset, path, _READ & every)
        for path in (*_devices(), *map(Path, write)):
            _open_to(ruleset, path, every)
        _checked(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _code_in(folder: Path) -> list[Path]:
    """A folder of Python's; of a checkout of this program only its packages: it may hold the node's data too."""
    checkout = Path(__file__).resolve().parents[2]
    if folder.resolve() != checkout or not (checkout / "setup.cfg").is_file():
        return [folder]
    return [path.parent for path in checkout.glob("*/__init__.py")]


def _devices() -> Iterator[Path]:
    for path in Path("/dev").iterdir():
        if path.name in _DEVICES or path.name.startswith(_GPUS):
            yield path


def _open_to(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there needs no rule
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _FOR_FILES
        _checked(_LIBC.syscall(_ADD_RULE, ruleset, 1, struct.pack("<Qi", rights, descriptor), 0))
    finally:
        os.close(descriptor)


# --- System calls: seccomp, see linux/seccomp.h and linux/bpf_common.h ---

_NUMBERS = {  # by machine: the architecture's number, and those of its calls
    "x86_64": (0xC000003E, {
        "socket": 41, "clone": 56, "fork": 57, "vfork": 58, "kill": 62, "ptrace": 101, "rt_sigqueueinfo": 129,
        "mount": 165, "umount2": 166, "tkill": 200, "tgkill": 234, "keyctl": 250, "unshare": 272,
        "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "prlimit64": 302, "setns": 308, "process_vm_readv": 310,
        "process_vm_writev": 311, "bpf": 321,
    }),
    "aarch64": (0xC00000B7, {
        "socket": 198, "clone": 220, "kill": 129, "ptrace": 117, "rt_sigqueueinfo": 138, "mount": 40, "umount2": 39,
        "tkill": 130, "tgkill": 131, "keyctl": 219, "unshare": 97, "rt_tgsigqueueinfo": 240, "perf_event_open": 241,
        "prlimit64": 261, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "bpf": 280,
    }),
}  # fmt: skip
# Newer calls have the same number on every architecture.
_NEWER = {"pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430,
          "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "mount_setattr": 442}  # fmt: skip
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_X32_BIT = 0x40000000
_CLONE_THREAD = 0x00010000
_SET_MODE_FILTER, _ALL_THREADS = 1, 1


@dataclass(frozen=True)
class Rule:
    """A call that is answered with an error, unless its first argument is `equal`, or has one of `bits`."""

    call: str
    error: int = errno.EPERM
    equal: int | None = None
    bits: int | None = None


def _rules() -> list[Rule]:
    own = os.getpid()
    special = [
        Rule("clone", bits=_CLONE_THREAD),  # threads, but no process
        Rule("clone3", errno.ENOSYS),  # its flags cannot be seen: the C library then uses clone
        Rule("tgkill", equal=own),  # what abort() does
        Rule("prlimit64", equal=0),  # its own limits
    ]
    _, calls = _NUMBERS.get(platform.machine(), (0, {}))
    named = {rule.call for rule in special}
    return special + [Rule(call) for call in (*calls, *_NEWER) if call not in named]


def filter_calls(rules: Iterable[Rule], more: dict[str, int] | None = None) -> None:
    """Have the kernel answer these calls with an error, in all threads of this process and what it starts.

    more: numbers of calls that this module does not name.
    Raises OSError if the kernel refuses, or on a machine whose calls are not listed.
    """
    if platform.machine() not in _NUMBERS:
        raise OSError(errno.ENOSYS, f"not known for {platform.machine()}")
    architecture, calls = _NUMBERS[platform.machine()]
    numbers = {**calls, **_NEWER, **(more or {})}
    program = [
        _step(_LOAD, _ARCHITECTURE_AT),
        _step(_IF_EQUAL, architecture, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER_AT),
        _step(_IF_AT_LEAST, _X32_BIT, 0, 1),
        _step(_RETURN, _KILL),
    ]
    for rule in rules:
        program += _compiled(rule, numbers[rule.call])
    program.append(_step(_RETURN, _ALLOW))
    _install(program)


def _compiled(rule: Rule, number: int) -> list[bytes]:
    answer = _step(_RETURN, _ERRNO | rule.error)
    if rule.equal is None and rule.bits is None:
        return [_step(_IF_EQUAL, number, 0, 1), answer]
    kind, value = (_IF_EQUAL, rule.equal) if rule.equal is not None else (_IF_BITS, rule.bits or 0)
    return [
        _step(_IF_EQUAL, number, 0, 4),
        _step(_LOAD, _FIRST_ARGUMENT_AT),
        _step(kind, value, 1, 0),
        answer,
        _step(_RETURN, _ALLOW),
    ]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _install(program: list[bytes]) -> None:
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]

    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    filter_ = Program(len(program), b"".join(program))
    number = {"x86_64": 317, "aarch64": 277}[platform.machine()]
    _checked(_LIBC.syscall(number, _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(filter_)))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


if __name__ == "__main__":
    print(shut_in((), (), {}).missing)
