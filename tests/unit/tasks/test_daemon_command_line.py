"""The command line of containerd-py: flags over file over defaults, and one daemon for one directory."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from containerd_py import main
from containerd_py.settings import Settings
from containerd_py.tasks import helpers
from oci.errors import GantryError


def settings_of(*arguments: str) -> Settings:
    return main._settings(main._parser().parse_args(arguments))


def test_flags_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        'version = 2\nroot = "/from/file"\nstate = "/run/file"\n[grpc]\naddress = "/run/file/c.sock"\n'
        '[debug]\nlevel = "debug"\n[plugins."x"]\nignored = true\n'
    )
    found = settings_of("--config", str(file), "--root", "/from/flag")
    assert found.root == "/from/flag"
    assert found.state == "/run/file"
    assert found.address == "/run/file/c.sock"
    assert found.ttrpc_address == "/run/file/c.sock.ttrpc"
    assert found.log_level == "debug"
    assert settings_of("--state", "/run/x").address == "/run/x/containerd.sock"
    assert settings_of("-a", "unix:///run/y.sock").address == "/run/y.sock"


def test_what_cannot_work_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(main.StartError, match="longer than 100 bytes"):
        settings_of("--state", f"/run/{'x' * 90}")
    with pytest.raises(main.StartError, match="No such file"):
        settings_of("--config", str(tmp_path / "none.toml"))
    bad = tmp_path / "bad.toml"
    bad.write_text("root = \n")
    with pytest.raises(main.StartError, match="Invalid value"):
        settings_of("--config", str(bad))


def test_lock_names_its_holder(tmp_path: Path) -> None:
    path = str(tmp_path / "containerd.pid")
    holder = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(holder, b"4711\n")
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(main.StartError, match="pid 4711"):
        main._lock(path)
    os.close(holder)
    os.close(main._lock(path))


def test_stop_where_no_daemon_runs(tmp_path: Path) -> None:
    assert main.stop_daemon(str(tmp_path / "none.pid"))
    stale = tmp_path / "stale.pid"
    stale.write_text(f"{os.getpid()}\n")
    assert main.stop_daemon(str(stale)), "a pidfile nobody holds is not followed: the pid may be somebody else's"


def test_helpers_start_before_anything_heavy_is_imported() -> None:
    """grpc's threads and fork do not mix: the module that starts the helpers imports none of it."""
    script = (
        "import sys, containerd_py.main\n"
        "heavy = {'grpc', 'google', 'asyncio', 'structlog', 'aiohttp', 'msgspec'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=helpers.environment())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main._parser().parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("containerd-py ")


def test_tcp_and_metrics_from_flags_and_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[grpc]\ntcp_address = "10.0.0.1:7000"\ntcp_tls_cert = "/c"\ntcp_tls_key = "/k"\ntcp_tls_ca = "/a"\n'
        '[metrics]\naddress = "127.0.0.1:1338"\ngrpc_histogram = true\n'
    )
    found = settings_of("--config", str(file))
    assert found.tcp == ("10.0.0.1:7000", "/c", "/k", "/a", False)
    assert (found.metrics_address, found.grpc_histogram) == ("127.0.0.1:1338", True)
    assert settings_of("--tcp-address", "127.0.0.1:1", "--debug").log_level == "debug"
    assert settings_of("--tcp-address", "[::1]:1").tcp.address == "[::1]:1"
    assert settings_of("--tcp-address", "0.0.0.0:1", "--insecure-tcp").tcp.insecure


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("0.0.0.0:1",), "without TLS"),
        ((":1",), "without TLS"),
        (("example.org:1",), "without TLS"),
        (("0.0.0.0:1", "--tls-cert", "/c", "--tls-key", "/k"), "without asking clients"),
        (("127.0.0.1:1", "--tls-cert", "/c"), "a certificate and its key"),
        (("127.0.0.1:1", "--tls-ca", "/a"), "without a certificate"),
        (("127.0.0.1",), "not HOST:PORT"),
    ],
)
def test_tcp_that_lets_strangers_in_is_refused(flags: tuple[str, ...], why: str) -> None:
    with pytest.raises(GantryError, match=why):
        settings_of("--tcp-address", *flags)
