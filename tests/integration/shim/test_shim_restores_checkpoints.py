"""Create of a checkpoint: what the shim does around criu, played by a stand-in that starts a process and says its pid.

criu itself, with our runtime, is tested in a machine of its own (``tests/vm``): not every kernel lets it work.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.shim.conftest import CallError, Host, wait_until

CRIU = """#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
        --pidfile) pidfile=$2 ;;
        --root) root=$2 ;;
        --images-dir) images=$2 ;;
    esac
    shift
done
[ -e "$images/saved" ] || { echo "Error (nothing is saved)" >&2; exit 1; }
sh -c 'echo "$(cat "$1/saved") in $(ls "$2")"; exec sleep 1000' restored "$images" "$root" &
echo $! >"$pidfile"
"""


@pytest.fixture(autouse=True)
def criu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stand-in for criu, found before any other. The zygote is started after this."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "criu").write_text(CRIU)
    (programs / "criu").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    yield


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    (path / "descriptors.json").write_text('["/dev/null", "/dev/null", "/dev/null"]')
    (path / "saved").write_text("restored")
    return path


@pytest.fixture
def ready(criu: None, host: Host) -> Host:
    """A host whose zygote finds the stand-in."""
    return host


def test_a_restored_container_lives_as_any_other(ready: Host, images: Path) -> None:
    shim = ready.shim("a", ["sleep", "60"], root="rootfs")
    lower = str(ready.rootfs)
    rootfs = [{"type": "bind", "source": lower, "target": "", "options": ["rbind", "ro"]}]
    pid = shim.create(checkpoint=str(images), rootfs=rootfs)["pid"]
    assert Path(f"/proc/{pid}").exists(), "it goes on at once"
    assert str(shim.bundle / "rootfs") in Path(f"/proc/{shim.pid}/mounts").read_text()
    assert shim.client.call("State", id="a")["status"] == 1, "created: it was not started yet"
    assert shim.start()["pid"] == pid
    assert shim.client.call("State", id="a")["status"] == 2
    wait_until(lambda: shim.output().startswith(b"restored in bin"))
    shim.kill_shim()
    shim.restore()
    assert shim.client.call("State", id="a")["status"] == 2
    shim.client.call("Kill", id="a", signal=signal.SIGKILL)
    assert shim.wait() == 137
    shim.delete()
    assert not Path(f"/proc/{pid}").exists()
    assert str(shim.bundle / "rootfs") not in Path(f"/proc/{shim.pid}/mounts").read_text()
    ready.events.wait_for("/tasks/delete")
    seen = dict.fromkeys(ready.events.topics())  # at least once: the new shim may say again what the old one said
    assert list(seen) == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def test_a_shim_that_dies_before_the_start_forgets_nothing(ready: Host, images: Path) -> None:
    shim = ready.shim("b", ["sleep", "60"])
    pid = shim.create(checkpoint=str(images))["pid"]
    shim.kill_shim()
    shim.restore()
    assert shim.client.call("State", id="b")["status"] == 1
    assert shim.start()["pid"] == pid
    shim.client.call("Kill", id="b", signal=signal.SIGKILL)
    assert shim.wait() == 137
    shim.delete()


def test_what_cannot_be_restored_is_an_error_and_leaves_nothing(ready: Host, images: Path) -> None:
    (images / "saved").unlink()
    shim = ready.shim("c", ["sleep", "60"])
    with pytest.raises(CallError, match="criu failed"):
        shim.create(checkpoint=str(images))
    with pytest.raises(CallError, match="holds no checkpoint"):
        shim.create(checkpoint="/nonexistent")
    with pytest.raises(CallError, match="does not exist"):
        shim.client.call("State", id="c")
    terminal = ready.shim("d", ["sleep", "60"], terminal=True)
    with pytest.raises(CallError, match="criu failed"):
        terminal.create(checkpoint=str(images), terminal=True)
    with pytest.raises(CallError, match="holds no checkpoint"):
        terminal.create(checkpoint="/nonexistent", terminal=True)
