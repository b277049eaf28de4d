"""Log drivers fed from a raw log: exact json files, rotation, destinations that fail, resuming."""

from __future__ import annotations

import gzip
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.containers.config import ContainerConfig, HostConfig, LogConfig
from engine.containers.logdrivers import Feed, read_place
from engine.containers.logoptions import FIRST_PAUSE, check_options, first_pause, parse_size
from engine.containers.logs import details_text, expand_tag
from engine.containers.logservers import journal_field
from engine.containers.machine import Machine
from engine.containers.model import Container
from engine.store import Store
from oci.errors import InvalidArgument
from protos.rawlog import MAX_LINE
from shim.logfile import LogFile


class Box:
    def __init__(self, tmp_path: Path, driver: str, **options: str) -> None:
        config = {name.replace("_", "-"): value for name, value in options.items()}
        doc = Container(
            id="c" * 64, name="box", created_at=1, image_id="sha256:0", image_manifest=None, chain_id="",
            snapshotter="overlayfs", platform="linux/amd64", path="sh", args=(),
            config=ContainerConfig(image="busybox"), host=HostConfig(log_config=LogConfig(driver, config)),
        )  # fmt: skip
        self.machine = Machine(Store(":memory:"), doc)
        self.directory = str(tmp_path / "log")
        self.file = LogFile(self.directory)
        self.json = Path(self.directory, f"{doc.id}-json.log")

    def write(self, data: bytes, stream: int = 1) -> None:
        read, write = os.pipe()
        os.write(write, data)
        os.close(write)
        self.file.splice_from(read, stream)
        os.close(read)

    def feed(self, *, final: bool = False) -> None:
        feed = Feed(self.machine, self.directory)
        while feed.step(final):
            pass
        feed.close()

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.json.read_text().splitlines()]


def test_json_file_is_exact_over_restarts_of_the_daemon(tmp_path: Path) -> None:
    box = Box(tmp_path, "json-file")
    box.write(b"one\npart")
    box.feed()
    assert [e["log"] for e in box.entries()] == ["one\n"]
    with open(box.json, "ab") as file:
        file.write(b'{"log":"half writ')  # a daemon killed between writing and noting
    box.write(b"ial\n")
    box.write(b"err \xff\n", 2)
    box.write(b"no newline")
    box.feed()
    box.feed(final=True)
    assert [(e["stream"], e["log"]) for e in box.entries()] == [
        ("stdout", "one\n"), ("stdout", "partial\n"), ("stderr", "err \ufffd\n"), ("stdout", "no newline"),
    ]  # fmt: skip
    assert box.entries()[0]["time"].endswith("Z")
    assert read_place(box.directory).file_size == box.json.stat().st_size


def test_json_file_rotates(tmp_path: Path) -> None:
    box = Box(tmp_path, "json-file", max_size="1k", max_file="3")
    for number in range(100):
        box.write(b"line %03d\n" % number)
    box.feed()
    files = sorted(os.listdir(box.directory))
    names = [f"{box.machine.id}-json.log{end}" for end in ("", ".1", ".2")]
    assert [f for f in files if "json.log" in f] == names
    assert all(os.path.getsize(f"{box.directory}/{f}") <= 1024 for f in names)
    assert box.entries()[-1]["log"] == "line 099\n"
    older = [json.loads(line)["log"] for line in Path(f"{box.json}.1").read_text().splitlines()]
    newest = box.entries()[0]["log"]
    assert int(older[-1].split()[1]) + 1 == int(newest.split()[1])


def test_old_json_files_are_packed(tmp_path: Path) -> None:
    box = Box(tmp_path, "json-file", max_size="1k", max_file="3", compress="true")
    for number in range(100):
        box.write(b"line %03d\n" % number)
    box.feed()
    names = [f"{box.machine.id}-json.log{end}" for end in ("", ".1.gz", ".2.gz")]
    assert sorted(f for f in os.listdir(box.directory) if "json.log" in f) == names
    packed = [gzip.decompress(Path(f"{box.json}.{number}.gz").read_bytes()) for number in (2, 1)]
    older = [json.loads(line) for data in packed for line in data.splitlines()]
    numbers = [int(entry["log"].split()[1]) for entry in (*older, *box.entries())]
    assert numbers == list(range(numbers[0], 100))


def test_labels_environment_and_tag_go_with_each_line(tmp_path: Path) -> None:
    options = {
        "labels": "team,nope",
        "labels-regex": "^com[.]",
        "env": "A",
        "env-regex": "^LC_",
        "tag": "{{ .Name }}/x",
    }
    box = Box(tmp_path, "json-file", **options)
    doc = box.machine.doc
    config = msgspec.structs.replace(
        doc.config,
        labels={"team": "blue", "com.example": "1", "com": "2", "other": "3"},
        env=["A=b=c", "LC_ALL=C", "HOME=/"],
    )
    box.machine.update(config=config)
    box.write(b"one\n")
    box.feed()
    told = {"team": "blue", "com.example": "1", "A": "b=c", "LC_ALL": "C", "tag": "box/x"}
    assert box.entries()[0]["attrs"] == told
    assert details_text(box.machine) == "A=b%3Dc,LC_ALL=C,com.example=1,tag=box%2Fx,team=blue"


def test_syslog_waits_for_its_server(tmp_path: Path) -> None:
    path = str(tmp_path / "syslog")
    box = Box(tmp_path, "syslog", syslog_address=f"unixgram://{path}", tag="{{.Name}}", syslog_facility="local1")
    box.write(b"lost?\n")
    box.write(b"err\n", 2)
    feed = Feed(box.machine, box.directory)
    with pytest.raises(OSError, match="No such file"):
        feed.step(False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        assert feed.step(False)
        first, second = server.recv(4096), server.recv(4096)
    feed.close()
    assert first.startswith(b"<142>")
    assert b" box[" in first
    assert first.endswith(b"]: lost?")
    assert second.startswith(b"<139>")
    assert not Feed(box.machine, box.directory).step(False)


def test_fluentd_gets_messages(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        box = Box(tmp_path, "fluentd", fluentd_address=f"127.0.0.1:{server.getsockname()[1]}", tag="app.{{.Name}}")
        got: list[bytes] = []

        def serve() -> None:
            client, _ = server.accept()
            while data := client.recv(65536):
                got.append(data)
            client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        box.write(b"hello\n")
        box.feed()
        thread.join(5)
    tag, seconds, record = msgspec.msgpack.decode(b"".join(got))
    assert (tag, record["log"], record["source"]) == ("app.box", "hello", "stdout")
    assert record["container_name"] == "/box"
    assert seconds > 1_600_000_000


def test_journal_fields() -> None:
    assert journal_field("A", b"b") == b"A=b\n"
    assert journal_field("A", b"b\nc") == b"A\n\x03\0\0\0\0\0\0\0b\nc\n"


def test_options_are_checked() -> None:
    check_options("json-file", {"max-size": "10m", "max-file": "3", "labels": "x"})
    check_options("syslog", {"syslog-address": "tcp+tls://[::1]:6514", "syslog-facility": "23", "mode": "non-blocking"})
    retrying = {"fluentd-retry-wait": "1m30s", "fluentd-buffer-limit": "8MB", "fluentd-max-retries": "3"}
    check_options("fluentd", {"fluentd-address": "tls://log.example", **retrying})
    assert (first_pause(retrying), first_pause({})) == (90.0, FIRST_PAUSE)
    assert [parse_size(t) for t in ("10m", "1k", "5", "2GiB")] == [10 << 20, 1024, 5, 2 << 30]
    for driver, options, words in (
        ("json-file", {"nope": "1"}, "unknown log opt 'nope' for json-file log driver"),
        ("json-file", {"max-size": "x"}, "invalid size: 'x'"),
        ("json-file", {"max-file": "0"}, "invalid value for max-file"),
        ("json-file", {"compress": "true"}, "compress cannot be true when max-file is less than 2"),
        ("json-file", {"compress": "maybe"}, "invalid value for compress"),
        ("syslog", {"env-regex": "("}, "invalid value for env-regex"),
        ("syslog", {"tag": "{{.Nope}}"}, r"invalid value for tag: '{{.Nope}}': .Nope is not a field"),
        ("syslog", {"tag": "{{ nope .ID }}"}, "function 'nope' not defined"),
        ("syslog", {"tag": "{{ (.ID }}"}, "unclosed parenthesis"),
        ("syslog", {"syslog-address": "http://x"}, "unsupported scheme: 'http', expected one of unix://, unixgram://"),
        ("syslog", {"syslog-address": "unix://"}, "an absolute path is expected"),
        ("syslog", {"syslog-address": "tcp://x:y"}, "invalid value for syslog-address: 'tcp://x:y'"),
        ("syslog", {"syslog-facility": "local8"}, "invalid syslog facility: 'local8'"),
        ("syslog", {"syslog-facility": "24"}, "invalid syslog facility: '24'"),
        ("syslog", {"syslog-format": "rfc1"}, "invalid syslog format: 'rfc1'"),
        ("syslog", {"syslog-tls-cert": "/c"}, "syslog-tls-cert and syslog-tls-key go together"),
        ("syslog", {"syslog-address": "tcp+tls://x", "syslog-tls-ca-cert": "/none"}, "invalid syslog-tls-.* files"),
        ("fluentd", {"fluentd-address": "udp://x"}, "unsupported scheme: 'udp'"),
        ("fluentd", {"fluentd-address": "tcp://x/path"}, "host and port are expected"),
        ("fluentd", {"fluentd-async": "maybe"}, "invalid value for fluentd-async"),
        ("fluentd", {"fluentd-retry-wait": "1"}, "invalid value for fluentd-retry-wait"),
        ("fluentd", {"fluentd-async-reconnect-interval": "20s"}, "value must be between 100ms and 10s"),
        ("fluentd", {"fluentd-max-retries": "-1"}, "invalid value for fluentd-max-retries"),
        ("fluentd", {"fluentd-buffer-limit": "x"}, "invalid value for fluentd-buffer-limit"),
        ("journald", {"mode": "fast"}, "logging mode not supported: fast"),
        ("journald", {"max-buffer-size": "1m"}, "only supported with 'mode=non-blocking'"),
        ("splunk", {}, "no log driver named 'splunk' is registered"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            check_options(driver, options)


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{{.ID}}", "c" * 12),
        ("{{ .ImageName }}/{{.Name}}", "busybox/box"),
        ("{{- .Name | upper -}}", "BOX"),
        ("{{upper .Name}}-{{truncate .FullID 4}}", "BOX-cccc"),
        ('{{ index .ContainerLabels "team" }}', "blue"),
        ("{{ .ContainerLabels.team }}{{.ContainerLabels.none}}", "blue"),
        ("{{ (.ExtraAttributes nil).A }}", "b"),
        ('{{ json .ContainerLabels }}', '{"team":"blue"}'),
        ('{{ join (split "a,b" ",") "-" }}', "a-b"),
        ("{{ .Command }}", "sh -c x"),
    ],
)  # fmt: skip
def test_tags_are_docker_s_markup(tmp_path: Path, template: str, filled: str) -> None:
    box = Box(tmp_path, "syslog", tag=template, env="A")
    doc = box.machine.doc
    config = msgspec.structs.replace(doc.config, labels={"team": "blue"}, env=["A=b"])
    box.machine.update(config=config, args=("-c", "x"))
    assert expand_tag(template, box.machine) == filled
    check_options("syslog", {"tag": template})


class Forward:
    """A receiver of fluentd's forward protocol, as its specification has it: every mode that a sender may choose."""

    def __init__(self, listener: socket.socket, *, acks: bool = True, hang_up_after: int = 0) -> None:
        self.listener = listener
        self.events: list[tuple[str, Any, dict[str, str]]] = []
        self._acks = acks
        self._left = hang_up_after
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client:
                self._take(client)

    def _take(self, client: socket.socket) -> None:
        pending = b""
        while data := client.recv(65536):
            pending += data
            try:
                message = msgspec.msgpack.decode(pending)
            except msgspec.DecodeError:
                continue
            pending = b""
            if self._left:
                self._left -= 1
                return  # it dies with what it was told
            tag, *rest = message
            entries = rest[0] if isinstance(rest[0], list) else [rest[:2]]
            self.events += [(tag, when, record) for when, record in entries]
            options = rest[1 if isinstance(rest[0], list) else 2 :]
            if options and "chunk" in options[0]:
                client.sendall(msgspec.msgpack.encode({"ack": options[0]["chunk"]}))


@pytest.fixture
def forward(tmp_path: Path) -> Iterator[Callable[..., Forward]]:
    made: list[Forward] = []

    def make(**options: Any) -> Forward:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "forward"))
        listener.listen()
        made.append(Forward(listener, **options))
        return made[0]

    yield make
    for receiver in made:
        receiver.listener.shutdown(socket.SHUT_RDWR)
        receiver.thread.join(10)
        receiver.listener.close()


def test_fluentd_tells_fractions_and_pieces(tmp_path: Path, forward: Callable[..., Forward]) -> None:
    receiver = forward()
    options = {"fluentd_sub_second_precision": "true", "fluentd_request_ack": "true"}
    box = Box(tmp_path, "fluentd", fluentd_address=f"unix://{tmp_path}/forward", **options)
    box.write(b"short\n" + b"x" * (2 * MAX_LINE) + b"end\n")
    box.feed()
    assert [record["log"][:5] for _, _, record in receiver.events] == ["short", "xxxxx", "xxxxx", "end"]
    (_, when, whole), *pieces = receiver.events
    assert "partial_message" not in whole
    assert (when.code, len(when.data)) == (0, 8)
    seconds, rest = int.from_bytes(when.data[:4], "big"), int.from_bytes(when.data[4:], "big")
    assert seconds > 1_600_000_000
    assert 0 <= rest < 10**9
    told = [(r["partial_message"], r["partial_ordinal"], r["partial_last"]) for _, _, r in pieces]
    assert told == [("true", "1", "false"), ("true", "2", "false"), ("true", "3", "true")]
    assert len({record["partial_id"] for _, _, record in pieces}) == 1


def test_fluentd_sends_again_what_was_not_acknowledged(tmp_path: Path, forward: Callable[..., Forward]) -> None:
    receiver = forward(hang_up_after=1)
    box = Box(tmp_path, "fluentd", fluentd_address=f"unix://{tmp_path}/forward", fluentd_request_ack="true")
    box.write(b"one\ntwo\n")
    feed = Feed(box.machine, box.directory)
    with pytest.raises(OSError, match="hung up"):
        feed.step(False)
    assert feed.step(False)
    feed.close()
    assert [record["log"] for _, _, record in receiver.events] == ["one", "two"]


def test_a_server_that_hung_up_is_connected_anew(tmp_path: Path) -> None:
    """What is written to a connection that the other side has closed is lost: it is noticed before."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        box = Box(tmp_path, "syslog", syslog_address=address, syslog_format="rfc5424micro")
        feed = Feed(box.machine, box.directory)
        for line in (b"first\n", b"second\n"):
            box.write(line)
            assert feed.step(False)
            client, _ = server.accept()
            said = client.recv(4096)
            client.close()
            assert said.endswith(line)
            assert said.split(b" ")[1].count(b"-") == 2
            assert len(said.split(b" ")[1]) == len("2026-01-01T00:00:00.000000Z")
        feed.close()
