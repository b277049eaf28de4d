"""``--squash``: the layers that a build put on its base become one.

Rule: the new layer is what the file system differs in, so that what one step wrote and a later one removed is nowhere
in it. Hard links become files of their own.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator, Sequence

import msgspec

from engine.build.copying import Member
from engine.build.plan import SCRATCH
from engine.build.stagetree import StageTree
from engine.build.trees import Node, walk
from oci.image import History

WHITEOUT = ".wh."


@contextlib.contextmanager
def changes(directories: Sequence[str], below: int) -> Iterator[list[Member]]:
    """The members that make the lowest ``below`` of ``directories`` (topmost first) what all of them are together.

    They can be read while the block lasts. Blocking.
    """
    split = len(directories) - below
    with contextlib.ExitStack() as stack:
        trees = [StageTree(part) for part in (directories, directories[:split], directories[split:])]
        for tree in trees:
            stack.callback(tree.close)
        yield list(_changes(*trees))


def history(before: tuple[History, ...], since: int, parent: str) -> tuple[History, ...]:
    """``before``, where the steps behind the first ``since`` have no layer of their own, and the one that all share."""
    created = before[-1].created if before else ""
    steps = (msgspec.structs.replace(step, empty_layer=True) for step in before[since:])
    return (*before[:since], *steps, History(created=created, comment=f"merge of a build to {parent or SCRATCH}"))


def _changes(whole: StageTree, upper: StageTree, base: StageTree) -> Iterator[Member]:
    yield from _gone("", whole, base)
    for path, node in walk(upper, ""):
        if stat.S_ISSOCK(node.mode):
            continue
        yield Member(path, node, whole, path)
        if node.is_dir:
            yield from _gone(path, whole, base)


def _gone(directory: str, whole: StageTree, base: StageTree) -> Iterator[Member]:
    """Whiteouts for what the base has in ``directory`` and the whole has not."""
    below = base.node(directory)
    if below is None or not below.is_dir:
        return
    for name in base.children(directory):
        path = f"{directory}/{name}" if directory else name
        hidden = base.node(path)
        if hidden is not None and whole.node(path) is None:
            parent = f"{directory}/" if directory else ""
            # The time is that of what is hidden, so that the same build gives the same layer.
            yield Member(f"{parent}{WHITEOUT}{name}", Node(stat.S_IFREG, mtime=hidden.mtime))
