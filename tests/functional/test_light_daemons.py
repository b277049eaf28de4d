"""What the daemons do without: an engine that works with a supervisor of ours has no use for gRPC."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.engine import Engine


def has_grpc(engine: Engine) -> bool:
    return "cygrpc" in Path(f"/proc/{engine.pid('engine.main')}/maps").read_text()


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
