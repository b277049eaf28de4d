"""The metadata database: what its rules promise to stores."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from containerd_py.interfaces import Scope
from containerd_py.metadata.database import Database, pack_labels, unpack_labels
from oci import errors

NAMES = "SELECT name FROM namespaces ORDER BY name"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(str(tmp_path / "meta.db"))
    yield opened
    opened.close()


def test_a_failed_transaction_leaves_nothing_and_calls_nobody(database: Database) -> None:
    told: list[str] = []
    with pytest.raises(ValueError, match="no"), database.transaction() as tx:
        tx.know("a")
        tx.after(lambda: told.append("a"))
        raise ValueError("no")
    assert database.rows(NAMES) == [] and told == []
    assert "a" not in database.known_namespaces
    with database.transaction() as tx:
        tx.know("b")
        tx.after(lambda: told.append("b"))
    assert told == ["b"]


def test_an_inner_transaction_is_part_of_the_outer_one(database: Database) -> None:
    told: list[str] = []
    with pytest.raises(ValueError, match="late"), database.transaction() as outer:
        with database.transaction() as inner:
            inner.know("a")
            inner.after(lambda: told.append("a"))
        assert told == []
        outer.know("b")
        raise ValueError("late")
    assert database.rows(NAMES) == [] and told == []


def test_threads_take_turns_and_see_only_whole_transactions(database: Database) -> None:
    def write(start: int) -> None:
        for number in range(start, start + 50):
            with database.transaction() as tx:
                tx.know(f"n{number}-a")
                tx.know(f"n{number}-b")

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert len(database.rows(NAMES)) % 2 == 0
    for thread in threads:
        thread.join()
    assert len(database.rows(NAMES)) == 300


def test_a_claim_needs_its_lease(database: Database) -> None:
    with pytest.raises(errors.NotFound), database.transaction() as tx:
        tx.claim(Scope("ns", "missing"), "content", "sha256:1")
    assert database.rows(NAMES) == []
    with database.transaction() as tx:
        tx.execute("INSERT INTO leases VALUES ('ns', 'l', '{}', 1)")
        tx.claim(Scope("ns", "l"), "content", "sha256:1")
        tx.claim(Scope("ns", "l"), "content", "sha256:1")
    assert database.rows("SELECT * FROM lease_resources") == [("ns", "l", "content", "sha256:1")]
    with database.transaction() as tx:
        tx.execute("DELETE FROM leases")
    assert database.rows("SELECT * FROM lease_resources") == []


def test_a_snapshot_reader_sees_one_moment(database: Database) -> None:
    with database.snapshot() as moment:
        assert moment.execute(NAMES).fetchall() == []
        with database.transaction() as tx:
            tx.know("a")
        assert moment.execute(NAMES).fetchall() == []
    assert database.rows(NAMES) == [("a",)]


def test_waiting_for_the_disk_is_shared(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    real = os.fdatasync

    def counted(descriptor: int) -> None:
        syncs.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)

    async def write(number: int) -> None:
        with database.transaction() as tx:
            tx.know(f"n{number}")
        await database.flushed()

    async def many() -> None:
        await asyncio.gather(*(write(number) for number in range(100)))
        await database.flushed()

    asyncio.run(many())
    assert 1 <= len(syncs) <= 3


def test_the_disk_refusing_reaches_everybody_who_waits(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with database.transaction() as tx:
        tx.know("a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)

        async def wait() -> list[BaseException | None]:
            return await asyncio.gather(*(database.flushed() for _ in range(3)), return_exceptions=True)

        assert all(isinstance(error, OSError) for error in asyncio.run(wait()))
    database.flush()


def test_what_was_committed_survives_a_kill(tmp_path: Path) -> None:
    path = str(tmp_path / "meta.db")
    program = f"""
import os, signal
from containerd_py.metadata.database import Database
database = Database({path!r})
with database.transaction() as tx:
    tx.know("whole")
tx = database.transaction().__enter__()
tx.know("half")
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], timeout=30, check=False)
    assert ended.returncode == -signal.SIGKILL
    database = Database(path)
    assert database.rows(NAMES) == [("whole",)]
    database.close()


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as one" * 100])
def test_a_broken_file_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "meta.db"
    path.write_bytes(content)
    with pytest.raises(errors.FailedPrecondition, match=r"meta\.db cannot be used"):
        Database(str(path))


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "meta.db")
    database = Database(path)
    database.connection.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(errors.FailedPrecondition, match="newer version"):
        Database(path)


def test_the_file_is_for_its_owner_only(database: Database) -> None:
    for suffix in ("", "-wal", "-shm"):
        assert os.stat(database.path + suffix).st_mode & 0o777 == 0o600


def test_labels_survive_and_empty_values_do_not() -> None:
    labels = {"b": "2", "a": "1", "ü": "ö"}
    assert unpack_labels(pack_labels(labels)) == labels
    assert unpack_labels(pack_labels({"a": ""})) == {}


def test_a_flush_that_has_just_ended_holds_nobody_up(database: Database) -> None:
    """Whoever commits between the end of a flush and its callback starts another one, and does not spin."""

    async def commit_behind(flush: asyncio.Future[None]) -> None:
        while not flush.done():  # noqa: ASYNC110 -- an event would come too late: the race is what is tested
            await asyncio.sleep(0)
        database.committed()
        await database.flushed()

    async def scenario() -> None:
        database.committed()
        first = asyncio.ensure_future(database.flushed())
        while database._flushing is None:  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0)
        # Done futures are looked at before their callbacks run: polling tasks are ahead of them in the loop's queue.
        await asyncio.wait_for(asyncio.gather(first, *(commit_behind(database._flushing) for _ in range(8))), 10)

    asyncio.run(asyncio.wait_for(scenario(), 15))
