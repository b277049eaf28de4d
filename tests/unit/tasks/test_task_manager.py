"""The task table against a fake shim that speaks real ttrpc on a unix socket."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from containerd_py.checkpoints import Restore
from containerd_py.interfaces import ContainerStore, Scope
from containerd_py.services.tasks import TasksService
from containerd_py.tasks import foreign
from containerd_py.tasks.bundle import BundleStore, ExitRecord
from containerd_py.tasks.launcher import Launched
from containerd_py.tasks.manager import TaskManager
from containerd_py.tasks.recovery import Recovery, timestamp
from oci import errors
from protos import ttrpc
from protos.containerd import (
    containers_pb2,
    event_types_pb2,
    runc_options_pb2,
    shim_v2_pb2,
    task_types_pb2,
    tasks_pb2,
    types_pb2,
)

NS = "default"
SPEC = b'{"ociVersion":"1.1.0"}'


class FakeShim:
    """One container's shim. ``die`` is its kill -9; a successor made with ``container`` finds it again."""

    def __init__(self, path: str, container: dict[str, Any] | None = None) -> None:
        self.path = path
        self.container = container
        self.calls: list[str] = []
        self.connections: set[asyncio.StreamWriter] = set()
        self.exited = asyncio.Event()
        self.refuse: dict[str, tuple[int, str]] = {}
        self.hang: set[str] = set()
        self.server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.server = await asyncio.start_unix_server(self._serve, self.path)

    def die(self) -> None:
        assert self.server is not None
        self.server.close()
        for writer in tuple(self.connections):
            writer.transport.abort()
        for task in tuple(self._running):
            task.cancel()

    def exit(self, status: int) -> None:
        assert self.container is not None
        self.container.update(status=task_types_pb2.STOPPED, exit_status=status, exited_at=1_000_000_007)
        self.exited.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = ttrpc.Decoder()
        self.connections.add(writer)
        while data := await reader.read(65536):
            for frame in decoder.feed(data):
                running = asyncio.ensure_future(self._answer(frame, writer))
                self._running.add(running)
                running.add_done_callback(self._running.discard)
        self.connections.discard(writer)

    async def _answer(self, frame: ttrpc.Frame, writer: asyncio.StreamWriter) -> None:
        request = ttrpc.decode_request(frame)
        assert request.service == "containerd.task.v2.Task"
        assert request.metadata[ttrpc.NAMESPACE_KEY] == NS
        self.calls.append(request.method)
        if request.method in self.hang:
            await asyncio.Event().wait()
        if request.method in self.refuse:
            writer.write(ttrpc.encode_error(frame.stream_id, *self.refuse[request.method]))
            return
        answer = await self.handle(request.method, request.payload)
        if answer is None:
            writer.write(ttrpc.encode_error(frame.stream_id, errors.Code.NOT_FOUND, "no such process"))
        else:
            writer.write(ttrpc.encode_response(frame.stream_id, answer.SerializeToString()))
        if request.method == "Shutdown" and self.container is None:
            self.die()

    async def handle(self, method: str, payload: bytes) -> Message | None:
        if method == "Create":
            created = shim_v2_pb2.CreateTaskRequest.FromString(payload)
            Path(created.bundle, "options.json").write_text("{}")
            Path(created.bundle, "init.pid").write_text("4194000")
            Path(created.bundle, "processes").mkdir()
            Path(created.bundle, "processes", "init").write_text("[]")
            self.container = {"status": task_types_pb2.CREATED, "bundle": created.bundle, "request": created}
            return shim_v2_pb2.CreateTaskResponse(pid=4194000)
        if method == "Shutdown":
            return Empty()
        if method == "Connect" and self.container is None:
            return shim_v2_pb2.ConnectResponse(shim_pid=1)
        if self.container is None:
            return None
        if method == "Wait":
            await self.exited.wait()
            return shim_v2_pb2.WaitResponse(
                exit_status=self.container["exit_status"], exited_at=timestamp(self.container["exited_at"])
            )
        return self.simple(method, self.container)

    def simple(self, method: str, container: dict[str, Any]) -> Message:
        match method:
            case "Start":
                container["status"] = task_types_pb2.RUNNING
                return shim_v2_pb2.StartResponse(pid=4194000)
            case "State":
                return shim_v2_pb2.StateResponse(
                    pid=4194000, status=container["status"], exit_status=container.get("exit_status", 0)
                )
            case "Connect":
                return shim_v2_pb2.ConnectResponse(shim_pid=1, task_pid=4194000)
            case "Kill":
                if not self.exited.is_set():
                    self.exit(137)
            case "Delete":
                self.container = None
                return shim_v2_pb2.DeleteResponse(pid=4194000, exit_status=container.get("exit_status", 0))
        return Empty()


class FakeZygote:
    """Starts fake shims; the containers of dead ones stay in ``containers``."""

    def __init__(self) -> None:
        self.shims: dict[str, FakeShim] = {}
        self.restores = 0
        self.broken = False
        self.statuses: dict[int, int] = {}
        self.dropped: list[str] = []
        self.prepare: Callable[[FakeShim], None] = lambda shim: None

    async def start(self, namespace: str, id: str, bundle: str, socket_path: str) -> Launched:
        shim = self.shims[id] = FakeShim(socket_path)
        self.prepare(shim)
        await shim.listen()
        return Launched(f"unix://{socket_path}", 2, 4194001)

    async def restore(self, namespace: str, id: str, bundle: str, socket_path: str) -> Launched:
        self.restores += 1
        if self.broken:
            raise errors.Internal("the zygote has a bad day")
        old = self.shims.get(id)
        shim = self.shims[id] = FakeShim(socket_path, old.container if old else None)
        if old is not None and old.exited.is_set():
            shim.exited.set()
        await shim.listen()
        return Launched(f"unix://{socket_path}", 2, 4194002)

    async def reaped(self, pid: int) -> int | None:
        return self.statuses.get(pid)

    async def drop(self, namespace: str, id: str) -> None:
        self.dropped.append(id)


class FakeContainers:
    def get(self, scope: Scope, id: str) -> containers_pb2.Container:
        if id == "missing":
            raise errors.NotFound(f'container "{id}" in namespace "{scope.namespace}": not found')
        container = containers_pb2.Container(id=id)
        container.runtime.name = "io.containerd.py.v2"
        container.spec.value = SPEC
        return container


class FakeCheckpoints:
    """Checkpoints whose files are always found."""

    async def store(
        self, where: Scope, id: str, dump: Callable[[str], Awaitable[object]]
    ) -> list[types_pb2.Descriptor]:
        await dump("/of/the/store")
        return [types_pb2.Descriptor(media_type="files"), types_pb2.Descriptor(media_type="spec")]

    def wanted(self, where: Scope, request: tasks_pb2.CreateTaskRequest) -> Restore | None:
        async def unpacked(directory: str) -> str:
            await asyncio.to_thread(os.mkdir, directory)
            return directory

        return unpacked if request.HasField("checkpoint") else None


class World:
    """A manager with everything around it; ``again`` is the daemon's next life on the same directory."""

    def __init__(self, state: Path, zygote: FakeZygote | None = None) -> None:
        self.state = state
        (state / "s").mkdir(exist_ok=True)
        self.zygote = zygote or FakeZygote()
        self.events: list[tuple[str, str, event_types_pb2.TaskExit]] = []
        self.bundles = BundleStore(str(state))
        daemon = foreign.Daemon("/none", "/none.ttrpc", "containerd-py", False)
        recovery = Recovery(
            self.bundles, self.zygote, daemon, lambda *event: self.events.append(event), lambda pid: None
        )
        containers: Any = FakeContainers()
        store: ContainerStore = containers
        self.manager = TaskManager(self.bundles, store, self.zygote, recovery, daemon)
        fakes: Any = FakeCheckpoints()
        self.service = TasksService(self.manager, fakes)

    def again(self) -> World:
        self.manager.close()
        return World(self.state, self.zygote)

    async def create(self, id: str) -> FakeShim:
        await self.manager.create(NS, tasks_pb2.CreateTaskRequest(container_id=id, stdout="/x"))
        return self.zygote.shims[id]

    def path(self, id: str) -> Path:
        return Path(self.bundles.bundle(NS, id).path)

    async def status(self, id: str) -> int:
        process = (await self.service.Get(tasks_pb2.GetRequest(container_id=id), context())).process
        return process.status

    async def wait(self, id: str) -> int:
        return (await self.service.Wait(tasks_pb2.WaitRequest(container_id=id), context())).exit_status


class FakeContext:
    """As much of a gRPC context as the service needs; an abort raises what it was given."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("containerd-namespace", NS),)

    async def abort(self, code: Any, details: str) -> None:
        raise errors.from_code(code.value[0], details)


def context() -> Any:
    return FakeContext()


def in_loop(test: Callable[[World], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """Run an async test with a fresh world in ``tmp_path`` of a short name (socket paths are limited)."""

    def run(tmp_path: Path) -> None:
        async def body() -> None:
            await asyncio.wait_for(test(World(tmp_path)), 20)

        asyncio.run(body())

    return run


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("condition not reached")


def test_life_of_a_task(tmp_path: Path) -> None:
    @in_loop
    async def life(world: World) -> None:
        shim = await world.create("c1")
        assert (world.path("c1") / "config.json").read_bytes() == SPEC
        assert (world.path("c1") / "rootfs").is_dir()
        assert shim.container is not None
        assert shim.container["request"].stdout == "/x"
        assert await world.status("c1") == task_types_pb2.CREATED
        await world.service.Start(tasks_pb2.StartRequest(container_id="c1"), context())
        waiter = asyncio.ensure_future(world.wait("c1"))
        await asyncio.sleep(0.01)
        shim.exit(7)
        assert await waiter == 7
        assert await world.wait("c1") == 7, "the status is kept until Delete"
        deleted = await world.service.Delete(tasks_pb2.DeleteTaskRequest(container_id="c1"), context())
        assert deleted.exit_status == 7
        assert not world.path("c1").exists()
        assert world.zygote.dropped == ["c1"]
        assert os.listdir(world.state / "s") == []
        for call in (world.status("c1"), world.wait("c1")):
            with pytest.raises(errors.NotFound):
                await call

    life(tmp_path)


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    @in_loop
    async def refusals(world: World) -> None:
        with pytest.raises(errors.NotFound):
            await world.create("missing")
        with pytest.raises(errors.InvalidArgument):
            await world.create("../../etc")
        world.zygote.prepare = lambda shim: shim.refuse.update({"Create": (2, 'exec: "x": not found')})
        with pytest.raises(errors.GantryError, match='exec: "x": not found'):
            await world.create("c1")
        assert not world.path("c1").exists()
        assert os.listdir(world.state / "s") == []
        world.zygote.prepare = lambda shim: None
        await world.create("c1")
        with pytest.raises(errors.AlreadyExists):
            await world.create("c1")

    refusals(tmp_path)


def test_killed_shim_is_replaced_and_waits_go_on(tmp_path: Path) -> None:
    @in_loop
    async def replaced(world: World) -> None:
        shim = await world.create("c1")
        await world.service.Start(tasks_pb2.StartRequest(container_id="c1"), context())
        waiter = asyncio.ensure_future(world.wait("c1"))
        await asyncio.sleep(0.01)
        shim.die()
        await until(lambda: world.zygote.shims["c1"] is not shim)
        assert await world.status("c1") == task_types_pb2.RUNNING
        world.zygote.shims["c1"].exit(3)
        assert await waiter == 3
        assert world.zygote.restores == 1
        assert world.events == []

    replaced(tmp_path)


@pytest.mark.parametrize("was_done", [False, True])
def test_start_goes_on_with_the_next_shim(tmp_path: Path, was_done: bool) -> None:
    """A shim killed during Start: the container is started once, whether the kill came before or after."""

    @in_loop
    async def resumed(world: World) -> None:
        shim = await world.create("c1")
        shim.hang.add("Start")
        start = asyncio.ensure_future(world.service.Start(tasks_pb2.StartRequest(container_id="c1"), context()))
        await until(lambda: "Start" in shim.calls)
        if was_done:
            assert shim.container is not None
            shim.container["status"] = task_types_pb2.RUNNING
        shim.die()
        assert (await start).pid == 4194000
        assert world.zygote.shims["c1"].calls.count("Start") == (0 if was_done else 1)
        assert await world.status("c1") == task_types_pb2.RUNNING

    resumed(tmp_path)


def test_create_is_made_again_when_its_shim_is_killed(tmp_path: Path) -> None:
    @in_loop
    async def again(world: World) -> None:
        shims: list[FakeShim] = []

        def prepare(shim: FakeShim) -> None:
            shims.append(shim)
            if len(shims) == 1:
                shim.hang.add("Create")

        world.zygote.prepare = prepare
        create = asyncio.ensure_future(world.create("c1"))
        await until(lambda: bool(shims) and "Create" in shims[0].calls)
        shims[0].die()
        assert await create is shims[1]
        assert await world.status("c1") == task_types_pb2.CREATED

    again(tmp_path)


@pytest.mark.parametrize(("witness", "expected"), [("record", 5), ("zygote", 9), ("nobody", 137)])
def test_container_dead_and_no_shim_to_be_had(tmp_path: Path, witness: str, expected: int) -> None:
    @in_loop
    async def concluded(world: World) -> None:
        shim = await world.create("c1")
        world.zygote.broken = True
        if witness == "record":
            world.bundles.bundle(NS, "c1").write_exit_record(ExitRecord(4194000, 5, 1_000_000_000))
        elif witness == "zygote":
            world.zygote.statuses[4194000] = 9 << 8
        waiter = asyncio.ensure_future(world.wait("c1"))
        await asyncio.sleep(0.01)
        shim.die()
        assert await waiter == expected
        assert await world.status("c1") == task_types_pb2.STOPPED
        assert [(topic, event.exit_status) for _, topic, event in world.events] == [("/tasks/exit", expected)]
        with pytest.raises(errors.NotFound):
            await world.service.Kill(tasks_pb2.KillRequest(container_id="c1", signal=9), context())

    concluded(tmp_path)


def test_next_life_finds_every_task(tmp_path: Path) -> None:
    @in_loop
    async def found(world: World) -> None:
        running = await world.create("running")
        dead = await world.create("dead-shim")
        half = world.bundles.bundle(NS, "half-made")
        half.create(SPEC)
        (world.state / "s" / "stray").touch()
        world.manager.close()
        dead.die()
        later = world.again()
        await later.manager.load()
        assert {task.id for task in later.manager.list(NS)} == {"running", "dead-shim"}
        assert world.zygote.restores == 1
        assert not Path(half.path).exists()
        assert not (world.state / "s" / "stray").exists()
        listed = await later.service.List(tasks_pb2.ListTasksRequest(), context())
        assert {process.id for process in listed.tasks} == {"running", "dead-shim"}
        running.exit(4)
        assert await later.wait("running") == 4

    found(tmp_path)


def test_shim_without_its_task_is_swept(tmp_path: Path) -> None:
    @in_loop
    async def swept(world: World) -> None:
        bundle = world.bundles.bundle(NS, "c1")
        bundle.create(SPEC)
        await world.zygote.start(NS, "c1", bundle.path, world.bundles.shim_socket(NS, "c1"))
        await world.manager.load()
        assert world.manager.list(NS) == []
        assert "Shutdown" in world.zygote.shims["c1"].calls
        assert not Path(bundle.path).exists()

    swept(tmp_path)


def test_many_calls_on_one_connection(tmp_path: Path) -> None:
    @in_loop
    async def many(world: World) -> None:
        shim = await world.create("c1")
        calls: list[Awaitable[int]] = [world.status("c1") for _ in range(200)]
        assert set(await asyncio.gather(*calls)) == {task_types_pb2.CREATED}
        assert len(shim.connections) == 1

    many(tmp_path)


def test_cancelled_wait_does_not_disturb(tmp_path: Path) -> None:
    @in_loop
    async def cancelled(world: World) -> None:
        shim = await world.create("c1")
        waiter = asyncio.ensure_future(world.wait("c1"))
        await until(lambda: "Wait" in shim.calls)
        waiter.cancel()
        await asyncio.sleep(0)
        shim.exit(1)
        assert await world.wait("c1") == 1

    cancelled(tmp_path)


@in_loop
async def test_a_create_and_a_delete_go_on_without_who_asked_for_them(world: World) -> None:
    """Else a client that hangs up would leave a shim that nobody knows, or a task without a container."""
    world.zygote.prepare = lambda shim: shim.hang.add("Create")
    creating = asyncio.ensure_future(world.create("a"))
    await until(lambda: "a" in world.zygote.shims and "Create" in world.zygote.shims["a"].calls)
    creating.cancel()
    await asyncio.sleep(0)
    assert world.path("a").exists()
    with pytest.raises(errors.AlreadyExists):
        await world.create("a")
    world.zygote.prepare = lambda shim: None
    world.zygote.shims["a"].die()
    deleting = asyncio.ensure_future(world.manager.delete(NS, "a"))
    await until(lambda: "Delete" in world.zygote.shims["a"].calls)
    deleting.cancel()
    await until(lambda: not world.path("a").exists())
    assert (world.manager.list(NS), world.zygote.shims["a"].container) == ([], None)
    await world.create("a")


@in_loop
async def test_two_who_delete_share_one_deletion(world: World) -> None:
    shim = await world.create("a")
    answers = await asyncio.gather(world.manager.delete(NS, "a"), world.manager.delete(NS, "a"))
    assert answers[0] == answers[1]
    assert shim.calls.count("Delete") == 1


@in_loop
async def test_a_container_that_a_new_shim_does_not_find_is_swept(world: World) -> None:
    shim = await world.create("a")
    waiting = asyncio.ensure_future(world.wait("a"))
    await until(lambda: "Wait" in shim.calls)
    shim.container = None
    shim.die()
    await until(lambda: not world.path("a").exists())
    assert world.manager.list(NS) == []
    with pytest.raises(errors.NotFound):
        await waiting


def test_what_cannot_be_undone_is_swept_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @in_loop
    async def swept(world: World) -> None:
        def bad(shim: FakeShim) -> None:
            shim.refuse["Create"] = shim.refuse["Delete"] = (errors.Code.INTERNAL, "not now")

        world.zygote.prepare = bad
        monkeypatch.setattr(foreign, "OWN_PROGRAM", ("/bin/false",))
        with pytest.raises(errors.Internal):
            await world.create("a")
        assert world.path("a").exists()
        world.zygote.prepare = lambda shim: None
        world.zygote.shims["a"].refuse.clear()
        await world.create("a")
        assert await world.status("a") == task_types_pb2.CREATED

    swept(tmp_path)


@in_loop
async def test_the_remains_of_a_removal_that_was_killed_go(world: World) -> None:
    await world.create("a")
    grave = world.path("a").with_name(".a")
    world.path("a").rename(grave)
    (grave / "options.json").unlink()
    later = world.again()
    await later.manager.load()
    assert not grave.exists()
    await later.create("a")


@in_loop
async def test_a_task_whose_shim_cannot_tell_is_listed(world: World) -> None:
    shim = await world.create("a")
    shim.refuse["State"] = (errors.Code.UNAVAILABLE, "later")
    answer = await world.service.List(tasks_pb2.ListTasksRequest(), context())
    assert [(task.container_id, task.status) for task in answer.tasks] == [("a", task_types_pb2.UNKNOWN)]


def test_a_bundle_takes_its_shim_along(tmp_path: Path) -> None:
    """Whether the shim has locked the bundle before or after the bundle's name goes."""
    bundle = BundleStore(str(tmp_path)).bundle(NS, "a")
    program = "import sys; from shim.bundle import claim; claim(sys.argv[1]); print('claimed', flush=True); input()"
    command = [sys.executable, "-c", program, bundle.path]
    bundle.create(SPEC)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as early:
        assert early.stdout is not None
        assert early.stdout.readline() == "claimed\n"
        bundle.remove()
        assert early.wait(10) == -signal.SIGKILL
    late = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert "FileNotFoundError" in late.stderr
    assert list(Path(bundle.path).parent.iterdir()) == []


@in_loop
async def test_a_checkpoint_is_in_the_bundle_when_the_shim_creates(world: World) -> None:
    request = tasks_pb2.CreateTaskRequest(container_id="c", checkpoint=types_pb2.Descriptor(media_type="files"))
    await world.service.Create(request, context())
    container = world.zygote.shims["c"].container
    assert container is not None
    assert container["request"].checkpoint == str(world.path("c") / "checkpoint")
    assert (world.path("c") / "checkpoint").is_dir()
    world.zygote.shims["c"].exit(0)
    await world.service.Delete(tasks_pb2.DeleteTaskRequest(container_id="c"), context())
    assert not world.path("c").exists()


@in_loop
async def test_checkpoints_go_into_a_directory_or_the_store(world: World) -> None:
    shim = await world.create("c")
    answer = await world.service.Checkpoint(tasks_pb2.CheckpointTaskRequest(container_id="c"), context())
    assert [one.media_type for one in answer.descriptors] == ["files", "spec"]
    options = runc_options_pb2.CheckpointOptions(image_path="/some/where")
    named = tasks_pb2.CheckpointTaskRequest(container_id="c")
    named.options.Pack(options)
    assert not (await world.service.Checkpoint(named, context())).descriptors
    assert shim.calls.count("Checkpoint") == 2
