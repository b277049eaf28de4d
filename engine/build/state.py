"""What a stage has become so far: configuration, variables, history. Instructions that change nothing else end here.

Rule: values are frozen; every instruction gives a new ``State``. Expansion happens here, with the stage's environment
over its ARGs. Source: docs.docker.com "Dockerfile reference"; image-spec ``config.md``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from engine.build.dockerfile.errors import DockerfileError
from engine.build.dockerfile.expand import Expander, ExpansionError
from engine.build.dockerfile.instructions import (
    Arg,
    Command,
    Healthcheck,
    OnBuild,
    Pairs,
    Run,
    Single,
    Typed,
    Words,
)
from engine.build.dockerfile.parser import Heredoc, Instruction
from engine.build.plan import PROXY_ARGS
from oci.image import ExecutionConfig, History, ImageConfig
from oci.image import Healthcheck as ImageHealthcheck

DEFAULT_SHELL = ("/bin/sh", "-c")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PORT = re.compile(r"(\d+)(?:-(\d+))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_ALONE = re.compile(r"<<-?[\"']?[A-Za-z0-9_.]+[\"']?")
_SIGNAL = re.compile(r"(?:SIG)?[A-Z][A-Z0-9+-]*|\d+", re.IGNORECASE)
MAX_PORT = 65535


class State(msgspec.Struct, frozen=True):
    """A stage between two instructions. ``args`` holds the ARGs it has declared (None: declared without a value)."""

    config: ExecutionConfig
    image: ImageConfig
    escape: str
    args: dict[str, str | None] = {}
    history: tuple[History, ...] = ()
    author: str = ""
    cmd_given: bool = False

    def value(self, name: str) -> str | None:
        """The variable ``name``: environment first, then ARGs."""
        found = self.environment.get(name)
        return found if found is not None else self.args.get(name)

    @property
    def environment(self) -> dict[str, str]:
        """``ENV`` as a mapping."""
        return dict(entry.partition("=")[::2] for entry in self.config.env)

    @property
    def shell(self) -> tuple[str, ...]:
        """What runs the shell form."""
        return self.config.shell or DEFAULT_SHELL

    def expand(self, text: str, source: Instruction) -> str:
        """``text`` as one word. Raises ``DockerfileError``."""
        try:
            return Expander(self.value, self.escape).word(text)
        except ExpansionError as error:
            raise DockerfileError(f"failed to process {text!r}: {error}", source.lines) from None

    def expand_words(self, text: str, source: Instruction) -> list[str]:
        """``text`` as any number of words. Raises ``DockerfileError``."""
        try:
            return Expander(self.value, self.escape).words(text)
        except ExpansionError as error:
            raise DockerfileError(f"failed to process {text!r}: {error}", source.lines) from None

    def with_config(self, **changes: Any) -> State:
        """This state with parts of its configuration replaced."""
        return msgspec.structs.replace(self, config=msgspec.structs.replace(self.config, **changes))

    def absolute(self, path: str) -> str:
        """``path`` below the working directory unless it is absolute; a trailing slash stays."""
        joined = posixpath.join(self.config.working_dir or "/", path)
        return posixpath.normpath(joined) + ("/" if joined.endswith(("/", "/.")) and joined != "/" else "")

    def run_environment(self, proxies: Mapping[str, str]) -> list[str]:
        """The environment of RUN: proxies, ARGs that have a value, ENV over both."""
        merged: dict[str, str] = dict(proxies)
        merged.update({name: value for name, value in self.args.items() if value is not None})
        merged.update(self.environment)
        return [f"{name}={value}" for name, value in merged.items()]

    def visible_args(self) -> list[str]:
        """``NAME=value`` of ARGs that count for history and cache: no proxies, nothing that ENV hides."""
        hidden = self.environment
        return sorted(
            f"{name}={value}"
            for name, value in self.args.items()
            if value is not None and name not in hidden and name not in PROXY_ARGS
        )

    def noted(self, created_by: str, created: str, *, empty: bool) -> State:
        """This state with one more line of history."""
        entry = History(created=created, created_by=created_by, comment="gantry", empty_layer=empty, author=self.author)
        return msgspec.structs.replace(self, history=(*self.history, entry))


def initial(image: ImageConfig, escape: str) -> State:
    """The state after FROM. An image without ``PATH`` gets Docker's."""
    config = image.config
    if not any(entry.startswith("PATH=") for entry in config.env):
        config = msgspec.structs.replace(config, env=(*config.env, f"PATH={DEFAULT_PATH}"))
    return State(config=config, image=image, escape=escape, history=image.history, author=image.author)


def command_words(state: State, run: Run) -> tuple[str, ...]:
    """The argument list that RUN executes, here-documents included."""
    if run.words is not None:
        return run.words
    script = script_of(run)
    if script is not None:
        return (script_path(script),)
    text = run.text
    if run.heredocs and _ALONE.fullmatch(text):
        text = run.heredocs[0].content
    elif run.heredocs:
        text += "\n" + "".join(f"{doc.content}{doc.name}\n" for doc in run.heredocs)
    return (*state.shell, text)


def script_of(run: Run) -> Heredoc | None:
    """The here-document that is all of a RUN and says which program reads it; None in all other cases."""
    if run.words is None and _ALONE.fullmatch(run.text) and run.heredocs[0].content.startswith("#!"):
        return run.heredocs[0]
    return None


def script_path(script: Heredoc) -> str:
    """Where the step's container has it."""
    return f"/dev/pipes/{script.name}"


def changed(state: State, meaning: Typed, build_args: Mapping[str, str], scope: Mapping[str, str | None]) -> State:
    """``state`` after an instruction that only changes configuration. Raises ``DockerfileError``.

    ``scope`` is the global scope of the file, for ARGs without a default.
    """
    source = meaning.source
    if isinstance(meaning, Arg):
        return _declare(state, meaning, build_args, scope)
    if isinstance(meaning, Pairs):
        return _pairs(state, meaning)
    if isinstance(meaning, Command):
        return _command(state, meaning)
    if isinstance(meaning, Words):
        return _words(state, meaning)
    if isinstance(meaning, Single):
        return _single(state, meaning)
    if isinstance(meaning, Healthcheck):
        return state.with_config(healthcheck=_health(meaning))
    if isinstance(meaning, OnBuild):
        return state.with_config(on_build=(*(state.config.on_build or ()), meaning.text))
    raise DockerfileError(f"{source.keyword} does more than change the configuration", source.lines)


def _declare(state: State, arg: Arg, build_args: Mapping[str, str], scope: Mapping[str, str | None]) -> State:
    args = dict(state.args)
    for name, default in arg.pairs:
        current = msgspec.structs.replace(state, args=args)
        if name in build_args:
            args[name] = build_args[name]
        elif default is not None:
            args[name] = current.expand(default, arg.source)
        else:
            args[name] = scope.get(name, args.get(name))
    return msgspec.structs.replace(state, args=args)


def _pairs(state: State, pairs: Pairs) -> State:
    expanded = [(state.expand(name, pairs.source), state.expand(value, pairs.source)) for name, value in pairs.pairs]
    if not all(name for name, _ in expanded):
        raise DockerfileError(f"{pairs.source.keyword}: names can not be blank", pairs.source.lines)
    if pairs.source.keyword == "LABEL":
        return state.with_config(labels={**(state.config.labels or {}), **dict(expanded)})
    environment = state.environment | dict(expanded)
    return state.with_config(env=tuple(f"{name}={value}" for name, value in environment.items()))


def _command(state: State, command: Command) -> State:
    words = command.words if command.words is not None else (*state.shell, command.text)
    if command.source.keyword == "CMD":
        return msgspec.structs.replace(state.with_config(cmd=words or None), cmd_given=True)
    # The base image's CMD was meant for the base image's entry point.
    cmd = state.config.cmd if state.cmd_given else None
    return state.with_config(entrypoint=words or None, cmd=cmd)


def _words(state: State, meaning: Words) -> State:
    source = meaning.source
    if source.keyword == "SHELL":
        return state.with_config(shell=meaning.words)
    found = [word for text in meaning.words for word in state.expand_words(text, source)]
    if source.keyword == "EXPOSE":
        ports = [port for word in found for port in _ports(word, source)]
        return state.with_config(exposed_ports={**state.config.exposed_ports, **{port: {} for port in ports}})
    paths = [state.expand(text, source) for text in meaning.words]
    if not all(path.strip() for path in paths):
        raise DockerfileError("VOLUME: specified volume can not be an empty string", source.lines)
    return state.with_config(volumes={**(state.config.volumes or {}), **{path: {} for path in paths}})


def _ports(text: str, source: Instruction) -> list[str]:
    # An address or a port of the host says nothing about an image; docker reads over them.
    match = _PORT.fullmatch(text.rpartition(":")[2])
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if match is None or not 0 < first <= last <= MAX_PORT:
        raise DockerfileError(f"invalid containerPort: {text}", source.lines, hint="8080, 8080/udp or 8000-8010/tcp")
    return [f"{port}/{(match[3] or 'tcp').lower()}" for port in range(first, last + 1)]


def _single(state: State, meaning: Single) -> State:
    source, keyword = meaning.source, meaning.source.keyword
    text = state.expand(meaning.text, source)
    if not text:
        raise DockerfileError(f"{keyword}: {meaning.text!r} expands to nothing", source.lines)
    if keyword == "MAINTAINER":
        return msgspec.structs.replace(state, author=text)
    if keyword == "USER":
        return state.with_config(user=text)
    if keyword == "STOPSIGNAL":
        if not _SIGNAL.fullmatch(text):
            raise DockerfileError(f"STOPSIGNAL: invalid signal {text!r}", source.lines)
        return state.with_config(stop_signal=text)
    return state.with_config(working_dir=posixpath.normpath(state.absolute(text)))


def _health(meaning: Healthcheck) -> ImageHealthcheck:
    return ImageHealthcheck(
        test=meaning.test,
        interval=meaning.interval,
        timeout=meaning.timeout,
        start_period=meaning.start_period,
        start_interval=meaning.start_interval,
        retries=meaning.retries,
    )
