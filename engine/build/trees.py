"""Where COPY takes files from: one interface over a build context and over the file system of a stage or an image.

Rule: a path of the build is never given to the kernel whole; trees answer component by component, so nothing outside
of a tree can be named. Paths here are relative to the tree's root, without a leading slash; "" is the root.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
import stat
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Protocol

MAX_LINKS = 40


class Node(NamedTuple):
    """One file of a tree. ``mode`` with type bits; ``size`` in bytes; ``mtime`` in ns; ``link`` of symlinks."""

    mode: int
    size: int = 0
    mtime: int = 0
    uid: int = 0
    gid: int = 0
    link: str = ""
    rdev: int = 0

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


class Tree(Protocol):
    """A tree of files. Blocking."""

    def node(self, path: str) -> Node | None:
        """What is at ``path`` itself (links are not followed, neither in parents); None when nothing is."""

    def children(self, path: str) -> list[str]:
        """Names in the directory ``path``, sorted."""

    def open(self, path: str) -> BinaryIO:
        """The content of the file ``path``."""

    def digest(self, path: str) -> str:
        """Hex SHA-256 of the content of the file ``path``."""

    def xattrs(self, path: str) -> dict[str, bytes]:
        """Extended attributes of ``path`` that an image keeps."""


def resolve(tree: Tree, path: str, *, follow_last: bool = True) -> str:
    """``path`` with every link followed, inside the tree; what does not exist stays as it is written."""
    done: list[str] = []
    pending = [part for part in path.split("/") if part not in ("", ".")]
    links = 0
    while pending:
        name = pending.pop(0)
        if name == "..":
            done = done[:-1]
            continue
        here = "/".join([*done, name])
        node = tree.node(here)
        if node is not None and node.is_link and (pending or follow_last) and links < MAX_LINKS:
            links += 1
            if node.link.startswith("/"):
                done = []
            pending = [part for part in node.link.split("/") if part not in ("", ".")] + pending
        else:
            done.append(name)
    return "/".join(done)


def clean(path: str) -> str:
    """A path from a Dockerfile as a tree's path: ``..`` cannot climb over the root."""
    return posixpath.normpath("/" + path).lstrip("/")


def has_wildcard(pattern: str) -> bool:
    """Whether ``pattern`` is more than a name."""
    return any(char in pattern for char in "*?[")


def matches(tree: Tree, pattern: str) -> list[str]:
    """Paths that ``pattern`` means, sorted; ``*`` and ``?`` stay within a component, ``**`` crosses them."""
    cleaned = clean(pattern)
    if not has_wildcard(cleaned):
        found = resolve(tree, cleaned)
        return [cleaned] if tree.node(found) is not None else []
    return sorted(_glob(tree, "", cleaned.split("/")))


def _glob(tree: Tree, base: str, parts: list[str]) -> Iterator[str]:
    head, rest = parts[0], parts[1:]
    directory = resolve(tree, base)
    node = tree.node(directory)
    if node is None or not node.is_dir:
        return
    if head == "**":
        if rest:
            yield from _glob(tree, base, rest)
        for name in tree.children(directory):
            path = f"{base}/{name}" if base else name
            if not rest:
                yield path
            child = tree.node(resolve(tree, path, follow_last=False))
            if child is not None and child.is_dir:
                yield from _glob(tree, path, parts)
        return
    pattern = re.compile(_component(head))
    for name in tree.children(directory):
        if pattern.fullmatch(name):
            path = f"{base}/{name}" if base else name
            if rest:
                yield from _glob(tree, path, rest)
            else:
                yield path


def _component(pattern: str) -> str:
    """Go's ``filepath.Match`` within one component: ``[^a]`` negates where fnmatch has ``[!a]``."""
    return fnmatch.translate(pattern.replace("[^", "[!"))


def walk(tree: Tree, path: str) -> Iterator[tuple[str, Node]]:
    """Everything below the directory ``path``, parents first, names sorted; paths relative to it."""
    pending = [(name, f"{path}/{name}" if path else name) for name in reversed(tree.children(path))]
    while pending:
        relative, full = pending.pop()
        node = tree.node(full)
        if node is None:
            continue
        yield relative, node
        if node.is_dir:
            pending += [(f"{relative}/{name}", f"{full}/{name}") for name in reversed(tree.children(full))]
