"""``--change``: Dockerfile instructions applied to an image's configuration (import and commit).

Rule: what Docker allows there is allowed here (the instructions in ``_HANDLERS``); anything else is refused before a
byte is stored. Source: Dockerfile reference.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterable

import msgspec

from oci.errors import InvalidArgument
from oci.image import ExecutionConfig, Healthcheck

Change = Callable[[ExecutionConfig, str], ExecutionConfig]

SHELL = ("/bin/sh", "-c")
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_VARIABLE = re.compile(r"(\\?)\$(?:\{(\w+)(?::([-+])([^}]*))?\}|(\w+))")


def apply_changes(config: ExecutionConfig, changes: Iterable[str]) -> ExecutionConfig:
    """``config`` after every instruction; raises ``InvalidArgument`` naming the one that is wrong."""
    for change in changes:
        for line in _lines(change):
            word, _, rest = line.partition(" ")
            handler = _HANDLERS.get(word.upper())
            if handler is None:
                raise InvalidArgument(f"{word.lower()} is not a valid change command")
            if not rest.strip():
                raise InvalidArgument(f"{word.upper()} requires at least one argument")
            config = handler(config, rest.strip())
    return config


def _lines(text: str) -> list[str]:
    joined = re.sub(r"\\[ \t]*\r?\n", " ", text)
    stripped = (re.sub(r"\s", " ", line.strip(), count=1) for line in joined.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


def words(text: str) -> list[str]:
    """``text`` split at blanks, quotes honoured and removed, a backslash taking the next character."""
    out: list[str] = []
    current: list[str] = []
    quote = ""
    started = escaped = False
    for char in text:
        if escaped:
            current.append(char if not quote or char in (quote, "\\", "$") else "\\" + char)
            escaped = False
        elif char == "\\" and quote != "'":
            escaped = started = True
        elif quote:
            if char == quote:
                quote = ""
            else:
                current.append(char)
        elif char in "\"'":
            quote, started = char, True
        elif char.isspace():
            if started:
                out.append("".join(current))
            current, started = [], False
        else:
            current.append(char)
            started = True
    if quote:
        raise InvalidArgument(f"unexpected end of statement while looking for matching {quote}: {text}")
    if started:
        out.append("".join(current))
    return out


def _expand(config: ExecutionConfig, text: str) -> str:
    values = dict(entry.partition("=")[::2] for entry in config.env)

    def value(match: re.Match[str]) -> str:
        if match[1]:
            return match[0][1:]
        found = values.get(match[2] or match[5], "")
        if match[3] == "-":
            return found or match[4]
        if match[3] == "+":
            return match[4] if found else ""
        return found

    return _VARIABLE.sub(value, text)


def _command(text: str) -> tuple[str, ...]:
    if text.startswith("["):
        try:
            parsed = json.loads(text)
        except ValueError:
            parsed = None
        if isinstance(parsed, list) and all(isinstance(word, str) for word in parsed):
            return tuple(parsed)
    return (*SHELL, text)


def _list(text: str) -> list[str]:
    parsed = _command(text)
    return list(parsed) if text.startswith("[") and parsed[:2] != SHELL else words(text)


def _pairs(text: str, what: str) -> list[tuple[str, str]]:
    first = text.split(None, 1)
    if "=" not in first[0]:
        if len(first) < 2:
            raise InvalidArgument(f"{what} must have two arguments")
        return [(first[0], " ".join(words(first[1])) if what == "LABEL" else first[1])]
    pairs = []
    for word in words(text):
        name, equals, value = word.partition("=")
        if not equals:
            raise InvalidArgument(f"Syntax error - can't find = in {word!r}. Must be of the form: name=value")
        if not name:
            raise InvalidArgument(f"{what} names can not be blank")
        pairs.append((name, value))
    return pairs


def _cmd(config: ExecutionConfig, text: str) -> ExecutionConfig:
    return msgspec.structs.replace(config, cmd=_command(text))


def _entrypoint(config: ExecutionConfig, text: str) -> ExecutionConfig:
    return msgspec.structs.replace(config, entrypoint=_command(text))


def _env(config: ExecutionConfig, text: str) -> ExecutionConfig:
    env = dict(entry.partition("=")[::2] for entry in config.env)
    for name, value in _pairs(text, "ENV"):
        env[name] = _expand(config, value)
    return msgspec.structs.replace(config, env=tuple(f"{k}={v}" for k, v in env.items()))


def _label(config: ExecutionConfig, text: str) -> ExecutionConfig:
    pairs = {name: _expand(config, value) for name, value in _pairs(text, "LABEL")}
    return msgspec.structs.replace(config, labels={**(config.labels or {}), **pairs})


def _expose(config: ExecutionConfig, text: str) -> ExecutionConfig:
    ports = dict(config.exposed_ports)
    for word in words(_expand(config, text)):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?(?:/(tcp|udp|sctp))?", word, re.IGNORECASE)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if match is None or not 0 < first <= last <= 65535:
            raise InvalidArgument(f"invalid containerPort: {word}")
        for port in range(first, last + 1):
            ports[f"{port}/{(match[3] or 'tcp').lower()}"] = {}
    return msgspec.structs.replace(config, exposed_ports=ports)


def _user(config: ExecutionConfig, text: str) -> ExecutionConfig:
    return msgspec.structs.replace(config, user=_expand(config, text))


def _volume(config: ExecutionConfig, text: str) -> ExecutionConfig:
    paths = [_expand(config, path).strip() for path in _list(text)]
    if not all(paths):
        raise InvalidArgument("VOLUME specified can not be an empty string")
    return msgspec.structs.replace(config, volumes={**(config.volumes or {}), **{path: {} for path in paths}})


def _workdir(config: ExecutionConfig, text: str) -> ExecutionConfig:
    path = " ".join(words(_expand(config, text)))
    return msgspec.structs.replace(
        config, working_dir=posixpath.normpath(posixpath.join(config.working_dir or "/", path))
    )


def _stop_signal(config: ExecutionConfig, text: str) -> ExecutionConfig:
    return msgspec.structs.replace(config, stop_signal=_expand(config, text))


def _on_build(config: ExecutionConfig, text: str) -> ExecutionConfig:
    trigger = text.split(None, 1)[0].upper()
    if trigger == "ONBUILD":
        raise InvalidArgument("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("MAINTAINER", "FROM"):
        raise InvalidArgument(f"{trigger} isn't allowed as an ONBUILD trigger")
    return msgspec.structs.replace(config, on_build=(*(config.on_build or ()), text))


def duration(text: str) -> int:
    """Go's ``1m30s`` in nanoseconds; raises ``InvalidArgument``."""
    found = list(_DURATION.finditer(text))
    if not found or "".join(m[0] for m in found) != text:
        raise InvalidArgument(f"invalid duration {text!r}")
    return sum(int(float(m[1]) * _UNITS[m[2]]) for m in found)


def _healthcheck(config: ExecutionConfig, text: str) -> ExecutionConfig:
    flags: dict[str, str] = {}
    while text.startswith("--"):
        flag, _, text = text.partition(" ")
        name, _, value = flag[2:].partition("=")
        flags[name], text = value, text.strip()
    kind, _, rest = text.partition(" ")
    if kind.upper() == "NONE":
        return msgspec.structs.replace(config, healthcheck=Healthcheck(test=("NONE",)))
    if kind.upper() != "CMD" or not rest.strip():
        raise InvalidArgument(f"Unknown type {kind!r} in HEALTHCHECK (try CMD)")
    command = _command(rest.strip())
    test = ("CMD-SHELL", command[2]) if command[:2] == SHELL and not rest.strip().startswith("[") else ("CMD", *command)
    try:
        check = Healthcheck(
            test=test,
            interval=duration(flags.pop("interval", "0s")),
            timeout=duration(flags.pop("timeout", "0s")),
            start_period=duration(flags.pop("start-period", "0s")),
            start_interval=duration(flags.pop("start-interval", "0s")),
            retries=int(flags.pop("retries", "0")),
        )
    except ValueError as error:
        raise InvalidArgument(f"HEALTHCHECK retries: {error}") from None
    if flags:
        raise InvalidArgument(f"unknown flag: {next(iter(flags))}")
    return msgspec.structs.replace(config, healthcheck=check)


_HANDLERS: dict[str, Change] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _on_build,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
