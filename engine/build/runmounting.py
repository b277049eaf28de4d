"""``RUN --mount``: bind, cache, tmpfs and secret mounts as mounts of the step's container.

Rule: nothing of a mount ends in the image; what was made for it on the host (views of stages, secret files, locks of
caches) is gone when the step is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, NamedTuple

from engine.build.cache import key_of
from engine.build.copying import Request, key, members
from engine.build.dockerfile.errors import DockerfileError
from engine.build.dockerfile.instructions import Run
from engine.build.dockerfile.parser import Heredoc
from engine.build.dockerfile.runmounts import RunMount
from engine.build.plan import Stage, find_stage
from engine.build.stagetree import StageTree, copy_out
from engine.build.state import State, script_of, script_path
from engine.build.trees import clean, resolve
from engine.build.workshop import Chain
from engine.containers.config import BindOptions, Mount, TmpfsOptions
from engine.containers.volume_mounts import mount_snapshot, unmount_volume

if TYPE_CHECKING:
    from engine.build.progress import StageLog
    from engine.build.solver import Solver

SECRET_MODE, SECRET_DIRECTORY = 0o400, "/run/secrets"
AGENT_MODE, AGENT_DIRECTORY, AGENT_VARIABLE = 0o600, "/run/buildkit", "SSH_AUTH_SOCK"
DEFAULT_AGENT = "default"
CACHE_MODE = 0o755
SCRIPT_MODE = 0o755


class Mounts(NamedTuple):
    """Mounts of one step, and what of them counts for its cache key."""

    mounts: tuple[Mount, ...]
    keys: tuple[str, ...]
    environment: tuple[str, ...] = ()


class CacheDirectories:
    """Directories of ``type=cache``: they outlive builds and belong to no image."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._locks: dict[str, asyncio.Lock] = {}
        self._busy: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def use(
        self, mount: RunMount, target: str, begins_with: str = "", fill: Callable[[str], None] | None = None
    ) -> AsyncIterator[str]:
        """The directory of ``mount`` for one step.

        ``fill`` puts into a new one what it begins with, which is a part of its name. Blocking.
        """
        parts = (mount.id or target, str(mount.mode), str(mount.uid), str(mount.gid), *filter(None, [begins_with]))
        name = key_of("cache", parts)
        if mount.sharing == "private":
            number = 0
            while f"{name}.{number}" in self._busy:
                number += 1
            name = f"{name}.{number}"
        lock = self._locks.setdefault(name, asyncio.Lock()) if mount.sharing == "locked" else contextlib.nullcontext()
        self._busy[name] = self._busy.get(name, 0) + 1
        try:
            async with lock:
                yield await asyncio.to_thread(self._made, name, mount, fill)
        finally:
            self._busy[name] -= 1
            if not self._busy[name]:
                del self._busy[name]
                self._locks.pop(name, None)

    def _made(self, name: str, mount: RunMount, fill: Callable[[str], None] | None) -> str:
        path = f"{self._root}/{name}"
        if os.path.isdir(path):
            return path
        # Seen by others once it is whole.
        fresh = f"{path}~{secrets.token_hex(4)}"
        os.makedirs(fresh)
        try:
            if fill is not None:
                fill(fresh)
            os.chmod(fresh, mount.mode if mount.mode is not None else CACHE_MODE)
            os.chown(fresh, mount.uid, mount.gid)
            os.rename(fresh, path)
        except OSError:
            # Another step with the same mount may have been faster.
            if not os.path.isdir(path):
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return path

    def clear(self) -> int:
        """Remove those that no step uses; bytes given back. Blocking."""
        freed = 0
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._root):
                if name.partition("~")[0] in self._busy:
                    continue
                freed += _size(f"{self._root}/{name}")
                shutil.rmtree(f"{self._root}/{name}", ignore_errors=True)
        return freed


def _size(root: str) -> int:
    """Bytes on disk of everything below ``root``. Blocking."""
    total = 0
    for directory, _, files in os.walk(root):
        for file in files:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{directory}/{file}").st_blocks * 512
    return total


class RunMounts:
    """Opens the mounts of steps of one build."""

    def __init__(self, solver: Solver) -> None:
        self._solver = solver

    @contextlib.asynccontextmanager
    async def opened(self, step: Run, state: State, stage: Stage, log: StageLog) -> AsyncIterator[Mounts]:
        """The mounts of ``step``. Raises ``DockerfileError`` for what this engine cannot give."""
        found: list[Mount] = []
        keys: list[str] = []
        environment: list[str] = []
        async with contextlib.AsyncExitStack() as stack:
            for mount in step.mounts:
                target = state.absolute(state.expand(mount.target, step.source)) if mount.target else ""
                keys.append(repr(mount))
                if mount.type == "tmpfs":
                    found.append(Mount("tmpfs", target=target, tmpfs_options=TmpfsOptions(size_bytes=mount.size)))
                elif mount.type == "cache":
                    found.append(await self._cache(step, mount, target, state, stage, log, stack))
                elif mount.type == "secret":
                    found += await self._secret(step, mount, target, stack, environment)
                elif mount.type == "ssh":
                    found += await self._agent(step, mount, target, stack, environment)
                else:
                    bind, content = await self._bind(step, mount, target, state, stage, log, stack)
                    found.append(bind)
                    keys.append(content)
            script = script_of(step)
            if script is not None:
                found.append(self._script(script, stack))
                keys.append(script.content)
            yield Mounts(tuple(found), tuple(keys), tuple(environment))

    def _script(self, script: Heredoc, stack: contextlib.AsyncExitStack) -> Mount:
        """The here-document that is a program of its own (it begins with ``#!``)."""
        path = self._scratch(stack)
        with open(path, "w", opener=lambda p, f: os.open(p, f, 0o700)) as file:
            file.write(script.content)
        os.chmod(path, SCRIPT_MODE)
        return Mount("bind", path, script_path(script), True)

    async def _cache(
        self, step: Run, mount: RunMount, target: str, state: State, stage: Stage, log: StageLog,
        stack: contextlib.AsyncExitStack,
    ) -> Mount:  # fmt: skip
        caches = self._solver.caches
        if not mount.from_:
            if mount.source:
                raise DockerfileError("RUN --mount=type=cache: source needs from", step.source.lines)
            path = await stack.enter_async_context(caches.use(mount, target))
            return Mount("bind", path, target.rstrip("/"), mount.read_only)
        chain = await self._chain(step, mount, state, stage, log)
        source = clean(state.expand(mount.source, step.source))
        async with self._solver.workshop.tree(chain) as tree:
            real = resolve(tree, source)
            node = tree.node(real)
            if node is None or not node.is_dir:
                raise DockerfileError(
                    f"RUN --mount=type=cache: {source!r} is no directory of {mount.from_}", step.source.lines
                )
            use = caches.use(mount, target, f"{chain.id} {real}", lambda path: copy_out(tree, real, path))
            path = await stack.enter_async_context(use)
        return Mount("bind", path, target.rstrip("/"), mount.read_only)

    async def _agent(
        self, step: Run, mount: RunMount, target: str, stack: contextlib.AsyncExitStack, environment: list[str]
    ) -> list[Mount]:
        """The client's ssh agent; the step finds it by ``SSH_AUTH_SOCK``."""
        path = await stack.enter_async_context(self._solver.client.agent(mount.id or DEFAULT_AGENT))
        if path is None:
            if mount.required:
                raise DockerfileError("RUN --mount=type=ssh: no agent was forwarded", step.source.lines)
            return []
        os.chmod(path, mount.mode if mount.mode is not None else AGENT_MODE)
        os.chown(path, mount.uid, mount.gid)
        number = sum(entry.startswith(AGENT_VARIABLE) for entry in environment)
        place = target or f"{AGENT_DIRECTORY}/ssh_agent.{number}"
        if not number:
            environment.append(f"{AGENT_VARIABLE}={place}")
        return [Mount("bind", path, place)]

    async def _secret(
        self, step: Run, mount: RunMount, target: str, stack: contextlib.AsyncExitStack, environment: list[str]
    ) -> list[Mount]:
        name = mount.id or os.path.basename(mount.source or mount.target)
        value = await self._solver.client.secret(name)
        if value is None:
            if mount.required:
                raise DockerfileError(f"RUN --mount=type=secret: secret {name}: not found", step.source.lines)
            return []
        if mount.env:
            environment.append(f"{mount.env}={value.decode(errors='surrogateescape')}")
            if not target:
                return []
        path = self._scratch(stack)
        with open(path, "wb", opener=lambda p, f: os.open(p, f, 0o600)) as file:
            file.write(value)
        os.chmod(path, mount.mode if mount.mode is not None else SECRET_MODE)
        os.chown(path, mount.uid, mount.gid)
        return [Mount("bind", path, target or f"{SECRET_DIRECTORY}/{name}", True)]

    def _scratch(self, stack: contextlib.AsyncExitStack) -> str:
        """A name in the build's run directory, removed with the step."""
        path = f"{self._solver.run_directory}/{secrets.token_hex(8)}"
        os.makedirs(self._solver.run_directory, mode=0o700, exist_ok=True)

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                if os.path.isdir(path):
                    os.rmdir(path)
                else:
                    os.unlink(path)

        stack.callback(remove)
        return path

    async def _bind(
        self, step: Run, mount: RunMount, target: str, state: State, stage: Stage, log: StageLog,
        stack: contextlib.AsyncExitStack,
    ) -> tuple[Mount, str]:  # fmt: skip
        chain = await self._chain(step, mount, state, stage, log)
        source = clean(state.expand(mount.source, step.source)) if mount.source else ""
        async with self._solver.workshop.tree(chain) as tree:
            real = resolve(tree, source)
            if tree.node(real) is None:
                raise DockerfileError(
                    f"RUN --mount: {source!r} is not in {mount.from_ or 'the context'}", step.source.lines
                )
            content = await asyncio.to_thread(_content_key, tree, real)
        mounts = await stack.enter_async_context(self._solver.workshop.view(chain, writable=not mount.read_only))
        place = self._scratch(stack)
        os.mkdir(place, 0o700)
        mount_snapshot(mounts[0], place)
        stack.callback(unmount_volume, place)
        options = BindOptions(propagation="rprivate")
        return Mount(
            "bind", f"{place}/{real}".rstrip("/"), target.rstrip("/"), mount.read_only, bind_options=options
        ), content

    async def _chain(self, step: Run, mount: RunMount, state: State, stage: Stage, log: StageLog) -> Chain:
        """The file system that a bind mount shows."""
        solver = self._solver
        if not mount.from_:
            return await solver.context_chain()
        other = find_stage(solver.plan.stages, mount.from_, stage.number)
        if other is not None:
            return (await solver.stage(other.number)).chain
        return (await solver.image(state.expand(mount.from_, step.source), "", log)).chain


def _content_key(tree: StageTree, path: str) -> str:
    return key_of("bind", key(members(Request("/x/", (path or ".",), owner=None), tree, StageTree([]))))
