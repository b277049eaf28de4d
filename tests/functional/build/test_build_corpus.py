"""The corpus, built by Gantry and by a real builder: equal file systems and configurations, equal refusals.

Each case is built with the docker CLI; then ``gantry build`` and the docker SDK build it again, which must find every
step in the cache and give the same image.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.bench.peers import Dockerd
from tests.functional.build import cases, witnesses
from tests.functional.build.cases import Case
from tests.functional.build.flattened import Image, images
from tests.support.engine import DOCKER, Engine
from tests.support.host import PrivateHost, wait_for

CORPUS = {case.name: case for case in cases.every()}
AT_ONCE = 3
PORT = 8099
PREFIX = "corpus-"


class Run(NamedTuple):
    """How one command ended."""

    status: int
    output: str


class Side(NamedTuple):
    """What one engine made of the corpus."""

    runs: dict[str, Run]
    images: dict[str, Image]


def command(host: PrivateHost, *words: str) -> Run:
    done = host.run(*words, timeout=240)
    return Run(done.returncode, done.stdout + done.stderr)


@pytest.fixture(scope="module")
def contexts() -> Iterator[Path]:
    """Every case's context, in a directory of its name."""
    root = Path(tempfile.mkdtemp(prefix="gantry-corpus-"))
    for case in CORPUS.values():
        (root / case.name).mkdir()
        case.write(root / case.name)
    served = root / "served"
    served.mkdir()
    (served / "file.txt").write_text("served\n")
    (served / "packed.tar.gz").write_bytes(gzip.compress(cases.sample_tar(), mtime=0))
    yield root
    shutil.rmtree(root)


def serve(host: PrivateHost, directory: Path) -> subprocess.Popen[bytes]:
    """A web server inside ``host`` for ADD."""
    words = ["python3", "-m", "http.server", str(PORT), "--bind", "127.0.0.1", "--directory", str(directory)]
    process = host.popen(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: host.run("curl", "-sf", f"http://127.0.0.1:{PORT}/").returncode == 0, "the web server")
    return process


def build_all(host: PrivateHost, contexts: Path, commands: Mapping[str, Sequence[str]]) -> dict[str, Run]:
    """Run the build command of each case, some at a time."""

    def one(item: tuple[str, Sequence[str]]) -> tuple[str, Run]:
        name, words = item
        file = ["-f", f"{contexts}/{name}/{words[words.index('-f') + 1]}"] if "-f" in words else []
        words = [w for n, w in enumerate(words) if not (w == "-f" or (n and words[n - 1] == "-f"))]
        return name, command(host, *words, *file, "-t", f"{PREFIX}{name}", f"{contexts}/{name}")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(pool.map(one, commands.items()))


def saved(host: PrivateHost, url: str, runs: dict[str, Run]) -> dict[str, Image]:
    """All images that were built, by case."""
    names = [f"{PREFIX}{name}" for name, run in runs.items() if run.status == 0]
    archive = host.base / "corpus.tar"
    host.check(DOCKER, "-H", url, "save", "-o", str(archive), *names, timeout=240)
    return {name.removeprefix(PREFIX): image for name, image in images(archive).items()}


@pytest.fixture(scope="module")
def ours(make_engine: Callable[..., Engine], contexts: Path) -> Iterator[Engine]:
    engine = make_engine()
    server = serve(engine.host, contexts / "served")
    yield engine
    for pid in engine.host.pids_of("http.server"):
        engine.host.run("kill", engine.host.inner_pid(pid))
    server.wait()


@pytest.fixture(scope="module")
def gantry(ours: Engine, contexts: Path) -> Side:
    words = ["env", "DOCKER_BUILDKIT=0", DOCKER, "-H", ours.url, "build"]
    runs = build_all(ours.host, contexts, {name: [*words, *case.args] for name, case in CORPUS.items()})
    return Side(runs, saved(ours.host, ours.url, runs))


@pytest.fixture(scope="module")
def theirs(contexts: Path, busybox_tar: bytes) -> Iterator[Side]:
    with ExitStack() as stack:
        daemon: Dockerd = stack.enter_context(witnesses.witness())
        daemon.docker("import", "-c", 'CMD ["sh"]', "-", "busybox:latest", stdin=busybox_tar)
        stack.callback(serve(daemon.host, contexts / "served").kill)
        commands = {
            name: [*witnesses.build_command(daemon, case.builder), *case.args]
            for name, case in CORPUS.items()
            if known(case)
        }
        runs = build_all(daemon.host, contexts, commands)
        yield Side(runs, saved(daemon.host, daemon.url, runs))


def known(case: Case) -> bool:
    """Whether a real builder here knows the case's syntax."""
    return case.builder in ("classic", "buildkit") or (case.builder == "newest" and witnesses.newer())


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", CORPUS)
def test_case(name: str, gantry: Side, theirs: Side) -> None:
    case, run = CORPUS[name], gantry.runs[name]
    if case.fails:
        assert run.status != 0, run.output
        assert re.search(case.fails, run.output), run.output
    else:
        assert run.status == 0, run.output
    for path, mode in case.expected.items():
        check_expected(gantry.images[name], path, mode)
    if case.builder == "expect":
        return
    if not known(case):
        pytest.skip("no builder here knows this syntax: tests/install-newer-peers")
    witness = theirs.runs[name]
    if case.fails:
        assert witness.status != 0, witness.output
        assert re.search(case.fails, witness.output), witness.output
        return
    assert witness.status == 0, witness.output
    compare(case, gantry.images[name], theirs.images[name])


_OWNERS = "directories that ADD makes for an archive's members get the owner of --chown"
_LINKS = "where a link to nothing points, a directory is made"
_COVERED = "what a tmpfs covers is taken for removed"
_ROOT = "an image from scratch has no working directory"
BUILDAH_DIFFERS: dict[str, dict[str, str]] = {
    "add-archive-chown": {"/x/no": _OWNERS, "/x/no/parent": _OWNERS},
    "copy-from-root": {"config.WorkingDir": _ROOT},
    "copy-links-in-rootfs": dict.fromkeys(("/nowhere", "/nowhere/a", "/other/file", "/other/file/a"), _LINKS),
    "copy-modes": {"/ctx/setuid": "set-id bits are lost, as by the classic builder"},
    "from-scratch": {"config.WorkingDir": _ROOT},
    "run-mount-bind": {"/unchanged": "a writable mount writes to the context itself"},
    "run-mount-cache": {"/listing": "/run is there"},
    "run-mount-cache-from": {"/copy/buildah-cache-lockfile": "its lock lies in the cache"},
    "run-mount-tmpfs": {"/www": _COVERED, "/www/index.html": _COVERED},
    "volume-then-write": {"/v/after": "what RUN writes below a VOLUME is lost, as by the classic builder"},
}
"""By case, paths or ``config.KEY`` where buildah goes its own way, and why."""


@pytest.fixture(scope="module")
def buildah(busybox_tar: bytes) -> Iterator[witnesses.Buildah]:
    if shutil.which("buildah") is None:
        pytest.skip("needs buildah")
    with PrivateHost() as host:
        yield witnesses.Buildah(host, busybox_tar)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [name for name, case in CORPUS.items() if witnesses.buildah_knows(case)])
def test_second_witness(name: str, gantry: Side, buildah: witnesses.Buildah, contexts: Path, tmp_path: Path) -> None:
    """What docker's classic builder cannot read is read by buildah as by BuildKit."""
    case = CORPUS[name]
    done = buildah.build(case, shutil.copytree(contexts / name, tmp_path / name, symlinks=True))
    assert (done.returncode != 0) == bool(case.fails), done.stderr
    if not case.fails:
        mine, other = gantry.images[name], buildah.image(case)
        left = {path: "a mount point" for path in witnesses.BUILDAH_LEAVES if path not in mine.files}
        differs = {**case.differs, **left, **BUILDAH_DIFFERS.get(name, {}), "layers": "a step that changed nothing too"}
        compare(case._replace(differs=differs), mine, other)


def check_expected(image: Image, path: str, mode: int | None) -> None:
    found = image.files.get(f"/{path}")
    if mode is None:
        assert found is None
    else:
        assert found is not None, f"{path} is missing among {sorted(image.files)}"
        assert int(found.split()[1], 8) == mode, f"{path}: {found}"


def compare(case: Case, mine: Image, other: Image) -> None:
    """Equal but for what the case names."""
    paths = {path for path in mine.files.keys() | other.files.keys() if path not in case.differs}
    if case.builder != "classic":
        # BuildKit's RUN leaves mount points of its own behind.
        paths -= {path for path in ("/dev", "/proc", "/sys") if path not in mine.files}
    different = {
        path: (mine.files.get(path), other.files.get(path))
        for path in sorted(paths)
        if mine.files.get(path) != other.files.get(path)
    }
    assert not different, "path: (gantry, witness)"
    keys = {key for key in mine.config.keys() | other.config.keys() if f"config.{key}" not in case.differs}
    assert {k: mine.config.get(k) for k in keys} == {k: other.config.get(k) for k in keys}
    if "layers" not in case.differs:
        assert mine.layers == other.layers


def ids(ours: Engine) -> dict[str, str]:
    """Image ids by case."""
    lines = ours.docker("images", "--no-trunc", "--format", "{{.Repository}} {{.ID}}", timeout=60).stdout.splitlines()
    pairs = (line.split() for line in lines if line.startswith(PREFIX))
    return {name.removeprefix(PREFIX): digest for name, digest in pairs}


@pytest.mark.timeout(200)
def test_gantry_build_finds_everything_in_the_cache(ours: Engine, gantry: Side, contexts: Path) -> None:
    before = ids(ours)
    words = ["python3", "-m", "cli.main", "-H", ours.url, "build"]
    commands = {name: [*words, *case.args] for name, case in CORPUS.items()}
    runs = build_all(ours.host, contexts, commands)
    assert {name: run.status for name, run in runs.items()} == {n: run.status for n, run in gantry.runs.items()}
    assert ids(ours) == before
    again = re.compile(r"#(\d+) [^\n]*\] RUN [^\n]*\n(?:#(?!\1 )[^\n]*\n)*#\1 (DONE|\d)")
    ran = [name for name, run in runs.items() if run.status == 0 and again.search(run.output)]
    assert not ran


@pytest.mark.timeout(200)
def test_the_sdk_finds_everything_in_the_cache(ours: Engine, gantry: Side, contexts: Path) -> None:
    plain = [name for name, case in CORPUS.items() if not case.args and not case.fails]
    script = (
        "import docker,sys\n"
        f"client = docker.DockerClient('{ours.url}', timeout=100)\n"
        "for name in sys.argv[2:]:\n"
        "    image, log = client.images.build(path=f'{sys.argv[1]}/{name}')\n"
        "    print(name, image.id)\n"
    )
    done = command(ours.host, "python3", "-c", script, str(contexts), *plain)
    assert done.status == 0, done.output
    built = dict(line.split() for line in done.output.splitlines())
    before = ids(ours)
    assert {name: digest for name, digest in built.items() if digest != before[name]} == {}
