"""``run`` of ``/bin/true`` by runc-py, runc and crun: as commands, and ours also as the zygote's shims do.

    python -m tests.bench.bench_runtime [ROUNDS]

Run it as root on a quiet machine: a busy one measures its other work. Exits 3 when a goal is missed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from runc_py import syscalls
from runc_py.template import default_spec
from tests.bench.measure import Row, figures, interleaved
from tests.bench.results import MISSED, OURS, Result, emit, missed

RUNC_PY = str(Path(sys.executable).with_name("runc-py"))
WARM = f"{OURS} (warm)"
PEERS = ("runc", "crun")
STEPS = ("create", "start", "state", "kill", "delete")


def make_bundle(directory: Path, *arguments: str) -> None:
    """A bundle whose rootfs is one static program."""
    for name in ("bin", "proc", "sys", "dev"):
        (directory / "rootfs" / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox, "busybox is missing: apt-get install busybox-static"
    for name in ("true", "sleep"):
        shutil.copy(busybox, directory / "rootfs/bin" / name)
    spec = default_spec()
    spec["ociVersion"] = "1.0.2"
    spec["process"].update(terminal=False, rlimits=[], args=[*arguments] or ["/bin/true"])
    (directory / "config.json").write_text(json.dumps(spec))


def command(program: str, directory: Path) -> list[str]:
    """A runtime with a state directory of its own."""
    return [program, "--root", str(directory / f"state-{Path(program).name}")]


def cold(program: str, directory: Path) -> Callable[[], None]:
    """One run of a runtime as a command."""
    ids = count()
    line = [*command(program, directory), "run", "--bundle", str(directory / "true")]

    def run() -> None:
        subprocess.run([*line, f"bench-{os.getpid()}-{next(ids)}"], check=True, stdin=subprocess.DEVNULL)

    return run


@contextlib.contextmanager
def warm(directory: Path) -> Iterator[Callable[[], None]]:
    """One run in a process forked from a warm one."""
    repository = str(Path(__file__).parents[2])
    code = "import sys; sys.path.append(sys.argv[1]); from tests.bench.warm_runtime import serve; serve(*sys.argv[2:])"
    arguments = [repository, str(directory / "state-warm"), str(directory / "true")]
    ids = count()
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        requests, answers = server.stdin, server.stdout

        def run() -> None:
            requests.write(b"bench-warm-%d-%d\n" % (os.getpid(), next(ids)))
            answer = answers.readline()
            assert answer == b"0\n", answer

        yield run
        requests.close()


def measure_steps(programs: dict[str, str], directory: Path, rounds: int) -> None:
    """Each command of a container's life: no promise, but what a shim that calls a runtime as a command waits for."""
    times: dict[str, dict[str, list[float]]] = {step: {name: [] for name in programs} for step in STEPS}
    for number in range(rounds + 1):
        for name, program in programs.items():
            for step, seconds in _life(program, directory, f"bench-steps-{os.getpid()}-{number}"):
                if number:
                    times[step][name].append(seconds)
    for step, found in times.items():
        rows = [Row(name, tuple(values)) for name, values in found.items()]
        emit(Result(f"runtime-{step}", f"{step} as a command", "ms", figures(rows), {"runc": 1.0}))


def _life(program: str, directory: Path, container: str) -> Iterator[tuple[str, float]]:
    base = command(program, directory)
    options = {"create": ["--bundle", str(directory / "sleep")], "delete": ["--force"]}
    for step in STEPS:
        line = [*base, step, *options.get(step, []), container, *(["KILL"] if step == "kill" else [])]
        (row,) = interleaved({step: lambda line=line: _quiet(line)}, 1, warmup=0)  # type: ignore[misc] # bound at once
        yield step, row.median


def _quiet(line: list[str]) -> None:
    subprocess.run(line, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def hide_hybrid_controllers(directory: Path) -> None:
    """crun refuses a v1 host whose v2 tree has controllers: here, in a mount namespace of our own, it has none."""
    controllers = "/sys/fs/cgroup/unified/cgroup.controllers"
    if os.path.exists(controllers):
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
        (directory / "none").touch()
        syscalls.mount(str(directory / "none"), controllers, None, syscalls.MS_BIND)


def main(rounds: int) -> int:
    """Measure; the status says whether every goal held."""
    with tempfile.TemporaryDirectory(prefix="gantry-bench-") as scratch:
        directory = Path(scratch)
        make_bundle(directory / "true")
        make_bundle(directory / "sleep", "/bin/sleep", "60")
        hide_hybrid_controllers(directory)
        programs = {OURS: RUNC_PY} | {name: path for name in PEERS if (path := shutil.which(name))}
        with warm(directory) as warm_run:
            runs = {name: cold(program, directory) for name, program in programs.items()} | {WARM: warm_run}
            rows = {row.name: row for row in interleaved(runs, rounds)}
        peers = [rows[name] for name in PEERS if name in rows]
        results = [
            Result(
                "runtime-cold", "run of /bin/true, cold command", "ms", figures([rows[OURS], *peers]), {"runc": 1.0}
            ),
            Result(
                *("runtime-zygote", "run of /bin/true, ours from the warm zygote", "ms"),
                figures([rows[WARM], *peers]),
                {"runc": 0.33, "crun": 1.0},
            ),
        ]
        for result in results:
            emit(result)
        measure_steps(programs, directory, max(3, rounds // 2))
    return MISSED if any(missed(result) for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 30))
