"""``run /bin/true`` by runc-py, runc and crun, interleaved: medians of the wall time, and their ratios to runc's.

    python -m tests.bench.bench_runtime [ROUNDS]

Also ``warm``: the same container made, started and deleted by the Python interface in a child forked from this process,
which is what the zygote's shims do. Run it as root on a quiet machine: a busy one measures its other work.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from runc_py import syscalls
from runc_py.runtime import Runtime
from runc_py.template import default_spec

OURS = str(Path(sys.executable).with_name("runc-py"))


def make_bundle(directory: Path) -> None:
    """A bundle whose rootfs is one static program."""
    for name in ("bin", "proc", "sys", "dev"):
        (directory / "rootfs" / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox, "busybox is missing: apt-get install busybox-static"
    shutil.copy(busybox, directory / "rootfs/bin/true")
    spec = default_spec()
    spec["ociVersion"] = "1.0.2"
    spec["process"].update(terminal=False, rlimits=[], args=["/bin/true"])
    (directory / "config.json").write_text(json.dumps(spec))


def cold(program: str, directory: Path) -> Callable[[str], None]:
    """One run of a runtime as a command."""
    command = [program, "--root", str(directory / f"state-{Path(program).name}"), "run", "--bundle", str(directory)]

    def run(name: str) -> None:
        subprocess.run([*command, name], check=True, stdin=subprocess.DEVNULL)

    return run


def warm(directory: Path) -> Callable[[str], None]:
    """One run in a forked child of this process."""
    runtime = Runtime(str(directory / "state-warm"))

    def run(name: str) -> None:
        pid = os.fork()
        if pid == 0:
            launched = runtime.create(name, str(directory))
            runtime.start(name)
            _, status = os.waitpid(launched.pid, 0)
            runtime.delete(name, force=True)
            os._exit(os.waitstatus_to_exitcode(status))
        assert os.waitpid(pid, 0)[1] == 0

    return run


def hide_hybrid_controllers(directory: Path) -> None:
    """crun refuses a v1 host whose v2 tree has controllers: here, in a mount namespace of our own, it has none."""
    controllers = "/sys/fs/cgroup/unified/cgroup.controllers"
    if os.path.exists(controllers):
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
        (directory / "none").touch()
        syscalls.mount(str(directory / "none"), controllers, None, syscalls.MS_BIND)


def main(rounds: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="gantry-bench-") as scratch:
        directory = Path(scratch)
        make_bundle(directory)
        hide_hybrid_controllers(directory)
        found = {"runc-py": cold(OURS, directory), "runc-py warm": warm(directory)}
        found |= {name: cold(path, directory) for name in ("runc", "crun") if (path := shutil.which(name))}
        times: dict[str, list[float]] = {name: [] for name in found}
        for count in range(rounds + 1):
            for name, run in found.items():
                began = time.perf_counter()
                run(f"bench-{name.replace(' ', '-')}-{count}")
                if count:  # the first round only warms the caches
                    times[name].append((time.perf_counter() - began) * 1000)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        ratio = f"{median / medians['runc']:.2f} x runc" if "runc" in medians else ""
        print(f"{name:14} {median:8.1f} ms (min {min(times[name]):.1f})  {ratio}")
    print(
        f"{rounds} rounds, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}, Linux {os.uname().release}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
