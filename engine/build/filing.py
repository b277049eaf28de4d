"""COPY, ADD and WORKDIR made ready: texts expanded, owners looked up, sources found, members listed.

Rule: every source becomes a ``Tree``; whatever was opened for it is closed when the block ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import stat
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from engine.build import copying
from engine.build.cache import key_of
from engine.build.copying import Inline, Member, Owner, Request
from engine.build.dockerfile.expand import Expander
from engine.build.dockerfile.instructions import Transfer
from engine.build.modes import parse_mode
from engine.build.plan import Stage, find_stage
from engine.build.progress import StageLog
from engine.build.remote import Fetched, fetch, is_git, is_url
from engine.build.stagetree import StageTree
from engine.build.state import State
from engine.build.trees import Node, Tree, clean, matches, resolve
from engine.build.unpacking import unpacked
from engine.build.workshop import Chain
from engine.spec import users
from oci.errors import InvalidArgument

if TYPE_CHECKING:
    from engine.build.solver import Solver


class Found(NamedTuple):
    """The members of one step's layer."""

    members: Sequence[Member]

    def key(self) -> str:
        """What they are, as a key. Blocking."""
        return copying.key(self.members)


class Filer:
    """Lists members for the steps of one stage."""

    def __init__(self, solver: Solver, stage: Stage) -> None:
        self._solver = solver
        self._stage = stage

    @contextlib.asynccontextmanager
    async def members(self, step: Transfer, state: State, chain: Chain, log: StageLog) -> AsyncIterator[Found]:
        """The members that ``step`` puts on ``chain``."""
        async with contextlib.AsyncExitStack() as stack:
            tree = await stack.enter_async_context(self._source(step, state, log))
            rootfs = await stack.enter_async_context(self._solver.workshop.tree(chain))
            yield Found(await self._list(step, state, tree, rootfs, stack, log))

    async def directory(self, state: State, chain: Chain) -> Found:
        """The working directory, if it is missing from ``chain``."""
        async with self._solver.workshop.tree(chain) as rootfs:
            return Found(await asyncio.to_thread(_missing, state.config.working_dir, rootfs))

    async def shortcut(self, step: Transfer, state: State, chain: Chain, log: StageLog) -> str | None:
        """A key that is quickly made: equal ones mean equal members. None when a source must be fetched first."""
        sources = [state.expand(text, step.source) for text in step.sources]
        if step.add and any(is_url(text) or is_git(text) for text in sources):
            return None
        origin = await self._origin(step, state, log)
        if origin is not None:
            content = origin.id
        else:
            await self._solver.context.prepare(sources)
            everything = Request("/x/", tuple(sources), tuple(_inline(step, state)), owner=None)
            if self._solver.context.is_small:
                content = _content(everything, self._solver.context)
            else:
                content = await asyncio.to_thread(_content, everything, self._solver.context)
        options = (step.target, step.chown, step.chmod, *step.exclude)
        return key_of(
            "shortcut", chain.id, content, sources, [state.expand(text, step.source) for text in options],
            state.config.working_dir, f"{step.add} {step.parents} {step.unpack}",
        )  # fmt: skip

    async def _origin(self, step: Transfer, state: State, log: StageLog) -> Chain | None:
        """The stage or image that files come from; None for the context."""
        if not step.from_:
            return None
        stage = find_stage(self._solver.plan.stages, step.from_, self._stage.number)
        if stage is not None:
            return (await self._solver.stage(stage.number)).chain
        name = state.expand(step.from_, step.source)
        return (await self._solver.image(name, "", log)).chain

    @contextlib.asynccontextmanager
    async def _source(self, step: Transfer, state: State, log: StageLog) -> AsyncIterator[Tree]:
        """What files come from, as a tree."""
        origin = await self._origin(step, state, log)
        if origin is None:
            await self._solver.context.prepare(state.expand(text, step.source) for text in step.sources)
            yield self._solver.context
            return
        async with self._solver.workshop.tree(origin) as tree:
            yield tree

    async def _list(
        self, step: Transfer, state: State, tree: Tree, rootfs: Tree, stack: contextlib.AsyncExitStack, log: StageLog
    ) -> list[Member]:
        target = state.absolute(state.expand(step.target, step.source))
        sources = [state.expand(text, step.source) for text in step.sources]
        request = Request(
            target=target,
            sources=tuple(text for text in sources if not (step.add and (is_url(text) or is_git(text)))),
            inline=tuple(_inline(step, state)),
            owner=await asyncio.to_thread(_owner, step, state.expand(step.chown, step.source), rootfs),
            mode=parse_mode(state.expand(step.chmod, step.source)) if step.chmod else None,
            parents=step.parents,
            exclude=tuple(state.expand(text, step.source) for text in step.exclude),
        )
        if not step.add:
            return await asyncio.to_thread(copying.members, request, tree, rootfs)
        return await self._add(step, state, request, sources, tree, rootfs, stack, log)

    async def _add(
        self, step: Transfer, state: State, request: Request, sources: list[str], tree: Tree, rootfs: Tree,
        stack: contextlib.AsyncExitStack, log: StageLog,
    ) -> list[Member]:  # fmt: skip
        """ADD: archives are unpacked, addresses fetched, the rest is copied."""
        found: list[Member] = []
        plain: list[str] = []
        checksum = state.expand(step.checksum, step.source)
        for text in sources:
            if is_git(text) or is_url(text):
                got = stack.enter_context(await fetch(text, checksum, self._spool(), keep_git_dir=step.keep_git_dir))
                found += await asyncio.to_thread(self._fetched, got, request, rootfs, bool(step.unpack))
                continue
            archives = [] if step.unpack is False else await asyncio.to_thread(_archives, tree, text)
            for path in archives:
                spool = stack.enter_context(await asyncio.to_thread(unpacked, tree, path, self._spool()))
                target = _as_directory(request.target)
                inside = request._replace(target=target, sources=(".",), inline=(), as_packed=True)
                found += await asyncio.to_thread(copying.members, inside, spool, rootfs)
            if not archives:
                plain.append(text)
        if plain or request.inline:
            rest = request._replace(sources=tuple(plain))
            found += await asyncio.to_thread(copying.members, rest, tree, rootfs)
        unique = {member.path: member for member in found}
        return list(unique.values())

    def _spool(self) -> str:
        return self._solver.context.sibling()

    @staticmethod
    def _fetched(got: Fetched, request: Request, rootfs: Tree, unpack: bool) -> list[Member]:
        """Members of something that came over the network."""
        if got.is_tree or unpack:
            inside = request._replace(target=_as_directory(request.target), sources=(".",), inline=())
            return copying.members(inside, got.tree, rootfs)
        if request.target.endswith("/") and not got.name:
            raise InvalidArgument(f"cannot determine filename for {got.url}: give ADD a file name as its destination")
        return copying.members(request._replace(sources=(got.name or "download",), inline=()), got.tree, rootfs)


def _content(request: Request, context: Tree) -> str:
    """What a copy takes out of the context, wherever it goes."""
    return copying.key(copying.members(request, context, StageTree([])))


def _as_directory(target: str) -> str:
    return target if target.endswith("/") else f"{target}/"


def _inline(step: Transfer, state: State) -> list[Inline]:
    found = []
    for doc in step.heredocs:
        text = Expander(state.value, state.escape, quotes=False).word(doc.content) if doc.expand else doc.content
        found.append(Inline(doc.name, text.encode()))
    return found


def _owner(step: Transfer, text: str, rootfs: Tree) -> Owner | None:
    """``--chown``: numbers, or names of the file system that is written to. Files of a stage keep theirs without it."""
    if not text:
        return None if step.from_ else Owner(0, 0)
    passwd, group = (_read(rootfs, path) for path in ("etc/passwd", "etc/group"))
    user = users.resolve(text, users.parse_passwd(passwd), users.parse_group(group))
    # A user without a group means the group of the same number, not the user's own.
    return Owner(user.uid, user.gid if ":" in text else _group_of(text, user))


def _group_of(text: str, user: users.User) -> int:
    return user.uid if text.isdigit() else user.gid


def _read(tree: Tree, path: str) -> bytes | None:
    real = resolve(tree, path)
    node = tree.node(real)
    if node is None or not node.is_file:
        return None
    with tree.open(real) as file:
        return file.read(users_limit)


users_limit = 8 << 20


def _archives(tree: Tree, pattern: str) -> list[str]:
    """Files that ``pattern`` means and that are tar archives, packed or not; nothing unless all are."""
    from engine.build.unpacking import is_archive

    paths = [resolve(tree, path) for path in matches(tree, pattern)]
    nodes = [tree.node(path) for path in paths]
    if not paths or not all(node is not None and node.is_file for node in nodes):
        return []
    return paths if all(is_archive(tree, path) for path in paths) else []


def _missing(directory: str, rootfs: Tree) -> list[Member]:
    """Members that make ``directory``, none where it exists."""
    path = resolve(rootfs, clean(directory))
    found: list[Member] = []
    while path:
        node = rootfs.node(path)
        if node is not None and node.is_dir:
            break
        if node is not None:
            raise InvalidArgument(f"WORKDIR {directory}: /{path} exists and is no directory")
        found.append(Member(path, Node(stat.S_IFDIR | copying.DIRECTORY_MODE)))
        path = posixpath.dirname(path)
    return found[::-1]
