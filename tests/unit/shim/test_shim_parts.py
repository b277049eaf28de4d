"""The shim's parts that need no container: files, URIs, exit statuses, keeper, pumps, events on disk."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci.errors import InvalidArgument, NotFound, Unimplemented
from protos import fdpass, rawlog, ttrpc
from protos.shim_messages import FORWARD_REQUEST, TASK_START
from shim import commands, exits, metrics, stdio
from shim.bundle import Bundle, ExitRecord, ProcessRecord, start_ticks
from shim.keeper import Keeper, Store, listen
from shim.logfile import LogFile
from shim.loop import READ, Loop
from shim.publisher import Publisher
from shim.pumps import CopyPump, InputSink, LogPump


@pytest.fixture
def loop() -> Loop:
    return Loop()


def run_until(loop: Loop, condition: object) -> None:
    """Run the loop until ``condition()``; a second is more than enough."""
    left = [400]

    def look() -> None:
        left[0] -= 1
        if condition() or not left[0]:  # type: ignore[operator] # a callable
            loop.stop()
        else:
            loop.call_later(0.0025, look)

    look()
    loop.run()
    assert left[0], "the loop did not get there"


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        ("", stdio.Target(stdio.NULL)),
        ("/run/f/0", stdio.Target(stdio.FIFO, "/run/f/0")),
        ("file:///a/b%20c", stdio.Target(stdio.FILE, "/a/b c")),
        ("rawlog:///d?attach=/s/ock", stdio.Target(stdio.RAWLOG, "/d", attach="/s/ock")),
        ("attach:///s?once=1", stdio.Target(stdio.ATTACH, "/s", attach="/s", once=True)),
        ("attach:///s", stdio.Target(stdio.ATTACH, "/s", attach="/s")),
    ],
)
def test_stdio_uris(uri: str, target: stdio.Target) -> None:
    assert stdio.parse(uri) == target


def test_a_logging_programs_arguments_are_names_and_first_values() -> None:
    target = stdio.parse("binary:///bin/log?to=/x&to=/y&quiet&path=%2Fz")
    assert (target.kind, target.path, target.arguments) == ("binary", "/bin/log", ("to", "/x", "quiet", "path", "/z"))


@pytest.mark.parametrize(("uri", "kind"), [("rel", InvalidArgument), ("nfs:///x", Unimplemented)])
def test_bad_stdio_uris(uri: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        stdio.parse(uri)


def test_an_absent_fifo_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        stdio.open_output(f"{tmp_path}/nowhere")


def test_stdin_fifo_ends_only_when_holder_and_client_have_closed(tmp_path: Path) -> None:
    path = str(tmp_path / "in")
    os.mkfifo(path)
    descriptor, holder = stdio.open_input(path)
    assert holder is not None
    client = os.open(path, os.O_WRONLY)
    os.write(client, b"x")
    os.close(client)
    assert os.read(descriptor, 10) == b"x"
    os.set_blocking(descriptor, False)
    with pytest.raises(BlockingIOError):
        os.read(descriptor, 10)
    os.close(holder)
    assert os.read(descriptor, 10) == b""
    os.close(descriptor)


def test_exit_statuses() -> None:
    assert exits.exit_status(7 << 8) == 7
    assert exits.exit_status(signal.SIGKILL) == 137


def test_exit_code_of_somebody_elses_child() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    pidfd = os.pidfd_open(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert exits.status_from_pidfd(pidfd) is None  # not reaped yet
    os.waitpid(pid, 0)
    status = exits.status_from_pidfd(pidfd)
    os.close(pidfd)
    if status is None:
        pytest.skip("this kernel has no PIDFD_GET_INFO with exit information (Linux 6.15)")
    assert exits.exit_status(status) == 7


def test_bundle_records_round_trip(tmp_path: Path) -> None:
    bundle = Bundle(str(tmp_path))
    assert (bundle.read_exit(""), bundle.read_processes(), bundle.read_options()) == (None, [], None)
    exec_record = ProcessRecord("e", 5, 6, "", "/out", "", True, {"args": ["x"]})
    init_record = ProcessRecord("", 3, 4, "", "", "", False, None)
    bundle.write_process(exec_record)
    bundle.write_process(init_record)
    assert bundle.read_processes() == [init_record, exec_record]
    bundle.write_exit("", ExitRecord(3, 137, 99))
    assert bundle.read_exit("") == ExitRecord(3, 137, 99)
    assert (tmp_path / "exits" / "init").read_text() == '{"pid":3,"exit_status":137,"exited_at":99}'
    bundle.forget_process("e")
    assert bundle.read_processes() == [init_record]
    assert start_ticks(os.getpid()) > 0


def test_a_half_written_record_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "exits").mkdir()
    (tmp_path / "exits" / "init.new").write_text('{"pid":3')
    assert Bundle(str(tmp_path)).read_exit("") is None


def test_keeper_store_owns_and_replaces() -> None:
    store = Store()
    first, second = os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
    store.put("k", ["a"], [first])
    store.put("k", ["a", "b"], [second, os.open("/dev/null", os.O_RDONLY)])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first)
    names, held, more = store.get("k", 0)
    assert (names, len(held), more) == (["a", "b"], 2, False)
    store.drop("k", ["a"])
    assert store.get("k", 0)[0] == ["b"]
    store.drop("k", None)
    assert store.keys() == []


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "keeper.sock")
    listener = listen(path)
    listener.setblocking(False)
    thread = threading.Thread(target=Keeper(listener).run)
    thread.start()
    yield path
    with fdpass.connect(path) as peer:
        fdpass.call(peer, {"op": "shutdown"})
    thread.join(5)
    listener.close()


def test_keeper_keeps_more_than_a_packet_holds(keeper: str) -> None:
    read_end, write_end = os.pipe()
    with fdpass.connect(keeper) as peer:
        for page in range(2):
            names = [f"n{page}-{number}" for number in range(32)]
            fdpass.call(peer, {"op": "put", "key": "k", "names": names}, [write_end] * 32)
        answer, descriptors = fdpass.call(peer, {"op": "get", "key": "k"})
        assert (len(descriptors), answer["more"]) == (32, True)
        fdpass.close_all(descriptors)
        answer, descriptors = fdpass.call(peer, {"op": "get", "key": "k", "skip": 32})
        assert (answer["names"][0], answer["more"]) == ("n1-0", False)
        os.write(descriptors[0], b"alive")
        assert os.read(read_end, 10) == b"alive"
        fdpass.close_all(descriptors)
        with pytest.raises(fdpass.PeerError, match="1 names for 0 descriptors"):
            fdpass.call(peer, {"op": "put", "key": "k", "names": ["x"]})
        fdpass.call(peer, {"op": "drop", "key": "k"})
        os.close(write_end)
        assert os.read(read_end, 10) == b""  # no copy is left
    os.close(read_end)


def test_a_second_keeper_is_refused(keeper: str) -> None:
    with pytest.raises(FileExistsError):
        listen(keeper)


def test_log_pump_moves_everything_and_indexes_it(loop: Loop, tmp_path: Path) -> None:
    log = LogFile(str(tmp_path))
    read_end, write_end = os.pipe()
    ended: list[bool] = []
    pump = LogPump(loop, read_end, log, rawlog.STDOUT, lambda: None, lambda: ended.append(True))
    os.write(write_end, b"one\n")
    pump.drain()
    assert log.ends == (4, 0)
    os.write(write_end, b"two\n")
    os.close(write_end)
    run_until(loop, lambda: pump.closed)
    assert ended == [True]
    with rawlog.RawLog(str(tmp_path)) as reader:
        assert [line.data for line in rawlog.LineReader(reader).lines()] == [b"one\n", b"two\n"]
    log.close()


def test_log_file_indexes_what_a_killed_writer_left(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path))
    log.close()
    (tmp_path / "stdout").write_bytes(b"moved, not indexed\n")
    os.utime(tmp_path / "stdout", ns=(5, 5))
    with (tmp_path / "index").open("ab") as file:
        file.write(b"torn")
    log = LogFile(str(tmp_path))
    assert log.ends == (19, 0)
    assert log.reader.records(0, 9) == [rawlog.Record(5, rawlog.STDOUT, 19, 0)]
    log.close()


def test_a_full_disk_drops_output_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LogFile(str(tmp_path))
    read_end, write_end = os.pipe()
    os.write(write_end, b"lost")

    def full(*_args: object, **_named: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "splice", full)
    assert log.splice_from(read_end, rawlog.STDOUT) == 4
    assert (log.lost, log.ends) == (4, (0, 0))
    os.close(read_end)
    os.close(write_end)
    log.close()


@given(st.lists(st.binary(min_size=1, max_size=50_000), max_size=6))
def test_input_sink_keeps_order_and_ends(pieces: list[bytes]) -> None:
    loop = Loop()
    read_end, write_end = os.pipe()
    sink = InputSink(loop, write_end, is_console=False)
    for piece in pieces:
        sink.feed(piece)
    sink.end()
    got = bytearray()

    def read(_events: int) -> None:
        data = os.read(read_end, 65536)
        got.extend(data)
        if not data:
            loop.stop()

    loop.watch(read_end, READ, read)
    loop.run()
    assert bytes(got) == b"".join(pieces)
    assert sink.closed
    os.close(read_end)


def test_copy_pump_waits_for_a_full_fifo(loop: Loop, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    target = os.open(tmp_path / "out", os.O_WRONLY | os.O_NONBLOCK)
    source, feed = os.pipe()
    os.set_blocking(feed, False)
    pump = CopyPump(loop, source, target)
    data = os.urandom(60_000) * 5
    sent, got = 0, bytearray()

    def step() -> bool:
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            sent += os.write(feed, data[sent:]) if sent < len(data) else 0
        with contextlib.suppress(BlockingIOError):
            got.extend(os.read(reader, 10_000))
        return len(got) == len(data)

    run_until(loop, step)
    assert bytes(got) == data
    os.close(feed)
    run_until(loop, lambda: pump.closed)
    assert os.read(reader, 1) == b""
    os.close(reader)
    os.close(source)


def test_events_survive_on_disk_and_leave_it_when_taken(loop: Loop, tmp_path: Path) -> None:
    address, path = str(tmp_path / "ttrpc"), str(tmp_path / "events")
    publisher = Publisher(loop, address, "ns", path)
    for pid in (1, 2, 3):
        publisher.publish(TASK_START, {"container_id": "c", "pid": pid})
    with open(path, "ab") as file:
        file.write(struct.pack("<I", 0))  # the first one was acknowledged, then the shim was killed
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen()
        again = Publisher(loop, address, "ns", path)
        assert again.pending == 2
        peer, _ = listener.accept()
        decoder, got = ttrpc.Decoder(), list[int]()

        def serve(_events: int) -> None:
            for frame in decoder.feed(peer.recv(65536)):
                request = ttrpc.decode_request(frame)
                assert request.metadata == {ttrpc.NAMESPACE_KEY: "ns"}
                envelope = FORWARD_REQUEST.decode(request.payload)["envelope"]
                assert (envelope["namespace"], envelope["topic"]) == ("ns", "/tasks/start")
                got.append(TASK_START.decode(envelope["event"]["value"])["pid"])
                peer.sendall(ttrpc.encode_response(frame.stream_id, b""))

        loop.watch(peer.fileno(), READ, serve)
        run_until(loop, lambda: not again.pending)
        loop.unwatch(peer.fileno())
        peer.close()
    assert got == [2, 3]
    assert os.stat(path).st_size == 0


def test_metrics_of_both_cgroup_versions() -> None:
    stats = {
        "cpu": {"usage": {"total": 5000, "kernel": 2000, "user": 3000}},
        "memory": {"usage": {"usage": 7, "limit": 8}, "raw": {"cache": 3, "anon": 4}},
        "pids": {"current": 2},
        "blkio": {"ioServiceBytesRecursive": [{"major": 8, "minor": 0, "op": "Read", "value": 9}]},
    }
    v1 = metrics.METRICS_V1.decode(metrics.METRICS_V1.encode(metrics._v1(stats)))
    assert (v1["cpu"]["usage"]["total"], v1["memory"]["usage"]["usage"], v1["memory"]["cache"]) == (5000, 7, 3)
    assert v1["pids"]["current"] == 2
    v2 = metrics.METRICS_V2.decode(metrics.METRICS_V2.encode(metrics._v2(stats)))
    assert (v2["cpu"]["usage_usec"], v2["memory"]["usage"], v2["memory"]["anon"]) == (5, 7, 4)
    assert v2["io"]["usage"][0]["rbytes"] == 9


def test_command_line_in_gos_style() -> None:
    flags, action = commands._parse(["-namespace", "ns", "--id=c", "-debug", "-publish-binary", "/b", "start"])
    assert (flags, action) == ({"namespace": "ns", "id": "c", "debug": "true", "publish-binary": "/b"}, "start")
    assert commands.run(["-nonsense", "start"]) == 2


def test_start_answers_in_the_form_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAX_SHIM_VERSION", raising=False)
    assert commands._start_answer("unix:///s", False) == b"unix:///s"
    monkeypatch.setenv("MAX_SHIM_VERSION", "2")
    assert commands._start_answer("unix:///s", False) == b'{"version": 2, "address": "unix:///s", "protocol": "ttrpc"}'
