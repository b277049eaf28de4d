"""What each instruction means: flags known and complete, arguments counted, nothing expanded yet.

Rule: everything that can be refused without running anything is refused here, with the line. Source: docs.docker.com
"Dockerfile reference".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from engine.build.dockerfile.errors import DockerfileError
from engine.build.dockerfile.parser import Heredoc, Instruction, split_words
from engine.build.dockerfile.runmounts import RunMount, parse_mount

SECOND = 10**9
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*")
NETWORKS = ("default", "none", "host")
SECURITY = ("sandbox", "insecure")


class From(NamedTuple):
    """``FROM [--platform=P] IMAGE [AS NAME]``; ``image`` and ``platform`` may hold variables of the global scope."""

    source: Instruction
    image: str
    name: str
    platform: str


class Run(NamedTuple):
    """A command: ``words`` when given as JSON, else ``text`` for the shell (heredocs in ``source``)."""

    source: Instruction
    text: str
    words: tuple[str, ...] | None
    mounts: tuple[RunMount, ...]
    network: str
    security: str

    @property
    def heredocs(self) -> tuple[Heredoc, ...]:
        return self.source.heredocs


class Transfer(NamedTuple):
    """``COPY`` and ``ADD``; ``add`` tells which. Fields hold text with variables; ``heredocs`` are sources too."""

    source: Instruction
    add: bool
    sources: tuple[str, ...]
    target: str
    from_: str
    chown: str
    chmod: str
    link: bool
    parents: bool
    exclude: tuple[str, ...]
    checksum: str
    keep_git_dir: bool
    unpack: bool | None
    heredocs: tuple[Heredoc, ...]


class Command(NamedTuple):
    """``CMD`` and ``ENTRYPOINT``: ``words`` (JSON) or ``text`` (for the shell)."""

    source: Instruction
    text: str
    words: tuple[str, ...] | None


class Pairs(NamedTuple):
    """``ENV`` and ``LABEL``: names and values as written."""

    source: Instruction
    pairs: tuple[tuple[str, str], ...]


class Arg(NamedTuple):
    """``ARG NAME[=VALUE] …``; None without a default."""

    source: Instruction
    pairs: tuple[tuple[str, str | None], ...]


class Words(NamedTuple):
    """``EXPOSE``, ``VOLUME``, ``SHELL``: a list of words as written."""

    source: Instruction
    words: tuple[str, ...]


class Single(NamedTuple):
    """``USER``, ``WORKDIR``, ``STOPSIGNAL``, ``MAINTAINER``: one text."""

    source: Instruction
    text: str


class Healthcheck(NamedTuple):
    """``HEALTHCHECK``: ``test`` as in the image configuration, durations in nanoseconds (0: inherited)."""

    source: Instruction
    test: tuple[str, ...]
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class OnBuild(NamedTuple):
    """``ONBUILD INSTRUCTION``: kept as text in the image."""

    source: Instruction
    text: str


Typed = From | Run | Transfer | Command | Pairs | Arg | Words | Single | Healthcheck | OnBuild


def typed(source: Instruction, escape: str = "\\") -> Typed:
    """What ``source`` means. Raises ``DockerfileError``."""
    meaning: Typed = _KINDS[source.keyword](source, _Flags(source), escape)
    return meaning


class _Flags:
    """Flags of one instruction, taken one by one; what is left over is an error."""

    def __init__(self, source: Instruction) -> None:
        self._source = source
        self._known: list[str] = []

    def _take(self, name: str) -> list[str | None]:
        self._known.append(name)
        return [value for flag, value in self._source.flags if flag == name]

    def one(self, name: str, default: str = "") -> str:
        """The value of a flag that may be given once."""
        values = self._take(name)
        if len(values) > 1:
            raise self.error(f"duplicate flag specified: --{name}")
        if values and not values[0]:
            raise self.error(f"missing a value on flag: --{name}")
        return values[0] or default if values else default

    def many(self, name: str) -> tuple[str, ...]:
        """The values of a flag that may be repeated."""
        values = self._take(name)
        if not all(values):
            raise self.error(f"missing a value on flag: --{name}")
        return tuple(value for value in values if value)

    def boolean(self, name: str) -> bool | None:
        """None when not given."""
        values = self._take(name)
        if not values:
            return None
        text = "true" if values[-1] is None else values[-1].lower()
        if text not in ("true", "false", "1", "0"):
            raise self.error(f"expecting boolean value for flag --{name}, not: {values[-1]}")
        return text in ("true", "1")

    def done(self) -> None:
        """Refuse flags that nobody took."""
        for name, _ in self._source.flags:
            if name not in self._known:
                hint = f"{self._source.keyword} knows {', '.join('--' + n for n in self._known)}" if self._known else ""
                raise self.error(f"unknown flag: {name}", hint)

    def error(self, text: str, hint: str = "") -> DockerfileError:
        joint = " " if text.startswith(("requires", "must have", "names can")) else ": "
        return DockerfileError(f"{self._source.keyword}{joint}{text}", self._source.lines, hint=hint)


def _from(source: Instruction, flags: _Flags, escape: str) -> From:
    platform = flags.one("platform")
    flags.done()
    words = split_words(source.text, escape)
    if len(words) == 1:
        return From(source, words[0], "", platform)
    if len(words) != 3 or words[1].upper() != "AS":
        raise flags.error("requires either one or three arguments", "FROM IMAGE [AS NAME]")
    name = words[2].lower()
    if not _STAGE_NAME.fullmatch(name):
        raise flags.error(
            f"invalid name for build stage: {words[2]!r}, name can't start with a number or contain symbols"
        )
    return From(source, words[0], name, platform)


def _run(source: Instruction, flags: _Flags, escape: str) -> Run:
    mounts = tuple(parse_mount(text, source.lines) for text in flags.many("mount"))
    network, security = flags.one("network", "default"), flags.one("security", "sandbox")
    flags.done()
    if network not in NETWORKS:
        raise flags.error(f"network mode {network!r} is not supported", f"one of {', '.join(NETWORKS)}")
    if security not in SECURITY:
        raise flags.error(f"security {security!r} is not supported", f"one of {', '.join(SECURITY)}")
    if not source.text:
        raise flags.error("requires at least one argument")
    return Run(source, source.text, source.words, mounts, network, security)


def _transfer(source: Instruction, flags: _Flags, escape: str) -> Transfer:
    add = source.keyword == "ADD"
    heredocs = {f"<<{h.name}": h for h in source.heredocs}
    words = source.words or tuple(split_words(source.text, escape))
    marks = tuple(word for word in words if word.lstrip("0123456789").startswith("<<"))
    out = Transfer(
        source=source,
        add=add,
        sources=tuple(word for word in words[:-1] if word not in marks),
        target=words[-1] if words else "",
        from_="" if add else flags.one("from"),
        chown=flags.one("chown"),
        chmod=flags.one("chmod"),
        link=bool(flags.boolean("link")),
        parents=False if add else bool(flags.boolean("parents")),
        exclude=flags.many("exclude"),
        checksum=flags.one("checksum") if add else "",
        keep_git_dir=bool(flags.boolean("keep-git-dir")) if add else False,
        unpack=flags.boolean("unpack") if add else None,
        heredocs=source.heredocs,
    )
    flags.done()
    if len(words) < 2 or words[-1] in marks or len(heredocs) < len(source.heredocs):
        raise flags.error("requires at least two arguments", "one or more sources and a destination")
    return out


def _command(source: Instruction, flags: _Flags, escape: str) -> Command:
    flags.done()
    if source.words is None and not source.text:
        raise flags.error("requires at least one argument")
    return Command(source, source.text, source.words)


def _pairs(source: Instruction, flags: _Flags, escape: str) -> Pairs:
    flags.done()
    words = split_words(source.text, escape)
    if not words:
        raise flags.error("requires at least one argument")
    if "=" not in words[0]:
        name, *rest = source.text.split(None, 1)
        if not rest:
            raise flags.error("must have two arguments", f"{source.keyword} {name}=VALUE")
        return Pairs(source, ((name, rest[0]),))
    for word in words:
        if "=" not in word:
            raise flags.error(f"syntax error - can't find = in {word!r}. Must be of the form: name=value")
        if word.startswith("="):
            raise flags.error("names can not be blank")
    return Pairs(source, tuple((word.partition("=")[0], word.partition("=")[2]) for word in words))


def _arg(source: Instruction, flags: _Flags, escape: str) -> Arg:
    flags.done()
    words = split_words(source.text, escape)
    if not words:
        raise flags.error("requires at least one argument")
    pairs: list[tuple[str, str | None]] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not name:
            raise flags.error("names can not be blank")
        pairs.append((name, value if equals else None))
    return Arg(source, tuple(pairs))


def _words(source: Instruction, flags: _Flags, escape: str) -> Words:
    flags.done()
    if source.keyword == "SHELL" and source.words is None:
        raise flags.error("requires the arguments to be in JSON form", 'SHELL ["/bin/sh", "-c"]')
    words = source.words if source.words is not None else tuple(split_words(source.text, escape))
    if not words:
        raise flags.error("requires at least one argument")
    if source.keyword == "VOLUME" and not all(word.strip() for word in words):
        raise flags.error("specified volume can not be an empty string")
    return Words(source, words)


def _single(source: Instruction, flags: _Flags, escape: str) -> Single:
    flags.done()
    if not source.text:
        raise flags.error("requires exactly one argument")
    return Single(source, source.text)


def _healthcheck(source: Instruction, flags: _Flags, escape: str) -> Healthcheck:
    durations = {name: _duration(flags, name) for name in ("interval", "timeout", "start-period", "start-interval")}
    retries_text = flags.one("retries", "0")
    flags.done()
    if not retries_text.isdigit():
        raise flags.error(f"--retries must be a number, not {retries_text!r}")
    kind, _, rest = source.text.partition(" ")
    if kind.upper() == "NONE":
        if rest.strip() or source.flags:
            raise flags.error("NONE takes no arguments")
        return Healthcheck(source, ("NONE",))
    if kind.upper() != "CMD":
        raise flags.error(f"unknown type {kind!r}", "HEALTHCHECK [OPTIONS] CMD COMMAND, or HEALTHCHECK NONE")
    from engine.build.dockerfile.parser import parse_line

    if not rest.strip():
        raise flags.error("missing command after HEALTHCHECK CMD")
    command = parse_line(f"CMD {rest}")
    test = ("CMD", *command.words) if command.words is not None else ("CMD-SHELL", rest.strip())
    named = {name.replace("-", "_"): value for name, value in durations.items()}
    return Healthcheck(source, test, retries=int(retries_text), **named)


def go_duration(text: str) -> int:
    """Go's duration syntax (``1m30s``) in nanoseconds. Raises ``ValueError``."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"invalid duration {text!r}")
    return int(sum(float(number) * _UNITS[unit] for number, unit in parts))


def _duration(flags: _Flags, name: str) -> int:
    """Go's duration syntax (``1m30s``) in nanoseconds."""
    text = flags.one(name, "0")
    if text == "0":
        return 0
    try:
        total = go_duration(text)
    except ValueError as error:
        raise flags.error(f"--{name}: {error}", "for example 30s or 1m30s") from None
    if total < 10**6:
        raise flags.error(f"--{name} cannot be less than 1ms")
    return total


def _onbuild(source: Instruction, flags: _Flags, escape: str) -> OnBuild:
    flags.done()
    keyword = source.text.split(None, 1)[0].upper() if source.text else ""
    if not keyword:
        raise flags.error("requires at least one argument")
    if keyword == "ONBUILD":
        raise flags.error("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if keyword in ("FROM", "MAINTAINER"):
        raise flags.error(f"{keyword} isn't allowed as an ONBUILD trigger")
    body = "".join(f"\n{h.content}{h.name}" for h in source.heredocs)
    return OnBuild(source, source.text + body)


_KINDS: dict[str, Callable[[Instruction, _Flags, str], Any]] = {
    "ADD": _transfer,
    "ARG": _arg,
    "CMD": _command,
    "COPY": _transfer,
    "ENTRYPOINT": _command,
    "ENV": _pairs,
    "EXPOSE": _words,
    "FROM": _from,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _pairs,
    "MAINTAINER": _single,
    "ONBUILD": _onbuild,
    "RUN": _run,
    "SHELL": _words,
    "STOPSIGNAL": _single,
    "USER": _single,
    "VOLUME": _words,
    "WORKDIR": _single,
}
