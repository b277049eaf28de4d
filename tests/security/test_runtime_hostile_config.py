"""Hostile ``config.json``: a clear error that names the place, never a traceback, nothing half-made.

Any JSON value is put at any place of a good spec, and the command's own code runs it. The containers that do start are
part of the bargain: they are deleted again, and after every example nothing may be left.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runc_py import errors, shape, spec
from runc_py.main import run
from runc_py.template import default_spec

pytestmark = pytest.mark.root

EXPLORED = int(os.environ.get("GANTRY_FUZZ") or 0)
VALIDATED, STARTED = EXPLORED * 10 or 1500, EXPLORED or 120
"""How many documents are checked, and how many are run; with the variable set they are new ones each time."""

JUNK: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False),
        st.text(max_size=12),
        st.sampled_from(["", "/", "..", "/../..", "a\0b", "/proc/self/exe", "x" * 5000, "\udce9", "-1", "rbind"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8) | st.sampled_from(["type", "path"]), inner)
    ),
    max_leaves=4,
)


def rich_spec() -> dict[str, Any]:
    """A good spec with something in every section."""
    document = default_spec()
    document["process"].update(
        terminal=False,
        rlimits=[{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
        args=["/bin/true"],
        oomScoreAdj=100,
        scheduler={"policy": "SCHED_BATCH", "nice": 1},
        ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 4},
        consoleSize={"height": 1, "width": 1},
        apparmorProfile="",
    )
    document["process"]["user"].update(additionalGids=[5], umask=18)
    document["domainname"] = "d"
    document["annotations"] = {"a": "b", "run.oci.keep_original_groups": "0"}
    document["hooks"] = {"poststart": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 5}]}
    document["linux"].update(
        devices=[{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}],
        sysctl={"net.ipv4.ip_forward": "0"},
        rootfsPropagation="rprivate",
        personality={"domain": "LINUX"},
        memoryPolicy={"mode": "MPOL_DEFAULT"},
        seccomp={
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [
                {
                    "names": ["mincore"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 1,
                    "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}],
                }
            ],
        },
    )
    document["linux"]["resources"].update(
        memory={"limit": 1 << 26, "swap": -1},
        cpu={"shares": 100, "quota": 10000, "period": 100000, "cpus": "0"},
        pids={"limit": 50},
        blockIO={"throttleReadBpsDevice": []},
    )
    return document


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a document, as the keys that lead to it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


GOOD = rich_spec()
PLACES = sorted(places(GOOD), key=repr)


def changed(changes: list[tuple[tuple[Any, ...], Any]]) -> dict[str, Any]:
    """A copy of the good spec with values replaced."""
    document = copy.deepcopy(GOOD)
    for place, value in changes:
        parent: Any = document
        with contextlib.suppress(KeyError, IndexError, TypeError):
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = value
    return document


WORDS = st.text(max_size=6) | st.sampled_from(
    [
        "",
        "/",
        "/x",
        "..",
        "/bin/true",
        "a",
        "c",
        "rwm",
        "0",
        "0-1",
        "private",
        "network",
        "mount",
        "user",
        "tmpfs",
        "eth0",
    ]
)


def shaped(of: shape.Shape) -> st.SearchStrategy[Any]:
    """Values of the right type at every place, so that what comes after the table of types is reached."""
    if isinstance(of, range):
        return st.sampled_from([of.start, of.stop - 1]) | st.integers(of.start, of.stop - 1)
    if isinstance(of, list):
        return st.lists(shaped(of[0]), max_size=2)
    if isinstance(of, dict):
        if "*" in of:
            return st.dictionaries(WORDS, shaped(of["*"]), max_size=2)
        needed = of.get("!", ())
        members = {name: shaped(inner) for name, inner in of.items() if name != "!"}
        return st.fixed_dictionaries(
            {name: members.pop(name) for name in needed}, optional={**members, "unknown": st.just([None])}
        )
    return {str: WORDS, bool: st.booleans(), float: st.floats(allow_nan=False)}[of]


def sections(of: shape.Shape, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], st.SearchStrategy[Any]]]:
    """Every object and list of the table of types, with what may be put there."""
    for name, inner in of.items() if isinstance(of, dict) else ():
        if isinstance(inner, (dict, list)) and name not in ("!", "*"):
            yield (*path, name), shaped(inner)
            yield from sections(inner, (*path, name))


SHAPED = [st.tuples(st.just(path), values) for path, values in sections(shape.SPEC)]
CHANGES = st.lists(st.tuples(st.sampled_from(PLACES), JUNK) | st.one_of(SHAPED), min_size=1, max_size=3)


@pytest.mark.timeout(3600 if EXPLORED else 120)
@settings(max_examples=VALIDATED, deadline=None)
@given(CHANGES)
def test_validation_gives_a_sentence_or_nothing(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    try:
        spec.validate_spec(changed(changes))
    except errors.InvalidSpec as error:
        assert str(error)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle directory with a rootfs of one program."""
    directory = tmp_path_factory.mktemp("hostile")
    root = directory / "rootfs"
    for name in ("bin", "proc", "sys", "dev", "etc"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox, "busybox is missing: apt-get install busybox-static"
    shutil.copy(busybox, root / "bin/true")
    return directory


def command(*arguments: str) -> tuple[int, str]:
    """Run the command in a child process, because a container's creator may change itself: (status, stderr)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status, text = 70, io.StringIO()
        try:
            with contextlib.redirect_stderr(text), contextlib.redirect_stdout(io.StringIO()):
                status = run([*arguments])
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException as error:
            text.write(f"ESCAPED {error!r}")
        os.write(writer, text.getvalue().encode("utf-8", "backslashreplace")[:60000])
        os._exit(status)
    os.close(writer)
    output = b""
    while data := os.read(reader, 65536):
        output += data
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output.decode()


@pytest.mark.timeout(3600 if EXPLORED else 400)
@settings(max_examples=STARTED, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
def test_the_command_survives_and_cleans_up(
    place: Path, monkeypatch: pytest.MonkeyPatch, changes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    monkeypatch.setattr("runc_py.seal.ensure_sealed", lambda: None)
    container = f"hostile-{uuid.uuid4().hex[:10]}"
    document = changed(changes)
    if isinstance(document.get("linux"), dict):
        document["linux"]["cgroupsPath"] = f"/{container}"
    (place / "config.json").write_text(json.dumps(document))
    state = place / "state"
    mounts = Path("/proc/self/mountinfo").read_text()
    status, text = command("--root", str(state), "run", "--bundle", str(place), container)
    for trace in ("Traceback", "ESCAPED", "TypeError", "KeyError", "AttributeError", "ValueError", "IndexError"):
        assert trace not in text, text
    assert status == 0 or text.strip() or status > 1
    left = [name for name in os.listdir(state) if not name.startswith(".")] if state.exists() else []
    assert not left
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{container}"))
    assert Path("/proc/self/mountinfo").read_text() == mounts
