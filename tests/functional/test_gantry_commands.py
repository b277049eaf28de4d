"""The gantry command beside the docker command: what one does the other sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import Engine


@pytest.fixture
def box(engine: Engine) -> Iterator[str]:
    engine.docker("run", "-d", "--name", "box", "-p", "127.0.0.1:8099:80", "busybox", "sleep", "1000")
    yield "box"
    engine.docker("rm", "-f", "box")


def test_a_containers_life(engine: Engine, box: str) -> None:
    state = ("inspect", "-f", "{{.State.Status}}", box)
    engine.gantry("pause", box)
    assert engine.docker(*state).stdout == "paused\n"
    engine.gantry("unpause", box)
    engine.gantry("restart", "-t", "0", box)
    assert engine.docker(*state).stdout == "running\n"
    assert engine.gantry("port", box).stdout == "80/tcp -> 127.0.0.1:8099\n"
    assert engine.gantry("port", box, "80").stdout == "127.0.0.1:8099\n"
    assert "sleep 1000" in engine.gantry("top", box).stdout
    engine.docker("exec", box, "touch", "/new")
    assert "A /new" in engine.gantry("diff", box).stdout.splitlines()
    engine.gantry("update", "--memory", "64m", "--memory-swap", "64m", "--restart", "on-failure:3", box)
    shown = engine.docker("inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}}", box).stdout
    assert shown == "67108864 on-failure\n"
    assert "64MB" in engine.gantry("stats", box).stdout or "67.11MB" in engine.gantry("stats", box).stdout
    image = engine.gantry("commit", "-m", "why", "-c", "ENV A=b", box, "made:one").stdout.strip()
    assert engine.docker("inspect", "-f", "{{.Id}}", "made:one").stdout.strip() == image
    engine.gantry("rename", box, "case")
    engine.gantry("kill", "case")
    assert engine.gantry("wait", "case").stdout == "137\n"
    engine.gantry("rename", "case", box)
    engine.docker("rmi", "made:one")


def test_files_there_and_back(engine: Engine, box: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_text("content\n")
    engine.gantry("cp", str(tree), f"{box}:/tmp")
    assert engine.docker("exec", box, "cat", "/tmp/tree/sub/file").stdout == "content\n"
    engine.gantry("cp", str(tree), f"{box}:/tmp/other")
    assert engine.docker("exec", box, "cat", "/tmp/other/sub/file").stdout == "content\n"
    engine.gantry("cp", f"{tree}/.", f"{box}:/etc")
    assert engine.docker("exec", box, "cat", "/etc/sub/file").stdout == "content\n"
    engine.gantry("cp", str(tree / "sub/file"), f"{box}:/tmp/renamed")
    assert engine.docker("exec", box, "cat", "/tmp/renamed").stdout == "content\n"

    engine.gantry("cp", f"{box}:/tmp/tree", str(tmp_path / "back"))
    assert (tmp_path / "back/sub/file").read_text() == "content\n"
    engine.gantry("cp", f"{box}:/tmp/tree", str(tmp_path / "back"))
    assert (tmp_path / "back/tree/sub/file").read_text() == "content\n"
    engine.gantry("cp", f"{box}:/tmp/renamed", str(tmp_path))
    assert (tmp_path / "renamed").read_text() == "content\n"
    engine.gantry("cp", f"{box}:/tmp/tree/.", str(tmp_path / "back"))
    assert (tmp_path / "back/sub/file").exists()
    engine.gantry("export", "-o", str(tmp_path / "all.tar"), box)
    assert (tmp_path / "all.tar").stat().st_size > 100_000


def test_volumes(engine: Engine) -> None:
    assert engine.gantry("volume", "create", "--label", "team=blue", "mine").stdout == "mine\n"
    assert json.loads(engine.gantry("volume", "inspect", "mine").stdout)[0]["Labels"] == {"team": "blue"}
    assert engine.gantry("volume", "ls", "-q", "--filter", "label=team=blue").stdout == "mine\n"
    engine.docker("run", "--rm", "-v", "mine:/v", "busybox", "touch", "/v/x")
    assert engine.gantry("volume", "rm", "mine").stdout == "mine\n"
    assert engine.gantry("volume", "rm", "mine", check=False).returncode == 1
    assert "say --force" in engine.gantry("volume", "prune", check=False).stderr
    assert "reclaimed" in engine.gantry("volume", "prune", "--force").stdout


def test_what_is_on_disk_and_what_happened(engine: Engine, box: str) -> None:
    lines = engine.gantry("system", "df").stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["TYPE", "Images", "Containers", "Local Volumes", "Build Cache"]
    assert engine.docker("system", "df", "--verbose").returncode == 0
    assert engine.docker("system", "df", "--format", "{{.Type}}").stdout.split("\n")[0] == "Images"
    now = engine.host.check("date", "+%s").strip()
    told = engine.gantry("system", "events", "--since", "1", "--until", now, "--filter", "container=box").stdout
    assert " container start " in told
    engine.docker("run", "--name", "ended", "busybox", "true")
    assert "say --force" in engine.gantry("container", "prune", check=False).stderr
    pruned = engine.gantry("system", "prune", "--force").stdout
    assert engine.docker("ps", "-aq", "--filter", "name=ended").stdout == ""
    assert "reclaimed" in pruned


def test_volume_sub_paths_and_binds(engine: Engine, tmp_path: Path) -> None:
    engine.docker("run", "--rm", "-v", "tree:/v", "busybox", "sh", "-c", "mkdir /v/a; echo x >/v/a/f; ln -s / /v/out")
    mount = "type=volume,src=tree,dst=/m,volume-subpath={}"
    assert engine.docker("run", "--rm", "--mount", mount.format("a"), "busybox", "cat", "/m/f").stdout == "x\n"
    # A link cannot lead out: it ends in the volume.
    assert engine.docker("run", "--rm", "--mount", mount.format("out"), "busybox", "ls", "/m").stdout == "a\nout\n"
    failed = engine.docker("run", "--rm", "--mount", mount.format("none"), "busybox", "true", check=False)
    assert failed.returncode == 125
    assert "subpath none of volume tree" in failed.stderr
    engine.docker("volume", "rm", "tree")

    (tmp_path / "kept").write_text("kept\n")
    engine.docker("volume", "create", "-o", "type=none", "-o", "o=bind", "-o", f"device={tmp_path}", "bound")
    assert engine.docker("run", "--rm", "-v", "bound:/v", "busybox", "cat", "/v/kept").stdout == "kept\n"
    engine.docker("volume", "rm", "bound")
    assert (tmp_path / "kept").exists(), "what a volume is bound to is not the volume's"
    assert str(engine.host.data_root) + "/volumes" not in "".join(engine.host.mounts())
