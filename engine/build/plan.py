"""From instructions to stages: which there are, what each is based on, which are needed for the target.

Rule: pure. Base names are expanded with the global scope here; everything inside a stage is expanded when it runs.
Source: docs.docker.com "Dockerfile reference" (FROM, ARG scope, automatic platform ARGs).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import NamedTuple

from engine.build.dockerfile.errors import DockerfileError, Warning
from engine.build.dockerfile.expand import Expander, ExpansionError
from engine.build.dockerfile.instructions import Arg, From, Run, Transfer, Typed, typed
from engine.build.dockerfile.parser import Dockerfile
from oci.errors import InvalidArgument
from oci.image import Platform

SCRATCH = "scratch"
PROXY_ARGS = frozenset(
    name
    for base in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (base, base.lower())
)
"""Usable without ARG; kept out of history and of cache keys."""


class Stage(NamedTuple):
    """One ``FROM`` and what follows; ``base`` is an image unless ``base_stage`` says which stage it is."""

    number: int
    name: str
    base: str
    base_stage: int | None
    platform: str
    source: From
    steps: tuple[Typed, ...]
    needs: frozenset[int]
    """Stages that must be done before some step of this one (its base included)."""

    @property
    def title(self) -> str:
        """How progress shows it: its name, else ``stage-N``."""
        return self.name or f"stage-{self.number}"


class Plan(NamedTuple):
    """Stages in order of the file; ``target`` is what the build makes, ``needed`` all it takes, in order."""

    stages: tuple[Stage, ...]
    target: int
    needed: tuple[int, ...]
    global_args: Mapping[str, str | None]
    escape: str
    warnings: tuple[Warning, ...]
    defaults: Mapping[str, str | None]
    """The global scope as the file alone gives it."""


def platform_args(build: Platform, target: Platform) -> dict[str, str]:
    """The automatic ARGs; global, and in a stage once it names them."""

    def text(platform: Platform) -> str:
        return "/".join(part for part in (platform.os, platform.architecture, platform.variant) if part)

    found: dict[str, str] = {}
    for prefix, platform in (("BUILD", build), ("TARGET", target)):
        found[f"{prefix}PLATFORM"] = text(platform)
        found[f"{prefix}OS"] = platform.os
        found[f"{prefix}ARCH"] = platform.architecture
        found[f"{prefix}VARIANT"] = platform.variant
    return found


def plan(
    dockerfile: Dockerfile, *, build_args: Mapping[str, str], automatic: Mapping[str, str], target: str = ""
) -> Plan:
    """The stages of ``dockerfile``. Raises ``DockerfileError``, ``InvalidArgument`` (no such target)."""
    meanings = [typed(instruction, dockerfile.escape) for instruction in dockerfile.instructions]
    scope: dict[str, str | None] = dict(automatic)
    defaults = dict(scope)
    first = 0
    for first, meaning in enumerate(meanings):  # noqa: B007 - its last value is where the stages begin
        if isinstance(meaning, From):
            break
        if not isinstance(meaning, Arg):
            raise DockerfileError("no build stage in current context: the first is FROM", meaning.source.lines)
        for name, default in meaning.pairs:
            value = build_args.get(name, scope.get(name))
            if default is not None:
                with contextlib.suppress(DockerfileError):
                    defaults[name] = _expanded(default, defaults, dockerfile.escape, meaning)
                value = value if name in build_args else _expanded(default, scope, dockerfile.escape, meaning)
            scope[name] = value
    else:
        raise DockerfileError("no build stage in current context: FROM is missing", meanings[-1].source.lines)
    stages = _stages(meanings[first:], scope, dockerfile.escape)
    chosen = _target(stages, target)
    return Plan(stages, chosen, _needed(stages, chosen), scope, dockerfile.escape, dockerfile.warnings, defaults)


def _expanded(text: str, scope: Mapping[str, str | None], escape: str, meaning: Typed) -> str:
    try:
        return Expander(scope.get, escape).word(text)
    except ExpansionError as error:
        raise DockerfileError(f"failed to process {text!r}: {error}", meaning.source.lines) from None


def _stages(meanings: list[Typed], scope: Mapping[str, str | None], escape: str) -> tuple[Stage, ...]:
    groups: list[tuple[From, list[Typed]]] = []
    for meaning in meanings:
        if isinstance(meaning, From):
            groups.append((meaning, []))
        else:
            groups[-1][1].append(meaning)
    stages: list[Stage] = []
    for index, (source, steps) in enumerate(groups):
        base = _expanded(source.image, scope, escape, source)
        if not base:
            raise DockerfileError(f"base name ({source.image}) should not be blank", source.source.lines)
        earlier = _find(stages, base, numbers=False)
        needs = {earlier.number} if earlier is not None else set()
        for name in _references(steps):
            found = _find(stages, name)
            if name.isdigit() and found is None:
                raise DockerfileError(
                    f"invalid from flag value {name}: no such stage before this one", source.source.lines
                )
            if found is not None:
                needs.add(found.number)
        stages.append(
            Stage(
                number=index,
                name=source.name,
                base=base,
                base_stage=earlier.number if earlier is not None else None,
                platform=_expanded(source.platform, scope, escape, source),
                source=source,
                steps=tuple(steps),
                needs=frozenset(needs),
            )
        )
    return tuple(stages)


def _references(steps: list[Typed]) -> list[str]:
    """Names in ``--from`` of COPY and of RUN's mounts."""
    names: list[str] = []
    for step in steps:
        if isinstance(step, Transfer) and step.from_:
            names.append(step.from_)
        elif isinstance(step, Run):
            names += [mount.from_ for mount in step.mounts if mount.from_]
    return names


def _find(stages: list[Stage] | tuple[Stage, ...], name: str, *, numbers: bool = True) -> Stage | None:
    """The stage called ``name`` (the last of that name), or numbered so."""
    for stage in reversed(stages):
        if stage.name and stage.name == name.lower():
            return stage
    if numbers and name.isdigit() and int(name) < len(stages):
        return stages[int(name)]
    return None


def find_stage(stages: tuple[Stage, ...], name: str, before: int) -> Stage | None:
    """The stage that ``--from=name`` means in stage ``before``; None when it must be an image."""
    return _find(stages[:before], name)


def _target(stages: tuple[Stage, ...], target: str) -> int:
    if not target:
        return len(stages) - 1
    found = _find(stages, target)
    if found is None:
        names = ", ".join(stage.name for stage in stages if stage.name)
        raise InvalidArgument(
            f"target stage {target!r} could not be found", hint=f"stages with a name: {names}" if names else ""
        )
    return found.number


def _needed(stages: tuple[Stage, ...], target: int) -> tuple[int, ...]:
    wanted: set[int] = set()
    pending = [target]
    while pending:
        index = pending.pop()
        if index not in wanted:
            wanted.add(index)
            pending += stages[index].needs
    return tuple(sorted(wanted))
