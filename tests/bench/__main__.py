"""Every bench, one after another: ``python -m tests.bench [--quick] [--write] [NAME …]``, as root.

Writes ``docs/benchmarks.md``, ``.svg`` and ``.json`` unless names or ``--quick`` are given; with ``--write`` the
rows of the named benches are put into the page that is there.
Exits 1 when a ratio got worse by more than a third since the committed figures.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench import results

DOCS = Path(__file__).resolve().parents[2] / "docs"
REPOSITORY = DOCS.parent
NAMES = ("run", "many", "runtime", "supervisor", "engine", "images", "build", "network")
"""Benches in order: modules ``tests.bench.bench_<name>``."""

PROGRAMS = {
    "docker": ("docker", "--version"),
    "dockerd": ("dockerd", "--version"),
    "containerd": ("containerd", "--version"),
    "runc": ("runc", "--version"),
    "crun": ("crun", "--version"),
    "podman": ("podman", "--version"),
    "buildah": ("buildah", "--version"),
    "python": (sys.executable, "--version"),
    "kernel": ("uname", "-r"),
}
COMMAND = "python -m tests.bench"


def versions() -> dict[str, str]:
    """First line of what each program says of itself."""
    found = {}
    for name, command in PROGRAMS.items():
        if shutil.which(command[0]) is not None:
            said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
            found[name] = said[0].strip() if said else "?"
    return found


def run(names: list[str], rounds: str | None) -> tuple[list[results.Result], list[str]]:
    """Results of the benches, and the names of those that failed."""
    failed = []
    with tempfile.TemporaryDirectory() as directory:
        sink = Path(directory) / "results"
        sink.touch()
        for name in names:
            command = [sys.executable, "-m", f"tests.bench.bench_{name}", *([rounds] if rounds else [])]
            print(f"== {name}", flush=True)
            environment = {**os.environ, results.SINK: str(sink)}
            ended = subprocess.run(command, cwd=REPOSITORY, env=environment, check=False)
            if ended.returncode not in (0, results.MISSED):
                failed.append(name)
        found = [results.parse(json.loads(line)) for line in sink.read_text().splitlines()]
    return found, failed


def main() -> int:
    """Run, write, compare."""
    arguments = [a for a in sys.argv[1:] if a not in ("--quick", "--write")]
    quick, write = "--quick" in sys.argv, "--write" in sys.argv
    found, failed = run(arguments or list(NAMES), "3" if quick else None)
    before = results.load(DOCS / "benchmarks.json")
    worse = results.regressions(before, found)
    for sentence in [line for result in found for line in results.missed(result)]:
        print(f"goal missed: {sentence}")
    for sentence in worse:
        print(f"worse than committed: {sentence}")
    for name in failed:
        print(f"failed: {name}")
    if write or (not arguments and not quick and not failed):
        said, found = versions(), results.merged(before, found) if arguments else found
        results.dump(DOCS / "benchmarks.json", said, found)
        (DOCS / "benchmarks.md").write_text(results.page(said, found, COMMAND))
        (DOCS / "benchmarks.svg").write_text(results.chart(found))
    return 1 if worse or failed else 0


if __name__ == "__main__":
    sys.exit(main())
