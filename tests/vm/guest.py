"""Runs in the virtual machine, as root and with the standard library only: the runtime on cgroup v2 and systemd.

Prints ``== begin``, one line ``ok NAME`` or ``not ok NAME: why`` for each test, ``== end``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from runc_py import cgroups, state
from runc_py.cgroups import CgroupManager
from runc_py.errors import RuntimeFailure
from runc_py.runtime import Launched, Runtime, Stdio
from runc_py.template import default_spec
from tests.vm import cgroup_suite, shim_at_rest

WORK = Path("/run/work")
CGROUP = Path("/sys/fs/cgroup")
MIB = 1 << 20
TESTS: list[Callable[[], None]] = []


def test(function: Callable[[], None]) -> Callable[[], None]:
    TESTS.append(function)
    return function


class Container:
    """A bundle with busybox; ``run`` and ``start`` use the runtime in this process."""

    def __init__(self, name: str, *, driver: str = "cgroupfs", **resources: Any) -> None:
        self.id = name
        self.directory = WORK / name
        self.runtime = Runtime(str(WORK / "state"), cgroup_driver=driver)
        root = self.directory / "rootfs"
        for directory in ("bin", "proc", "sys", "dev", "tmp", "etc"):
            (root / directory).mkdir(parents=True)
        shutil.copy("/bin/busybox", root / "bin/busybox")
        for applet in ("sh", "cat", "dd", "sleep", "true", "echo", "ls", "id", "grep"):
            (root / "bin" / applet).symlink_to("busybox")
        self.spec = default_spec()
        self.spec["process"].update(terminal=False, rlimits=[])
        self.linux = self.spec["linux"]
        self.linux["resources"].update(resources)
        self.linux["cgroupsPath"] = f"/gantry/{name}" if driver == "cgroupfs" else f"system.slice:gantry:{name}"
        self.output = self.directory / "output"

    @property
    def cgroup(self) -> Path:
        return CGROUP / "gantry" / self.id

    def create(self, *arguments: str) -> Launched:
        self.spec["process"]["args"] = list(arguments)
        null = os.open(os.devnull, os.O_RDONLY)
        out = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            return self.runtime.create(self.id, str(self.directory), stdio=Stdio(null, out, out), spec=self.spec)
        finally:
            os.close(null)
            os.close(out)

    def start(self, *arguments: str) -> Launched:
        launched = self.create(*arguments)
        self.runtime.start(self.id)
        return launched

    def run(self, script: str) -> tuple[int, str]:
        launched = self.start("sh", "-c", script)
        code = self.wait(launched)
        text = self.output.read_text()
        return code, text

    def wait(self, launched: Launched) -> int:
        _, status = os.waitpid(launched.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if code < 0 else code

    def delete(self) -> None:
        self.runtime.delete(self.id, force=True)
        assert not self.cgroup.exists(), "the cgroup is left"

    def exec(self, *arguments: str, **options: Any) -> tuple[int, str]:
        path = self.directory / "exec-output"
        null, out = os.open(os.devnull, os.O_RDONLY), os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        process = {"args": list(arguments), "env": ["PATH=/bin"], "cwd": "/"}
        launched = self.runtime.exec(self.id, process, stdio=Stdio(null, out, out), **options)
        code = self.wait(launched)
        os.close(null)
        os.close(out)
        return code, path.read_text()

    def number(self, name: str) -> str:
        return (self.cgroup / name).read_text().strip()


def events(path: Path) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in path.read_text().splitlines())}


@test
def version_two_rules_this_host() -> None:
    assert cgroups.manager_for("/x", "x").kind == "v2"


@test
def memory_limit_kills() -> None:
    container = Container("memory", memory={"limit": 24 * MIB, "swap": 24 * MIB})
    launched = container.start("sh", "-c", "dd if=/dev/zero of=/dev/null bs=100M count=1")
    assert container.wait(launched) == 137
    assert container.number("memory.max") == str(24 * MIB)
    assert cgroups.load(state.load(container.runtime.root, "memory").cgroup).oom_kills() >= 1
    container.delete()


@test
def pids_limit_stops_forks() -> None:
    container = Container("pids", pids={"limit": 5})
    code, text = container.run("for n in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo end")
    assert "fork" in text, (code, text)
    assert events(container.cgroup / "pids.events")["max"] >= 1
    container.delete()


@test
def cpu_quota_throttles() -> None:
    container = Container("cpu", cpu={"quota": 10000, "period": 100000, "shares": 512})
    launched = container.start("sh", "-c", "while :; do :; done")
    time.sleep(4)
    assert container.number("cpu.max") == "10000 100000"
    assert container.number("cpu.weight") == "59"
    rows = events(container.cgroup / "cpu.stat")
    assert rows["nr_throttled"] >= 3, rows
    assert rows["usage_usec"] < 1_500_000, rows
    container.delete()
    container.wait(launched)


@test
def devices_are_denied_by_ebpf() -> None:
    disk = os.stat("/dev/vda").st_rdev
    numbers = {"type": "b", "major": os.major(disk), "minor": os.minor(disk)}
    container = Container("devices")
    container.linux["devices"] = [
        {"path": "/dev/memory", "type": "c", "major": 1, "minor": 1},
        {"path": "/dev/disk", **numbers},
    ]
    container.linux["resources"]["devices"] = [
        {"allow": False, "access": "rwm"},
        {"allow": True, **numbers, "access": "r"},
    ]
    script = "dd if=/dev/memory count=1; dd if=/dev/disk count=1 >/dev/null && echo read; echo x >/dev/disk"
    launched = container.start("sh", "-c", f"{script}; echo x >/dev/null && echo null; sleep 1000")
    deadline = time.monotonic() + 20
    while "null" not in container.output.read_text().splitlines() and time.monotonic() < deadline:
        time.sleep(0.1)
    text = container.output.read_text()
    assert "can't open '/dev/memory': Operation not permitted" in text, text
    assert "\nread\n" in text, text
    assert "can't create /dev/disk: Operation not permitted" in text, text
    container.runtime.update("devices", {"devices": [{"allow": False, "access": "rwm"}]})
    _, text = container.exec("dd", "if=/dev/disk", "count=1")
    assert "Operation not permitted" in text, text
    container.delete()
    container.wait(launched)


@test
def pause_update_and_stats() -> None:
    container = Container("pause")
    launched = container.start("sleep", "1000")
    container.runtime.pause("pause")
    assert container.runtime.state("pause")["status"] == "paused"
    assert events(container.cgroup / "cgroup.events")["frozen"] == 1
    container.runtime.resume("pause")
    container.runtime.update("pause", {"memory": {"limit": 64 * MIB}, "cpu": {"idle": 1}})
    assert container.number("memory.max") == str(64 * MIB)
    assert container.number("cpu.idle") == "1"
    assert container.runtime.stats("pause")["memory"]["usage"]["usage"] > 0
    container.delete()
    assert container.wait(launched) == 137


@test
def unified_keys() -> None:
    container = Container("unified", unified={"pids.max": "7", "memory.high": "50000000"})
    launched = container.start("sleep", "1000")
    assert container.number("pids.max") == "7"
    container.delete()
    container.wait(launched)
    wrong = Container("wrong", unified={"no.such": "1"})
    try:
        wrong.create("true")
    except cgroups.CgroupError as error:
        assert "no.such" in str(error), error
    else:
        raise AssertionError("an unknown key was taken")


@test
def container_sees_its_own_cgroup() -> None:
    container = Container("view")
    code, text = container.run("cat /proc/self/cgroup; ls /sys/fs/cgroup; echo 1 > /sys/fs/cgroup/pids.max")
    assert text.splitlines()[0] == "0::/", text
    assert "pids.max" in text.splitlines(), text
    assert "Read-only file system" in text and code != 0, text
    container.delete()


@test
def exec_into_a_sub_cgroup() -> None:
    container = Container("sub")
    launched = container.start("sleep", "1000")
    (container.cgroup / "inner").mkdir()
    _, text = container.exec("cat", "/proc/self/cgroup", cgroup="inner")
    assert text == "0::/inner\n", text
    try:
        container.exec("true", cgroup="../..")
    except cgroups.CgroupError:
        pass
    else:
        raise AssertionError("a sub-cgroup outside was taken")
    container.delete()
    container.wait(launched)


@test
def raised_limits_and_lowered_oom_score() -> None:
    container = Container("raised")
    container.spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 600000, "hard": 600000}]
    container.spec["process"]["oomScoreAdj"] = -500
    _, text = container.run("cat /proc/self/limits /proc/self/oom_score_adj")
    assert "600000" in text and text.splitlines()[-1] == "-500", text
    container.delete()


@test
def apparmor_profile() -> None:
    if not Path("/sys/module/apparmor/parameters/enabled").read_text().startswith("Y"):
        raise cgroup_suite.Missing("the kernel has AppArmor switched off")
    container = Container("apparmor")
    container.spec["process"]["apparmorProfile"] = "unconfined"
    code, text = container.run("cat /proc/self/attr/apparmor/current")
    assert (code, text) == (0, "unconfined\n"), text
    container.delete()
    container = Container("no-profile")
    container.spec["process"]["apparmorProfile"] = "no-such-profile"
    try:
        container.create("true")
    except RuntimeFailure as error:
        assert "process.apparmorProfile: exec no-such-profile: no such profile is loaded" in str(error), error
    else:
        raise AssertionError("a profile that is not loaded was taken")


@test
def deadline_scheduler() -> None:
    container = Container("deadline")
    container.spec["process"]["scheduler"] = {
        "policy": "SCHED_DEADLINE",
        "runtime": 10_000_000,
        "deadline": 50_000_000,
        "period": 100_000_000,
        "flags": ["SCHED_FLAG_RESET_ON_FORK"],
    }
    launched = container.start("sleep", "1000")
    assert os.sched_getscheduler(launched.pid) & 0xFFFF == 6, os.sched_getscheduler(launched.pid)
    container.delete()
    container.wait(launched)


@test
def user_namespace_on_this_kernel() -> None:
    container = Container("userns")
    container.linux["namespaces"].append({"type": "user"})
    container.linux["uidMappings"] = container.linux["gidMappings"] = [
        {"containerID": 0, "hostID": 100000, "size": 65536}
    ]
    subprocess.run(["chown", "-R", "100000:100000", str(container.directory / "rootfs")], check=True)
    code, text = container.run("cat /proc/self/uid_map; id -u; ls -l /dev/null")
    assert code == 0 and text.split()[:3] == ["0", "100000", "65536"], text
    container.delete()


@test
def id_mapped_mount() -> None:
    container = Container("idmap")
    shared = Path("/var/tmp/shared")  # on ext4: tmpfs learnt id mappings in Linux 6.3
    shared.mkdir()
    (shared / "file").write_text("")
    mappings = [{"containerID": 0, "hostID": 1000, "size": 10}]
    mount = {"destination": "/shared", "type": "bind", "source": str(shared), "options": ["bind", "idmap"]}
    container.spec["mounts"].append({**mount, "uidMappings": mappings, "gidMappings": mappings})
    _, text = container.run("ls -ln /shared/file")
    assert text.split()[2:4] == ["1000", "1000"], text
    container.delete()


@test
def systemd_driver() -> None:
    container = Container("scope", driver="systemd", memory={"limit": 48 * MIB}, pids={"limit": 33})
    launched = container.start("sleep", "1000")
    show = ["systemctl", "show", "gantry-scope.scope", "-p", "ActiveState,MemoryMax,TasksMax,ControlGroup"]
    shown = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    assert "ActiveState=active" in shown and f"MemoryMax={48 * MIB}" in shown and "TasksMax=33" in shown, shown
    assert "ControlGroup=/system.slice/gantry-scope.scope" in shown, shown
    directory = CGROUP / "system.slice/gantry-scope.scope"
    assert (directory / "memory.max").read_text().strip() == str(48 * MIB)
    assert container.runtime.pids("scope")[0] == launched.pid
    code, text = container.exec("cat", "/proc/self/cgroup")
    assert (code, text) == (0, "0::/\n"), text
    container.runtime.update("scope", {"memory": {"limit": 64 * MIB}})
    shown = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    assert f"MemoryMax={64 * MIB}" in shown, shown
    container.delete()
    container.wait(launched)
    assert not directory.exists()
    shown = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    assert "ActiveState=inactive" in shown, shown


def command(*arguments: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    """The command line, as a process of its own."""
    program = [sys.executable, "-m", "runc_py.main", "--root", str(WORK / "state")]
    environment = {**os.environ, "PYTHONPATH": "/gantry"}
    return subprocess.run([*program, *arguments], env=environment, text=True, timeout=90, check=False, **streams)


@test
def checkpoint_and_restore() -> None:
    container = Container("counter")
    container.linux["namespaces"] = [one for one in container.linux["namespaces"] if one["type"] != "network"]
    container.spec["root"]["readonly"] = False
    script = "n=0; while :; do n=$((n+1)); echo $n > /tmp/next; mv /tmp/next /tmp/count; sleep 0.2; done"
    container.spec["process"]["args"] = ["sh", "-c", script]
    (container.directory / "config.json").write_text(json.dumps(container.spec))
    reader, writer = os.pipe()
    stdin, other = os.pipe()
    container.runtime.create(
        "counter", str(container.directory), stdio=Stdio(stdin, writer, writer), spec=container.spec
    )
    container.runtime.start("counter")
    count = container.directory / "rootfs/tmp/count"
    while not count.exists() or int(count.read_text().strip() or 0) < 3:
        time.sleep(0.1)
    images = str(WORK / "images")
    done = command("checkpoint", "--image-path", images, "counter", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    assert container.runtime.list() == []
    before = int(count.read_text())
    time.sleep(1)
    assert int(count.read_text()) == before, "it still runs"
    bundle = str(container.directory)
    arguments = ("restore", "--detach", "--image-path", images, "-b", bundle, "counter")
    done = command(*arguments, stdin=stdin, stdout=writer, stderr=writer)
    assert done.returncode == 0, os.read(reader, 65536)
    assert container.runtime.state("counter")["status"] == "running"
    deadline = time.monotonic() + 20
    while int(count.read_text().strip() or 0) < before + 3:
        assert time.monotonic() < deadline, "it does not go on"
        time.sleep(0.1)
    container.delete()
    for fd in (reader, writer, stdin, other):
        os.close(fd)


@test
def command_line_and_seccomp() -> None:
    container = Container("command")
    container.spec["process"]["args"] = ["sh", "-c", "grep Seccomp: /proc/self/status; exit 9"]
    container.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}
    (container.directory / "config.json").write_text(json.dumps(container.spec))
    command = [sys.executable, "-m", "runc_py.main", "--root", str(WORK / "cli"), "run", "-b", str(container.directory)]
    environment = {**os.environ, "PYTHONPATH": "/gantry"}
    done = subprocess.run([*command, "command"], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (9, "Seccomp:\t2\n"), (done.returncode, done.stdout, done.stderr)


@test
def exit_status_of_a_container_whose_shim_is_at_rest() -> None:
    container = Container("resting")
    shim_at_rest.check(WORK / "zygote", container.directory, container.spec)


class Unified(cgroup_suite.Place):
    """The guest's own v2 tree, with every controller."""

    kind = "v2"

    def manager(self, name: str) -> CgroupManager:
        return self.from_path(f"/{name}")

    def from_path(self, cgroups_path: str) -> CgroupManager:
        return cgroups.manager_for(cgroups_path, "suite")

    def controllers(self) -> set[str]:
        return {{"io": "blkio"}.get(name, name) for name in (CGROUP / "cgroup.controllers").read_text().split()}


class Systemd(Unified):
    """The guest's real systemd."""

    kind = "systemd-v2"
    hostile = ("x", "a:b", "a:b:c:d", "../x.slice:p:n", "system.slice:p:../../n", "a--b.slice:p:n", "system:p:n")

    def manager(self, name: str) -> CgroupManager:
        return self.from_path(f"gantrysuite.slice:test:{name}")

    def from_path(self, cgroups_path: str) -> CgroupManager:
        return cgroups.manager_for(cgroups_path, "suite", driver="systemd")

    def property(self, manager: CgroupManager, name: str) -> str | None:
        unit = manager.save()["unit"]
        show = ["systemctl", "show", "--value", "-p", name, unit]
        return subprocess.run(show, capture_output=True, text=True, check=True).stdout.strip()


def _add_suite(place: cgroup_suite.Place) -> None:
    for name, check in cgroup_suite.SUITE.items():

        def run(check: Callable[[cgroup_suite.Place], None] = check) -> None:
            check(place)

        run.__name__ = f"suite_{place.kind.replace('-', '_')}_{name}"
        TESTS.append(run)


def main() -> None:
    _add_suite(Unified())
    _add_suite(Systemd())
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run/work"], check=False)
    sys.stdout.write(f"== begin\n# Linux {os.uname().release}, Python {sys.version.split()[0]}\n")
    only = Path("/proc/cmdline").read_text().partition("gantry.only=")[2].split(" ")[0].strip()
    for function in TESTS:
        if only not in function.__name__:
            continue
        began = time.monotonic()
        try:
            function()
            verdict = f"ok {function.__name__}"
        except cgroup_suite.Missing as reason:
            verdict = f"ok {function.__name__} # skipped: {reason}"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            verdict = (
                f"not ok {function.__name__}: {type(error).__name__} {str(error)[:600]!r} ({where.name}:{where.lineno})"
            )
        sys.stdout.write(f"{verdict} ({time.monotonic() - began:.1f} s)\n")
        sys.stdout.flush()
    sys.stdout.write("== end\n")


if __name__ == "__main__":
    WORK.mkdir(parents=True, exist_ok=True)
    main()
