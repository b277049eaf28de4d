"""The runtime spec document: reading and checking ``config.json``.

Rule: what is refused is refused here, before anything is made, with the JSON path of the culprit; the other modules
read the checked dictionary. Unknown members are ignored, as the runtime spec asks.
"""

from __future__ import annotations

from runc_py import documents, shape
from runc_py.errors import InvalidSpec
from runc_py.light import TYPE_CHECKING, os, read_file

if TYPE_CHECKING:
    from typing import Any, TypeAlias

Spec: TypeAlias = "dict[str, Any]"

NAMESPACE_TYPES = ("user", "pid", "mount", "network", "ipc", "uts", "cgroup", "time")
MAX_ID = 0xFFFFFFFE
_IPC_SYSCTLS = frozenset(
    f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)


def load_spec(bundle: str, name: str = "config.json") -> Spec:
    """The checked spec of ``bundle``."""
    document = read_spec(bundle, name)
    validate_spec(document)
    return document


def read_spec(bundle: str, name: str = "config.json") -> Spec:
    """The spec of ``bundle`` as it is written."""
    path = os.path.join(bundle, name)
    try:
        document = documents.loads(read_file(path))
    except FileNotFoundError:
        raise InvalidSpec(f"JSON specification file {name} not found in {bundle}") from None
    except (OSError, ValueError) as error:
        raise InvalidSpec(f"cannot read {path}: {error}") from error
    except RecursionError:
        raise InvalidSpec(f"{path} is nested too deeply") from None
    if not isinstance(document, dict):
        raise InvalidSpec(f"{path} is not a JSON object")
    return document


def validate_spec(spec: Spec) -> None:
    """Raise InvalidSpec for a spec that this runtime cannot or must not run."""
    shape.check(spec, shape.SPEC)
    spec = shape.plain(spec)
    version = spec.get("ociVersion")
    if not isinstance(version, str) or not version.startswith("1."):
        raise InvalidSpec(f'ociVersion: "{version}" is not a version this runtime knows (1.x)')
    root = _object(spec, "root")
    if not isinstance(root.get("path"), str) or not root["path"]:
        raise InvalidSpec("root.path: must be the path of the rootfs")
    process = spec.get("process")
    if process is not None:
        _check_process(process, "process")
    linux = _object(spec, "linux")
    kinds = _check_namespaces(linux)
    check_mounts(spec)
    _check_mappings(linux, kinds)
    _check_words(spec, linux)
    _check_sysctls(spec, linux, kinds)
    if spec.get("hostname") and "uts" not in kinds:
        raise InvalidSpec("hostname: unable to set hostname without a private UTS namespace")
    if spec.get("domainname") and "uts" not in kinds:
        raise InvalidSpec("domainname: unable to set domainname without a private UTS namespace")
    if (linux.get("maskedPaths") or linux.get("readonlyPaths")) and "mount" not in kinds:
        raise InvalidSpec("linux.maskedPaths: unable to restrict paths without a private mount namespace")
    if linux.get("timeOffsets") and "time" not in kinds:
        raise InvalidSpec("linux.timeOffsets: need a time namespace")
    if "memoryPolicy" in linux:
        from runc_py.scheduling import memory_policy_of

        memory_policy_of(linux)
    if linux.get("netDevices"):
        from runc_py.netdevices import check_net_devices

        check_net_devices(linux["netDevices"], kinds)
    if linux.get("intelRdt"):
        from runc_py.resctrl import check_intel_rdt

        check_intel_rdt(linux["intelRdt"])


def validate_process(process: Any, where: str = "process") -> None:
    """Raise InvalidSpec for an OCI process object that cannot be run."""
    if not isinstance(process, dict):
        raise InvalidSpec(f"{where}: must be an object")
    shape.check(process, shape.PROCESS, where)
    _check_process(shape.plain(process), where)


def _check_process(process: Spec, where: str) -> None:
    arguments = process.get("args")
    if not isinstance(arguments, list) or not arguments or not all(isinstance(item, str) for item in arguments):
        raise InvalidSpec(f"{where}.args: must be a list of strings that is not empty")
    cwd = process.get("cwd")
    if not isinstance(cwd, str) or not cwd.startswith("/"):
        raise InvalidSpec(f"{where}.cwd: must be an absolute path")
    kinds = [entry["type"] for entry in process.get("rlimits") or ()]
    for index, kind in enumerate(kinds):
        if not kind.startswith("RLIMIT_") or kind in kinds[:index]:
            raise InvalidSpec(f'{where}.rlimits[{index}].type: "{kind:.60}" is unknown or given twice')
    if process.get("scheduler") or process.get("ioPriority") or process.get("execCPUAffinity"):
        from runc_py import scheduling

        scheduling.scheduler_of(process, where)
        scheduling.io_priority_of(process, where)
        scheduling.affinity_of(process, where)
    user = process.get("user") or {}
    numbers = [("uid", user.get("uid", 0)), ("gid", user.get("gid", 0))]
    numbers += [(f"additionalGids[{index}]", gid) for index, gid in enumerate(user.get("additionalGids") or ())]
    for name, number in numbers:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_ID:
            raise InvalidSpec(f"{where}.user.{name}: {number!r} is not an id between 0 and {MAX_ID}")


_DOMAINS = ("LINUX", "LINUX32")
_PROPAGATIONS = ("", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable")


def _check_words(spec: Spec, linux: Spec) -> None:
    """Words and paths that must be of a certain kind."""
    domain = (linux.get("personality") or {}).get("domain", "LINUX")
    if domain not in _DOMAINS or (linux.get("personality") or {}).get("flags"):
        raise InvalidSpec(f'linux.personality: "{domain}" must be one of {", ".join(_DOMAINS)}, without flags')
    if linux.get("rootfsPropagation", "") not in _PROPAGATIONS:
        raise InvalidSpec(f'linux.rootfsPropagation: "{linux["rootfsPropagation"]:.60}" is unknown')
    for clock in linux.get("timeOffsets") or {}:
        if clock not in ("monotonic", "boottime"):
            raise InvalidSpec(f'linux.timeOffsets["{clock:.60}"]: there are monotonic and boottime')
    for index, entry in enumerate(linux.get("devices") or ()):
        if entry["type"] not in ("b", "c", "u", "p"):
            raise InvalidSpec(f'linux.devices[{index}].type: "{entry["type"]:.60}" is not one of b, c, u, p')
        if not entry["path"].startswith("/"):
            raise InvalidSpec(f'linux.devices[{index}].path: "{entry["path"]:.60}" is not absolute')
        if not all(0 <= entry.get(key, 0) < limit for key, limit in (("major", 1 << 12), ("minor", 1 << 20))):
            raise InvalidSpec(f"linux.devices[{index}]: major and minor are not numbers of a device")
    hooks = spec.get("hooks") or {}
    for kind in shape.HOOK_KINDS:
        for index, hook in enumerate(hooks.get(kind) or ()):
            if not hook["path"].startswith("/"):
                raise InvalidSpec(f'hooks.{kind}[{index}].path: "{hook["path"]:.60}" is not absolute')
            if any("=" not in item for item in hook.get("env") or ()):
                raise InvalidSpec(f"hooks.{kind}[{index}].env: entries must be NAME=VALUE")


def rootfs_path(spec: Spec, bundle: str) -> str:
    """Absolute host path of the rootfs."""
    return os.path.realpath(os.path.join(bundle, spec["root"]["path"]))


def _object(parent: Spec, name: str) -> Spec:
    value = parent.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidSpec(f"{name}: must be an object")
    return value


def _check_namespaces(linux: Spec) -> frozenset[str]:
    kinds: set[str] = set()
    for index, entry in enumerate(linux.get("namespaces") or ()):
        kind, path = entry.get("type"), entry.get("path") or ""
        if kind not in NAMESPACE_TYPES:
            raise InvalidSpec(f'linux.namespaces[{index}].type: unknown namespace "{kind}"')
        if kind in kinds:
            raise InvalidSpec(f'linux.namespaces[{index}].type: duplicated namespace "{kind}"')
        if path and not path.startswith("/"):
            raise InvalidSpec(f'linux.namespaces[{index}].path: "{path}" is not absolute')
        kinds.add(kind)
    return frozenset(kinds)


def check_mounts(spec: Spec) -> None:
    """Raise InvalidSpec for ``mounts`` that name no place."""
    for index, entry in enumerate(spec.get("mounts") or ()):
        if not isinstance(entry, dict):
            raise InvalidSpec(f"mounts[{index}]: must be an object")
        destination = entry.get("destination")
        if not isinstance(destination, str) or not destination or "\0" in destination:
            raise InvalidSpec(f"mounts[{index}].destination: must be a path")
        if not all(isinstance(option, str) for option in entry.get("options") or ()):
            raise InvalidSpec(f"mounts[{index}].options: must be strings")


def _check_mappings(linux: Spec, kinds: frozenset[str]) -> None:
    for name in ("uidMappings", "gidMappings"):
        mappings = linux.get(name) or ()
        if mappings and "user" not in kinds:
            raise InvalidSpec(f"linux.{name}: need a user namespace")
        if len(mappings) > 340:
            raise InvalidSpec(f"linux.{name}: {len(mappings)} entries, the kernel takes 340")
        for index, entry in enumerate(mappings):
            for key in ("containerID", "hostID", "size"):
                number = entry.get(key, 0)
                if not isinstance(number, int) or not 0 <= number <= 0xFFFFFFFF:
                    raise InvalidSpec(f"linux.{name}[{index}].{key}: {number!r} is not a 32-bit number")


def _check_sysctls(spec: Spec, linux: Spec, kinds: frozenset[str]) -> None:
    for name, value in (linux.get("sysctl") or {}).items():
        key = name.replace("/", ".")
        if ".." in name.split("/") or name.startswith("/") or not all(key.split(".")):
            raise InvalidSpec(f'linux.sysctl["{name}"]: not a sysctl name')
        if key in _IPC_SYSCTLS or key.startswith("fs.mqueue."):
            needed = "ipc"
        elif key.startswith("net."):
            needed = "network"
        elif key in ("kernel.domainname", "kernel.hostname"):
            needed = "uts"
        else:
            raise InvalidSpec(f'linux.sysctl["{name}"]: is not in a separate kernel namespace')
        if needed not in kinds:
            raise InvalidSpec(f'linux.sysctl["{name}"]: needs a private {needed} namespace')
        field = key.rpartition(".")[2]
        if needed == "uts" and spec.get(field) and spec[field] != value:
            raise InvalidSpec(f'linux.sysctl["{name}"]: conflicts with the field "{field}": set one of them')
