"""The systemd driver: a transient scope made over D-Bus, then the same files as cgroupfs.

Rule: systemd owns the cgroup's place and its life, we own what is in it (``Delegate=yes``). A scope cannot be empty, so
it is made by ``apply``, with the container's init in it; limits go to systemd as properties, so that it does not undo
them, and to the files, for what it has no property for. Without a running systemd there is a clear error, never a
silent fall-back to cgroupfs. Sources: systemd's ``org.freedesktop.systemd1(5)``, ``systemd.resource-control(5)``,
``docs/CGROUP_DELEGATION.md``.
"""

from __future__ import annotations

import re

from runc_py.cgroups import layout
from runc_py.cgroups.base import CgroupError, CgroupManager, ContainerMounts, read
from runc_py.cgroups.dbus import BusError, Connection, Variant
from runc_py.cgroups.limits import memory_and_swap, number, section, shares_of
from runc_py.light import TYPE_CHECKING, os

if TYPE_CHECKING:
    from typing import Any

SERVICE, PATH, MANAGER = "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"
UNLIMITED = 0xFFFFFFFFFFFFFFFF
ANNOTATION = "org.systemd.property."
RUNNING = "/run/systemd/system"
"""Is there where systemd is the init (sd_booted(3))."""
_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]+\Z")
MEMBER_FIELD = 3
PERIOD_SINCE = 242
"""The version of systemd that has ``CPUQuotaPeriodUSec``; RHEL 8 has an older one."""


def systemd_manager(cgroups_path: str, container_id: str, annotations: dict[str, str] | None = None) -> CgroupManager:
    """The manager for ``slice:prefix:name`` (runc's form); "" means the id in ``system.slice`` (``user.slice``)."""
    if not os.path.isdir(RUNNING):
        raise CgroupError("the systemd cgroup driver needs a running systemd: use the cgroupfs driver on this host")
    slice_, unit = unit_of(cgroups_path, container_id, user=os.geteuid() != 0)
    inner = _inner(layout.current(), f"{expand_slice(slice_)}/{unit}")
    return SystemdManager(inner, unit, slice_, properties_of(annotations or {}))


def load_systemd(saved: dict[str, Any]) -> CgroupManager:
    """The manager that ``SystemdManager.save`` described."""
    from runc_py.cgroups import load

    inner = load({"kind": saved["kind"].removeprefix("systemd-"), "paths": saved["paths"]})
    return SystemdManager(inner, saved["unit"], saved["slice"], [], started=True)


def unit_of(cgroups_path: str, container_id: str, *, user: bool) -> tuple[str, str]:
    """(slice, unit) of ``linux.cgroupsPath``; a name that ends in ``.slice`` is a slice of its own."""
    parts = cgroups_path.split(":") if cgroups_path else ["", "runc", container_id]
    if len(parts) != 3:
        raise CgroupError(
            f'linux.cgroupsPath: expected "slice:prefix:name" for the systemd driver, got "{cgroups_path}" instead'
        )
    slice_ = parts[0] or ("user.slice" if user else "system.slice")
    unit = parts[2]
    if not unit.endswith(".slice"):
        unit = f"{parts[1]}-{unit}.scope" if parts[1] else f"{unit}.scope"
    for name in (slice_, unit):
        if not _NAME.match(name):
            raise CgroupError(f'linux.cgroupsPath: "{name}" is not a name of a systemd unit')
    return slice_, unit


def expand_slice(slice_: str) -> str:
    """The path of a slice: ``a-b.slice`` is ``/a.slice/a-b.slice``."""
    name = slice_.removesuffix(".slice")
    if name == slice_ or "/" in slice_:
        raise CgroupError(f'linux.cgroupsPath: "{slice_}" is not the name of a slice')
    if name == "-":
        return ""
    words = name.split("-")
    if "" in words:
        raise CgroupError(f'linux.cgroupsPath: invalid slice name "{slice_}"')
    return "".join(f"/{'-'.join(words[: count + 1])}.slice" for count in range(len(words)))


def _inner(host: layout.Host, path: str) -> CgroupManager:
    if host.unified:
        from runc_py.cgroups.v2 import UnifiedManager

        base = host.unified if os.geteuid() == 0 else host.unified + _user_manager_cgroup()
        return UnifiedManager(f"{base}{path}")
    from runc_py.cgroups.v1 import LegacyManager

    return LegacyManager(layout.legacy_paths(host, path, ""))


def _user_manager_cgroup() -> str:
    """Where an ordinary user's systemd keeps its units."""
    uid = os.geteuid()
    return f"/user.slice/user-{uid}.slice/user@{uid}.service"


def sockets() -> tuple[str, str]:
    """Where systemd itself listens, and where the bus is that it is on."""
    if os.geteuid() == 0:
        return "/run/systemd/private", "/run/dbus/system_bus_socket"
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return f"{runtime}/systemd/private", f"{runtime}/bus"


def connect() -> Connection:
    """To systemd itself where that is allowed, else over the bus."""
    private, bus = sockets()
    if os.path.exists(private):
        return Connection(private, peer=True)
    return Connection(bus, peer=False)


class SystemdManager(CgroupManager):
    """A scope of systemd; what is done with files is done by ``inner``."""

    def __init__(
        self,
        inner: CgroupManager,
        unit: str,
        slice_: str,
        properties: list[tuple[str, Variant]],
        *,
        started: bool = False,
    ) -> None:
        self.inner = inner
        self.kind = f"systemd-{inner.kind}"
        self.paths = inner.paths
        self.unit = unit
        self.slice = slice_
        self._extra = properties
        self._resources: dict[str, Any] = {}
        self._started = started

    def save(self) -> dict[str, Any]:
        return {**super().save(), "unit": self.unit, "slice": self.slice}

    def create(self) -> None:
        """Nothing yet: see ``apply``."""

    def apply(self, pid: int) -> None:
        """Start the scope with ``pid`` in it, or put one more process into it."""
        if not self._started:
            self._start(pid)
            self._started = True
            self.inner.create_missing()
            if self._resources:
                self.inner.set(self._resources)
        self.inner.apply(pid)

    def enter(self) -> None:
        self.inner.enter()

    def descriptor(self) -> int | None:
        return self.inner.descriptor() if self._started else None

    def _start(self, pid: int) -> None:
        properties: list[tuple[str, Variant]] = [
            ("Description", Variant("s", f"container {self.unit}")),
            ("Slice", Variant("s", self.slice)),
            ("Delegate", Variant("b", True)),
            ("DefaultDependencies", Variant("b", False)),
            ("PIDs", Variant("au", [pid])),
            *accounting(self.inner.kind),
        ]
        if self.unit.endswith(".slice"):
            properties = [one for one in properties if one[0] not in ("Slice", "Delegate", "PIDs")]
        try:
            with connect() as bus:
                properties += [*_understood(bus, limits_of(self._resources, self.inner.kind)), *self._extra]
                bus.call(SERVICE, PATH, MANAGER, "Subscribe")
                arguments: tuple[Any, ...] = (self.unit, "replace", properties, [])
                (job,) = bus.call(SERVICE, PATH, MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", *arguments)
                self._await_job(bus, job)
        except BusError as error:
            raise CgroupError(f"cannot start systemd unit {self.unit}: {error}") from error

    def _await_job(self, bus: Connection, job: str) -> None:
        while True:
            signal = bus.next_signal()
            if signal.fields.get(MEMBER_FIELD) == "JobRemoved" and signal.body[1] == job:
                result = signal.body[3]
                if result != "done":
                    raise BusError(f"job {job}: {result}")
                return

    def set(self, resources: dict[str, Any]) -> None:
        if not self._started:
            self._resources = resources
            return
        resources = self._with_bandwidth(resources)
        properties = limits_of(resources, self.inner.kind)
        try:
            if properties:
                with connect() as bus:
                    properties = _understood(bus, properties)
                    bus.call(SERVICE, PATH, MANAGER, "SetUnitProperties", "sba(sv)", self.unit, True, properties)
        except BusError as error:
            raise CgroupError(f"cannot change systemd unit {self.unit}: {error}") from error
        self.inner.set(resources)

    def _with_bandwidth(self, resources: dict[str, Any]) -> dict[str, Any]:
        """Systemd is told a share of a second: for that, a quota needs the period that is there, and the reverse."""
        cpu = section(resources, "cpu")
        if bool(number(cpu, "quota")) == bool(number(cpu, "period")):
            return resources
        try:
            quota, period = self._bandwidth()
        except OSError:
            return resources  # no cpu controller: the file that is written next says so
        return {**resources, "cpu": {"quota": quota, "period": period, **{k: v for k, v in cpu.items() if v}}}

    def _bandwidth(self) -> tuple[int, int]:
        if self.inner.kind == "v2":
            quota, period = read(f"{self.paths['']}/cpu.max").split()
            return -1 if quota == "max" else int(quota), int(period)
        directory = self.paths.get("cpu", "")
        return int(read(f"{directory}/cpu.cfs_quota_us")), int(read(f"{directory}/cpu.cfs_period_us"))

    def destroy(self) -> None:
        calls = (("StopUnit", "ss", self.unit, "replace"), ("ResetFailedUnit", "s", self.unit))
        try:
            with connect() as bus:
                for method, signature, *arguments in calls:
                    _call_if_loaded(bus, method, signature, *arguments)
        except BusError as error:
            raise CgroupError(f"cannot stop systemd unit {self.unit}: {error}") from error
        self.inner.destroy()

    def pids(self, recursive: bool = True) -> list[int]:
        return self.inner.pids(recursive)

    def freeze(self) -> None:
        self.inner.freeze()

    def thaw(self) -> None:
        self.inner.thaw()

    def frozen(self) -> bool:
        return self.inner.frozen()

    def kill_all(self, sig: int) -> None:
        self.inner.kill_all(sig)

    def stats(self) -> dict[str, Any]:
        return self.inner.stats()

    def oom_kills(self) -> int:
        return self.inner.oom_kills()

    def container_mounts(self, *, cgroup_namespace: bool) -> ContainerMounts:
        return self.inner.container_mounts(cgroup_namespace=cgroup_namespace)


def _call_if_loaded(bus: Connection, method: str, signature: str, *arguments: str) -> None:
    try:
        bus.call(SERVICE, PATH, MANAGER, method, signature, *arguments)
    except BusError as error:
        if "NoSuchUnit" not in str(error):
            raise


def _understood(bus: Connection, properties: list[tuple[str, Variant]]) -> list[tuple[str, Variant]]:
    """The properties that this systemd knows; the files get the rest."""
    if not any(name == "CPUQuotaPeriodUSec" for name, _ in properties):
        return properties
    (version,) = bus.call(SERVICE, PATH, "org.freedesktop.DBus.Properties", "Get", "ss", MANAGER, "Version")
    digits = re.match(r"\d+", str(version.value))
    if digits and int(digits[0]) >= PERIOD_SINCE:
        return properties
    return [one for one in properties if one[0] != "CPUQuotaPeriodUSec"]


def accounting(kind: str) -> list[tuple[str, Variant]]:
    """What systemd must count, so that the controllers are there."""
    block = "IOAccounting" if kind == "v2" else "BlockIOAccounting"
    names = ("CPUAccounting", "MemoryAccounting", "TasksAccounting", block)
    return [(name, Variant("b", True)) for name in names]


def limits_of(resources: dict[str, Any], kind: str) -> list[tuple[str, Variant]]:
    """``linux.resources`` as unit properties; what systemd has no property for is left to the files."""
    found: dict[str, int] = {}
    limit, swap = memory_and_swap(section(resources, "memory"))
    if limit:
        found["MemoryMax" if kind == "v2" else "MemoryLimit"] = UNLIMITED if limit < 0 else limit
    if swap and kind == "v2":
        found["MemorySwapMax"] = UNLIMITED if swap < 0 else max(0, swap - limit)
    reservation = number(section(resources, "memory"), "reservation")
    if reservation and kind == "v2":
        found["MemoryLow"] = UNLIMITED if reservation < 0 else reservation
    if pids := number(section(resources, "pids"), "limit"):
        found["TasksMax"] = UNLIMITED if pids < 0 else pids
    _cpu_limits(resources, kind, found)
    return [(name, Variant("t", value)) for name, value in found.items()]


def _cpu_limits(resources: dict[str, Any], kind: str, found: dict[str, int]) -> None:
    cpu = section(resources, "cpu")
    if shares := shares_of(cpu):
        if kind == "v2":
            from runc_py.cgroups.v2_limits import weight_of_shares

            found["CPUWeight"] = weight_of_shares(shares)
        else:
            found["CPUShares"] = shares
    quota, period = number(cpu, "quota"), number(cpu, "period") or 100000
    if quota < 0:
        found["CPUQuotaPerSecUSec"] = UNLIMITED
    elif quota:
        # systemd rounds a quota that is not a multiple of 10 ms a second up to one: so do we, as runc does.
        per_second = quota * 1_000_000 // period
        found["CPUQuotaPerSecUSec"] = -(-per_second // 10000) * 10000
    if number(cpu, "period"):
        found["CPUQuotaPeriodUSec"] = period


def properties_of(annotations: dict[str, str]) -> list[tuple[str, Variant]]:
    """``org.systemd.property.NAME`` annotations; values in GVariant's text form, as runc takes them."""
    found = []
    for key, text in annotations.items():
        if key.startswith(ANNOTATION):
            name = key.removeprefix(ANNOTATION)
            if not name.isalpha() or len(name) < 3:
                raise CgroupError(f"annotation {key}: not the name of a property")
            name, value = _seconds(name, _parse(text, key))
            found.append((name, value))
    return found


def _seconds(name: str, value: Variant) -> tuple[str, Variant]:
    """``TimeoutStopSec`` is what unit files say; on the bus it is microseconds under another name."""
    if name.endswith("Sec") and not name.endswith("USec") and value.signature in "iut":
        return f"{name.removesuffix('Sec')}USec", Variant("t", value.value * 1_000_000)
    return name, value


def _parse(text: str, key: str) -> Variant:
    text = text.strip()
    if text in ("true", "false"):
        return Variant("b", text == "true")
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return Variant("s", text[1:-1])
    if text.startswith("[") and text.endswith("]"):
        items = [item.strip().strip("'\"") for item in text[1:-1].split(",") if item.strip()]
        return Variant("as", items)
    kind, separator, rest = text.partition(" ")
    types = {"int32": "i", "uint32": "u", "int64": "x", "uint64": "t"}
    if separator and kind in types:
        text, code = rest.strip(), types[kind]
    else:
        code = "i"
    try:
        return Variant(code, int(text))
    except ValueError:
        raise CgroupError(f"annotation {key}: cannot parse {text!r}") from None
