"""Which of a list of mounts the manager makes itself, and what the words in them mean.

Rule: pure functions of the request. A mount's type may begin with transforms (``format/mkdir/overlay``), done from left
to right before it is mounted. Everything up to the last mount that needs the manager (a transform, a type that only it
knows, or all of a temporary one) is its own. Where that one needs no more than its transforms, it is transformed and
left to the client. Source: containerd, docs/mounts.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from oci import errors
from protos.containerd.types_pb2 import ActiveMount, Mount

TRANSFORMS = ("format", "mkdir", "mkfs")
HANDLED = ("loop",)
"""Types that no kernel mounts."""

_ACTION = re.compile(r"\{\{-?\s*(\w+)((?:\s+-?\d+)*)\s*-?\}\}")
_ARGUMENTS = {"source": 1, "target": 1, "mount": 1, "overlay": 2}


class Step(NamedTuple):
    """A mount without its transforms, and those."""

    mount: Mount
    transforms: tuple[str, ...]


class Plan(NamedTuple):
    """``steps`` of which the first ``own`` are made by the manager; the one after them is transformed at most."""

    steps: Sequence[Step]
    own: int


def plan(mounts: Sequence[Mount], *, temporary: bool = False) -> Plan:
    """Raises ``Unimplemented`` when nothing of it needs the manager, which tells clients to mount it all themselves."""
    steps = [_step(mount) for mount in mounts]
    own = -1
    for number, step in enumerate(steps):
        if step.transforms:
            own = number
        if temporary or step.mount.type in HANDLED:
            own = number + 1
    if own < 0:
        raise errors.Unimplemented("none of these mounts needs the mount manager", hint="mount them as they are")
    return Plan(steps, own)


def needs_manager(mounts: Iterable[Mount]) -> bool:
    """Whether ``plan`` would have something to do."""
    return any(mount.type in HANDLED or _step(mount).transforms for mount in mounts)


def _step(mount: Mount) -> Step:
    transforms: list[str] = []
    kind = mount.type
    while (word := kind.partition("/")[0]) in TRANSFORMS and "/" in kind:
        transforms.append(word)
        kind = kind.partition("/")[2]
    bare = Mount()
    bare.CopyFrom(mount)
    bare.type = kind
    return Step(bare, tuple(transforms))


def fill_in(mount: Mount, active: Sequence[ActiveMount]) -> None:
    """The transform ``format``: what ``{{ mount 0 }}`` and its like stand for. Raises ``InvalidArgument``."""
    mount.source = _filled(mount.source, active)
    mount.target = _filled(mount.target, active)
    mount.options[:] = [_filled(option, active) for option in mount.options]


def _filled(text: str, active: Sequence[ActiveMount]) -> str:
    if "{{" not in text:
        return text
    filled = _ACTION.sub(lambda found: _value(found, active), text)
    if "{{" in filled:
        raise errors.InvalidArgument(f"mount: {text!r} is no template", hint="such as {{ mount 0 }}")
    return filled


def _value(found: re.Match[str], active: Sequence[ActiveMount]) -> str:
    name, numbers = found[1], [int(word) for word in found[2].split()]
    if _ARGUMENTS.get(name) != len(numbers):
        raise errors.InvalidArgument(f"mount: {found[0]!r}: known are source, target, mount (N) and overlay (FROM TO)")
    if not all(0 <= number < len(active) for number in numbers):
        raise errors.InvalidArgument(f"mount: {found[0]!r}: there are {len(active)} mounts before this one")
    if name == "overlay":
        first, last = numbers
        step = 1 if first <= last else -1
        return ":".join(active[number].mount_point for number in range(first, last + step, step))
    chosen = active[numbers[0]]
    return {"source": chosen.mount.source, "target": chosen.mount.target, "mount": chosen.mount_point}[name]
