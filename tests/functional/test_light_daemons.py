"""What the daemons do without: libraries that take megabytes are loaded by who needs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.engine import Engine

DAEMONS = ("engine.main", "containerd_py.main")
HEAVY = ("cygrpc", "libcrypto", "libssl", "/_hashlib.", "/_ssl.", "/_bz2.", "/_lzma.", "zstandard", "isal_zlib")
"""Parts of the names of shared objects, by which they are found among a process' mappings."""


def mapped(engine: Engine, daemon: str) -> list[str]:
    text = Path(f"/proc/{engine.pid(daemon)}/maps").read_text()
    return [name for name in HEAVY if name in text]


def has_grpc(engine: Engine) -> bool:
    return "cygrpc" in mapped(engine, "engine.main")


def test_idle_daemons_have_loaded_nothing_heavy(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(image=False)
    for command in ("version", "info", "ps", "images", "network ls", "volume ls"):
        engine.docker(*command.split())
    assert {daemon: mapped(engine, daemon) for daemon in DAEMONS} == {daemon: [] for daemon in DAEMONS}
    engine.docker("import", "-", "something", stdin=b"\0" * 1024)
    for daemon in DAEMONS:
        assert "cygrpc" in mapped(engine, daemon), "the test sees what it looks for"


def test_containers_need_no_grpc_in_the_engine(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()  # its image came in by a stream, which is gRPC's
    engine.kill("engine.main")
    engine.start()
    assert engine.docker("run", "--rm", "busybox", "echo", "a").stdout == "a\n"
    name = engine.docker("run", "-d", "busybox", "sleep", "1000").stdout.strip()
    assert engine.docker("exec", name, "echo", "b").stdout == "b\n"
    assert engine.docker("inspect", "-f", "{{.State.Status}}", name).stdout == "running\n"
    assert engine.docker("stats", "--no-stream", "--format", "{{.ID}}", name).stdout.strip() == name[:12]
    assert "busybox" in engine.docker("images").stdout
    assert name[:12] in engine.docker("ps").stdout
    engine.docker("rm", "-f", name)
    assert not has_grpc(engine)
    engine.docker("commit", engine.docker("create", "busybox").stdout.strip(), "light")
    assert has_grpc(engine), "a stream of requests: the test sees what it looks for"
