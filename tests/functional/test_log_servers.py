"""Containers that log to servers: Debian's rsyslog by every road there is, and a receiver of fluentd's protocol."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.certificates import Authority
from tests.support.engine import Engine
from tests.support.host import wait_for

CONFIGURATION = """
global(
    workDirectory="{base}"
    defaultNetstreamDriverCAFile="{ca}"
    defaultNetstreamDriverCertFile="{certificate}"
    defaultNetstreamDriverKeyFile="{key}"
)
module(load="imudp")
module(load="imuxsock" sysSock.use="off")
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
module(load="imptcp")
template(name="told" type="list" option.jsonf="on") {{
    property(outname="road" name="inputname" format="jsonf")
    property(outname="facility" name="syslogfacility-text" format="jsonf")
    property(outname="severity" name="syslogseverity-text" format="jsonf")
    property(outname="host" name="hostname" format="jsonf")
    property(outname="tag" name="programname" format="jsonf")
    property(outname="message" name="msg" format="jsonf")
}}
ruleset(name="all") {{ action(type="omfile" file="{base}/told" template="told") }}
input(type="imudp" address="127.0.0.1" port="5140" ruleset="all")
input(type="imptcp" address="127.0.0.1" port="5141" ruleset="all")
input(type="imtcp" address="127.0.0.1" port="6514" ruleset="all")
input(type="imuxsock" socket="{base}/socket" useSpecialParser="off" parseHostname="on" ruleset="all")
"""


class Syslog(NamedTuple):
    """A running rsyslog."""

    engine: Engine
    base: Path
    authority: Authority

    def told(self) -> list[dict[str, str]]:
        """What it got so far."""
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.base / "told").read_text().splitlines()]
        return []

    def of(self, container: str) -> list[dict[str, str]]:
        """What it got under the tag of ``container``."""
        return [entry for entry in self.told() if entry["tag"].startswith(container)]


@pytest.fixture(scope="module")
def syslog(make_engine: Callable[..., Engine]) -> Iterator[Syslog]:
    engine = make_engine()
    base = engine.host.base / "syslog"
    base.mkdir()
    authority = Authority(base / "ca")
    certificate, key = authority.server("localhost", "127.0.0.1")
    config = base / "rsyslog.conf"
    config.write_text(CONFIGURATION.format(base=base, ca=authority.ca, certificate=certificate, key=key))
    command = ["rsyslogd", "-n", "-f", str(config), "-i", str(base / "pid")]
    with open(base / "log", "wb") as log:
        process = engine.host.popen(*command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            listening = (":5140 ", ":5141 ", ":6514 ")
            wait_for(lambda: all(p in engine.host.check("ss", "-ltunH") for p in listening), "rsyslog to listen")
            yield Syslog(engine, base, authority)
        finally:
            for pid in engine.host.pids_of("rsyslogd", str(config)):
                os.kill(pid, signal.SIGTERM)
            process.wait(20)


ROADS = {
    "unix": ("unix://{base}/socket",),
    "unixgram": ("unixgram://{base}/socket",),
    "udp": ("udp://127.0.0.1:5140",),
    "tcp": ("tcp://127.0.0.1:5141",),
    "tls": (
        *("tcp+tls://localhost:6514", "syslog-tls-ca-cert={ca}", "syslog-tls-cert={certificate}"),
        "syslog-tls-key={key}",
    ),
}


@pytest.mark.skipif(shutil.which("rsyslogd") is None, reason="rsyslogd is missing: bash tests/install-peers")
@pytest.mark.parametrize("format", ["", "rfc3164", "rfc5424", "rfc5424micro"])
@pytest.mark.parametrize("road", ROADS)
def test_syslog(syslog: Syslog, road: str, format: str) -> None:
    certificate, key = syslog.authority.client("engine")
    filled = {"base": syslog.base, "ca": syslog.authority.ca, "certificate": certificate, "key": key}
    address, *others = (option.format(**filled) for option in ROADS[road])
    name = f"{road}-{format or 'plain'}"
    options = [f"syslog-address={address}", "syslog-facility=local3", "tag={{.Name}}", *others]
    options += [f"syslog-format={format}"] if format else []
    flags = [word for option in options for word in ("--log-opt", option)]
    script = "echo out; echo err >&2; echo last"
    syslog.engine.docker("run", "--rm", "--name", name, "--log-driver", "syslog", *flags, "busybox", "sh", "-c", script)
    wait_for(lambda: len(syslog.of(name)) == 3, f"the lines\n{syslog.told()[-5:]}\n{syslog.engine.log_text()}", 30)
    told = sorted((entry["severity"], entry["message"].strip()) for entry in syslog.of(name))
    assert told == [("err", "err"), ("info", "last"), ("info", "out")]
    assert {entry["facility"] for entry in syslog.of(name)} == {"local3"}
    assert {entry["tag"] for entry in syslog.of(name)} == {name}


@pytest.mark.skipif(shutil.which("rsyslogd") is None, reason="rsyslogd is missing: bash tests/install-peers")
def test_a_syslog_nobody_vouches_for_gets_nothing(syslog: Syslog) -> None:
    """Not believed: it waits and is sent again; taken without a look where that is asked for."""
    certificate, key = syslog.authority.client("engine")
    options = ["syslog-address=tcp+tls://127.0.0.1:6514", "tag={{.Name}}"]
    options += [f"syslog-tls-cert={certificate}", f"syslog-tls-key={key}"]
    flags = [word for option in options for word in ("--log-opt", option)]
    run = ("run", "-d", "--log-driver", "syslog", *flags)
    syslog.engine.docker(*run, "--name", "doubting", "busybox", "sh", "-c", "echo secret; sleep 1000")
    syslog.engine.docker(
        *run, "--name", "trusting", "--log-opt", "syslog-tls-skip-verify=true", "busybox", "echo", "secret"
    )
    wait_for(lambda: syslog.of("trusting"), "what needs no proof", 30)
    wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in syslog.engine.log_text(), "the engine to say why")
    assert syslog.of("doubting") == []
    assert syslog.engine.docker("logs", "doubting").stdout == "secret\n"
    syslog.engine.docker("rm", "-f", "doubting", "trusting")


RECEIVER = """
import msgspec, socket, sys
listener = socket.create_server(("127.0.0.1", 24224))
with open(sys.argv[1], "a") as out:
    while True:
        client, _ = listener.accept()
        pending = b""
        while data := client.recv(65536):
            pending += data
            try:
                tag, *rest = msgspec.msgpack.decode(pending)
            except msgspec.DecodeError:
                continue
            pending = b""
            entries = rest[0] if isinstance(rest[0], list) else [rest[:2]]
            for _, record in entries:
                out.write(msgspec.json.encode([tag, record]).decode() + "\\n")
            out.flush()
            options = rest[1 if isinstance(rest[0], list) else 2:]
            if options:
                client.sendall(msgspec.msgpack.encode({"ack": options[0]["chunk"]}))
"""


def test_fluentd_that_comes_late(syslog: Syslog) -> None:
    """A container does not wait for it; with acknowledgements nothing is lost on the way and nothing comes twice."""
    engine, told = syslog.engine, syslog.base / "forwarded"
    options = ["fluentd-request-ack=true", "fluentd-async=true", "fluentd-retry-wait=100ms", "tag=app.{{.Name}}"]
    flags = [word for option in (*options, "labels=team") for word in ("--log-opt", option)]
    run = ("run", "-d", "--name", "late", "--label", "team=blue", "--log-driver", "fluentd", *flags)
    engine.docker(*run, "busybox", "sh", "-c", "for i in 1 2 3; do echo $i; done; sleep 1000")
    wait_for(lambda: engine.docker("logs", "late").stdout == "1\n2\n3\n", "the lines in our own log")
    wait_for(lambda: "Connection refused" in engine.log_text(), "a first try")
    process = engine.host.popen(sys.executable, "-c", RECEIVER, str(told), stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: told.exists() and len(told.read_text().splitlines()) >= 3, "the lines", 40)
    finally:
        for pid in engine.host.pids_of(str(told)):
            os.kill(pid, signal.SIGKILL)
        process.wait(20)
    entries: list[Any] = [json.loads(line) for line in told.read_text().splitlines()]
    assert [(tag, record["log"], record["team"]) for tag, record in entries] == [
        ("app.late", number, "blue") for number in "123"
    ]
    engine.docker("rm", "-f", "late")
