"""COPY and ADD: from sources and a destination to the members of a layer, and to the key under which it is cached.

Rule: pure but for reading trees. What a member looks like is decided here, how it is written in ``layers``. Source:
docs.docker.com "Dockerfile reference", COPY and ADD.
"""

from __future__ import annotations

import hashlib
import posixpath
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from engine.build.modes import ModeChange
from engine.build.trees import Node, Tree, clean, has_wildcard, matches, resolve, walk
from oci.errors import InvalidArgument, NotFound
from oci.ignorefile import IgnoreRules

DIRECTORY_MODE = 0o755
INLINE_MODE = 0o644


class Owner(NamedTuple):
    """Numeric owner of what is copied."""

    uid: int
    gid: int


class Inline(NamedTuple):
    """A heredoc as a file."""

    name: str
    content: bytes


class Member(NamedTuple):
    """One member of the layer: ``path`` without a leading slash, and where its bytes come from (or ``content``)."""

    path: str
    node: Node
    tree: Tree | None = None
    source: str = ""
    content: bytes = b""


class Request(NamedTuple):
    """One COPY, expanded. ``target`` is absolute and keeps a trailing slash.

    ``owner`` is that of files and of directories made for them; None means that files keep theirs. With ``as_packed``
    files keep theirs whatever ``owner`` says (archives).
    """

    target: str
    sources: tuple[str, ...]
    inline: tuple[Inline, ...] = ()
    owner: Owner | None = Owner(0, 0)
    as_packed: bool = False
    mode: ModeChange | None = None
    parents: bool = False
    exclude: tuple[str, ...] = ()


def members(request: Request, tree: Tree, rootfs: Tree) -> list[Member]:
    """The layer's members, parents before children. Raises ``NotFound`` for a source that is not there.

    ``rootfs`` is what the layer goes on top of: directories that exist keep what they are.
    """
    found = [(pattern, path) for pattern in request.sources for path in _found(tree, pattern)]
    target = request.target
    many = len(found) + len(request.inline) > 1
    if many and not target.endswith("/"):
        raise InvalidArgument(
            f"when using COPY with more than one source file, the destination must be a directory and end with a /:"
            f" {target}"
        )
    existing = rootfs.node(resolve(rootfs, clean(target)))
    into = target.endswith("/") or request.parents or (existing is not None and existing.is_dir)
    layer = _Layer(request, rootfs)
    for pattern, path in found:
        layer.add(tree, pattern, path, into)
    for inline in request.inline:
        layer.put_inline(inline, into)
    return layer.members


def _found(tree: Tree, pattern: str) -> list[str]:
    paths = matches(tree, pattern.replace("/./", "/"))
    if not paths:
        cleaned = clean(pattern)
        if has_wildcard(pattern):
            raise NotFound(f"no source files were specified: {pattern!r} matches nothing")
        raise NotFound(
            f"file not found in build context or excluded by .dockerignore: stat {cleaned}: file does not exist"
        )
    return paths


class _Layer:
    """Collects members."""

    def __init__(self, request: Request, rootfs: Tree) -> None:
        self._request = request
        self._rootfs = rootfs
        self._made: set[str] = set()
        self._exclude = IgnoreRules(request.exclude)
        self.members: list[Member] = []

    def add(self, tree: Tree, pattern: str, path: str, into: bool) -> None:
        """One source: a file, or what is in a directory."""
        real = resolve(tree, path)
        node = tree.node(real)
        assert node is not None, "found a moment ago"
        if self._request.parents:
            self._add_with_parents(tree, pattern, path, real, node)
        elif node.is_dir:
            base = self._place(self._request.target)
            self._directory(base)
            self._tree(tree, real, base)
        elif not self._exclude.ignored(posixpath.basename(path)):
            name = self._request.target
            name = posixpath.join(name, posixpath.basename(path)) if into else name
            self._file(tree, real, node, self._place(name))

    def put_inline(self, inline: Inline, into: bool) -> None:
        """A heredoc's file."""
        name = posixpath.join(self._request.target, inline.name) if into else self._request.target
        place = self._place(name)
        self._parents(place)
        node = Node(stat.S_IFREG | INLINE_MODE, len(inline.content))
        self.members.append(Member(place, self._dressed(node), content=inline.content))

    def _add_with_parents(self, tree: Tree, pattern: str, path: str, real: str, node: Node) -> None:
        """``--parents``: the path below the pivot ``/./`` (or the whole of it) is kept."""
        pivot, marker, _ = pattern.partition("/./")
        kept = path[len(clean(pivot)) :].lstrip("/") if marker else path
        place = self._place(posixpath.join(self._request.target, kept))
        if node.is_dir:
            self._directory(place)
            self._tree(tree, real, place)
        else:
            self._file(tree, real, node, place)

    def _place(self, target: str) -> str:
        """``target`` in the layer: links that the rootfs has on the way are followed, and one at its end."""
        return resolve(self._rootfs, clean(target))

    def _tree(self, tree: Tree, source: str, base: str) -> None:
        skipped: str | None = None
        for relative, node in walk(tree, source):
            if skipped is not None and relative.startswith(skipped):
                continue
            skipped = None
            if self._exclude.ignored(relative):
                if node.is_dir and not self._exclude.may_hold_exceptions(relative):
                    skipped = f"{relative}/"
                continue
            place = posixpath.join(base, relative)
            path = f"{source}/{relative}" if source else relative
            if node.is_dir:
                # A link to a directory stays a link: the files land where it points.
                landed = resolve(self._rootfs, place)
                self._refuse_file(landed)
                self._made.add(landed)
                self.members.append(Member(landed, self._dressed(node), tree, path))
            else:
                self._file(tree, path, node, posixpath.join(resolve(self._rootfs, posixpath.dirname(place)),
                                                            posixpath.basename(place)))  # fmt: skip

    def _file(self, tree: Tree, path: str, node: Node, place: str) -> None:
        if stat.S_ISSOCK(node.mode):
            return
        existing = self._rootfs.node(place)
        if place in self._made or (existing is not None and existing.is_dir):
            raise InvalidArgument(f"cannot replace to directory /{place} with file")
        self._parents(place)
        self.members.append(Member(place, self._dressed(node), tree, path))

    def _refuse_file(self, place: str) -> None:
        """A directory cannot take the place of anything else."""
        existing = self._rootfs.node(place)
        if existing is not None and not existing.is_dir:
            raise InvalidArgument(f"cannot copy to non-directory: /{place}")

    def _parents(self, place: str) -> None:
        parent = posixpath.dirname(place)
        if parent:
            self._directory(parent)

    def _directory(self, place: str) -> None:
        """Make ``place`` and what is missing above it; what exists is left as it is."""
        if not place or place in self._made:
            return
        self._made.add(place)
        self._refuse_file(place)
        if self._rootfs.node(place) is not None:
            return
        self._parents(place)
        owner = self._request.owner or Owner(0, 0)
        mode = stat.S_IFDIR | DIRECTORY_MODE
        self.members.append(Member(place, Node(mode, uid=owner.uid, gid=owner.gid, mtime=0)))

    def _dressed(self, node: Node) -> Node:
        """``node`` with the owner and mode that were asked for."""
        owner, change = self._request.owner, self._request.mode
        if owner is not None and not self._request.as_packed:
            node = node._replace(uid=owner.uid, gid=owner.gid)
        if change is not None and not node.is_link:
            node = node._replace(mode=stat.S_IFMT(node.mode) | change.apply(node.mode, node.is_dir))
        return node


def key(found: Sequence[Member]) -> str:
    """Hex SHA-256 over what the layer will hold, times left out: equal content gives an equal key."""
    digest = hashlib.sha256()
    for member in found:
        for part in _identity(member):
            encoded = part.encode(errors="surrogateescape")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def _identity(member: Member) -> Iterator[str]:
    node = member.node
    yield member.path
    yield f"{node.mode:o} {node.uid} {node.gid} {node.rdev}"
    yield node.link
    if node.is_file:
        yield hashlib.sha256(member.content).hexdigest() if member.tree is None else member.tree.digest(member.source)
    if member.tree is not None:
        yield from (f"{name}={value.hex()}" for name, value in sorted(member.tree.xattrs(member.source).items()))
