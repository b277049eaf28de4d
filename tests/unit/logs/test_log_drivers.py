"""Log drivers fed from a raw log: exact json files, rotation, destinations that fail, resuming."""

from __future__ import annotations

import gzip
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.containers.config import ContainerConfig, HostConfig, LogConfig
from engine.containers.logdrivers import Feed, journal_field, read_place
from engine.containers.logoptions import check_options, parse_size
from engine.containers.logs import details_text
from engine.containers.machine import Machine
from engine.containers.model import Container
from engine.store import Store
from oci.errors import InvalidArgument
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
    assert [parse_size(t) for t in ("10m", "1k", "5", "2GiB")] == [10 << 20, 1024, 5, 2 << 30]
    for driver, options, words in (
        ("json-file", {"nope": "1"}, "unknown log opt 'nope' for json-file log driver"),
        ("json-file", {"max-size": "x"}, "invalid size: 'x'"),
        ("json-file", {"max-file": "0"}, "invalid value for max-file"),
        ("json-file", {"compress": "true"}, "compress cannot be true when max-file is less than 2"),
        ("json-file", {"compress": "maybe"}, "invalid value for compress"),
        ("syslog", {"env-regex": "("}, "invalid value for env-regex"),
        ("splunk", {}, "no log driver named 'splunk' is registered"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            check_options(driver, options)
