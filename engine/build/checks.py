"""Build checks: what is allowed in a Dockerfile and yet likely a mistake, by Docker's names and in Docker's words.

Rule: pure; a check looks at the file and its stages and never at what a build does. Rules of stages look at those that
the target needs. Source: docs.docker.com "Build checks".
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from engine.build.dockerfile.errors import DockerfileError, Lines, Warning
from engine.build.dockerfile.expand import Expander, ExpansionError
from engine.build.dockerfile.instructions import (
    Arg,
    Command,
    From,
    Healthcheck,
    Pairs,
    Run,
    Single,
    Transfer,
    Typed,
    Words,
)  # fmt: skip
from engine.build.dockerfile.parser import Dockerfile, split_words
from engine.build.plan import SCRATCH, Plan, Stage
from engine.build.state import State, changed, initial
from engine.build.trees import clean, has_wildcard
from oci import reference as references
from oci.errors import GantryError, InvalidArgument
from oci.image import ExecutionConfig, ImageConfig, RootFS

ARGUMENT = "BUILDKIT_DOCKERFILE_CHECK"
"""Build argument that stands in for the directive."""

EXPERIMENTAL = frozenset({"CopyIgnoredFile", "InvalidDefinitionDescription"})
"""Rules that are asked for by name."""

RESERVED = ("context", "scratch")
_SECRET = re.compile(
    r"(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE
)
_PUBLIC = re.compile(r"(?:_|^)public(?:_|$)", re.IGNORECASE)
_TARGET = re.compile(r"\$(?:TARGETPLATFORM|\{TARGETPLATFORM\})")
_LAST_COUNTS = (Command, Healthcheck)


FINDING = "gantry.check"
"""``id`` of messages that tell of one finding; their ``aux``: ``rule``, ``text``, ``first``, ``last``, ``excerpt``."""


class Settings(NamedTuple):
    """The ``check`` directive: which rules are skipped ("all" is a name too), whether findings fail the build."""

    skip: frozenset[str] = frozenset()
    error: bool = False
    experimental: frozenset[str] = frozenset()

    def wants(self, rule: str) -> bool:
        """Whether findings of ``rule`` are told."""
        chosen = rule not in EXPERIMENTAL or bool(self.experimental & {rule, "all"})
        return chosen and not self.skip & {rule, "all"}


def settings(text: str) -> Settings:
    """``skip=A,B;error=true;experimental=C``. Raises ``InvalidArgument``."""
    values = {"skip": "", "error": "", "experimental": ""}
    for part in filter(None, (p.strip() for p in text.split(";"))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in values:
            raise InvalidArgument(f"invalid check option {part!r}", hint="skip=RULE,…;error=true;experimental=RULE,…")
        values[name] = value
    if values["error"].lower() not in ("", "true", "false", "1", "0"):
        raise InvalidArgument(f"invalid check option error={values['error']!r}: true or false")
    return Settings(_names(values["skip"]), values["error"].lower() in ("true", "1"), _names(values["experimental"]))


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def settings_of(dockerfile: Dockerfile, build_args: Mapping[str, str]) -> Settings:
    """What a build is checked for. Raises ``InvalidArgument``."""
    return settings(build_args.get(ARGUMENT) or dockerfile.directives.get("check", ""))


def failure(findings: Iterable[Warning]) -> DockerfileError:
    """The error of a build that ``error=true`` stops."""
    found = list(findings)
    rules = ", ".join(dict.fromkeys(warning.rule for warning in found))
    return DockerfileError(f"lint violation found for rules: {rules}", found[0].lines)


def check(dockerfile: Dockerfile, plan: Plan, ignored: Callable[[str], bool] = lambda _: False) -> list[Warning]:
    """Every finding but those of ``undefined``, in order of the file; ``ignored``: whether a path stays behind."""
    needed = [plan.stages[number] for number in plan.needed]
    found = [
        *plan.warnings, *_casing(dockerfile), *_written(dockerfile), *_stage_names(plan), *_bases(plan),
        *(finding for stage in needed for finding in _once(stage)),
        *(finding for stage in needed for finding in _shell_forms(stage, plan)),
        *(finding for stage in needed for finding in _directories(stage, plan)),
        *(finding for stage in needed for finding in _left_behind(stage, ignored)),
    ]  # fmt: skip
    return sorted(dict.fromkeys(found), key=lambda warning: warning.lines)


def _casing(dockerfile: Dockerfile) -> Iterator[Warning]:
    """ConsistentInstructionCasing and FromAsCasing."""
    words = [instruction.original.split(None, 1)[0] for instruction in dockerfile.instructions]
    counts = Counter("lower" if word.islower() else "upper" for word in words if word.islower() or word.isupper())
    wanted = "lowercase" if counts["lower"] > counts["upper"] else "uppercase"
    for word, instruction in zip(words, dockerfile.instructions, strict=True):
        if word != (word.lower() if wanted == "lowercase" else word.upper()):
            text = f"Command '{word}' should match the case of the command majority ({wanted})"
            yield Warning("ConsistentInstructionCasing", text, instruction.lines)
        if instruction.keyword == "FROM":
            parts = split_words(instruction.text, dockerfile.escape)
            joint = parts[1] if len(parts) == 3 else ""
            if joint and ((word.islower() and not joint.islower()) or (word.isupper() and not joint.isupper())):
                yield Warning(
                    "FromAsCasing", f"'{joint}' and '{word}' keywords' casing do not match", instruction.lines
                )


def _written(dockerfile: Dockerfile) -> Iterator[Warning]:
    """Rules that look at one instruction as it is written."""
    for instruction in dockerfile.instructions:
        keyword, lines = instruction.keyword, instruction.lines
        words = split_words(instruction.text, dockerfile.escape)
        if keyword == "MAINTAINER":
            text = "Maintainer instruction is deprecated in favor of using label"
            yield Warning("MaintainerDeprecated", text, lines)
        if keyword in ("ENV", "LABEL") and words and "=" not in words[0]:
            text = f'"{keyword} key=value" should be used instead of legacy "{keyword} key value" format'
            yield Warning("LegacyKeyValueFormat", text, lines)
        if keyword in ("ARG", "ENV"):
            pairs = words if keyword == "ARG" or (words and "=" in words[0]) else words[:1]
            for name in (word.partition("=")[0] for word in pairs):
                if _SECRET.search(name) and not _PUBLIC.search(name):
                    text = f'Do not use ARG or ENV instructions for sensitive data ({keyword} "{name}")'
                    yield Warning("SecretsUsedInArgOrEnv", text, lines)
        if keyword == "EXPOSE":
            yield from _ports(words, lines)
        if keyword in ("ARG", "FROM") and instruction.comments:
            yield from _description(keyword, words, instruction.comments[-1], lines)


def _ports(words: Iterable[str], lines: Lines) -> Iterator[Warning]:
    for word in words:
        _, slash, protocol = word.partition("/")
        if slash and protocol != protocol.lower() and "$" not in protocol:
            text = f"Defined protocol '{word}' in EXPOSE instruction should be lowercase"
            yield Warning("ExposeProtoCasing", text, lines)
        if ":" in word and "$" not in word:
            text = f"EXPOSE instruction should not define an IP address or host-port mapping, found '{word}'"
            yield Warning("ExposeInvalidFormat", text, lines)


def _description(keyword: str, words: list[str], comment: str, lines: Lines) -> Iterator[Warning]:
    names = [word.partition("=")[0] for word in words] if keyword == "ARG" else words[2:3]
    if names and comment.partition(" ")[0] not in names:
        shown = names[0] if len(names) == 1 else "<arg_key>"
        text = f"Comment for {keyword} should follow the format: `# {shown} <description>`"
        yield Warning("InvalidDefinitionDescription", text, lines)


def _stage_names(plan: Plan) -> Iterator[Warning]:
    """StageNameCasing, DuplicateStageName, ReservedStageName."""
    seen: set[str] = set()
    for stage in plan.stages:
        lines = stage.source.source.lines
        written = split_words(stage.source.source.text, plan.escape)[2:3]
        if written and written[0] != stage.name:
            yield Warning("StageNameCasing", f"Stage name '{written[0]}' should be lowercase", lines)
        if stage.name in RESERVED:
            text = f'Stage name should not use the same name as reserved stage "{stage.name}"'
            yield Warning("ReservedStageName", text, lines)
        if stage.name and stage.name in seen:
            text = f'Duplicate stage name "{stage.name}", stage names should be unique'
            yield Warning("DuplicateStageName", text, lines)
        seen.add(stage.name)


def _bases(plan: Plan) -> Iterator[Warning]:
    """UndefinedArgInFrom, InvalidDefaultArgInFrom, RedundantTargetPlatform, FromPlatformFlagConstDisallowed."""
    for stage in plan.stages:
        source, lines = stage.source, stage.source.source.lines
        for text in (source.image, source.platform):
            for name in sorted(_unset(text, plan.global_args.get, plan.escape) - plan.global_args.keys()):
                told = f"FROM argument '{name}' is not declared{_suggested(name, plan.global_args)}"
                yield Warning("UndefinedArgInFrom", told, lines)
        if not _names_an_image(_expanded(source.image, plan.defaults, plan.escape)):
            told = f"Default value for ARG {source.image} results in empty or invalid base image name"
            yield Warning("InvalidDefaultArgInFrom", told, lines)
        if _TARGET.fullmatch(source.platform):
            told = (
                f"Setting platform to predefined {source.platform} in FROM is redundant as this is the default behavior"
            )
            yield Warning("RedundantTargetPlatform", told, lines)
        elif source.platform and "$" not in source.platform and not _named_for(stage):
            told = f'FROM --platform flag should not use constant value "{source.platform}"'
            yield Warning("FromPlatformFlagConstDisallowed", told, lines)


def _named_for(stage: Stage) -> bool:
    """A stage that says in its name that it is for one platform may be."""
    return any(part and part in stage.name for part in stage.source.platform.lower().split("/"))


def _names_an_image(text: str) -> bool:
    try:
        references.parse(text)
    except GantryError:
        return False
    return True


def _expanded(text: str, values: Mapping[str, str | None], escape: str) -> str:
    try:
        return Expander(values.get, escape).word(text)
    except ExpansionError:
        # A variable that must be given has no default that could be wrong.
        return SCRATCH


def _unset(text: str, lookup: Callable[[str], str | None], escape: str) -> set[str]:
    """Variables of ``text`` without a value, those that come with a default aside."""
    expander = Expander(lookup, escape)
    try:
        expander.word(text)
    except ExpansionError:
        return set()
    return expander.unset


def _suggested(name: str, known: Iterable[str], mark: str = "") -> str:
    near = difflib.get_close_matches(name, sorted(known), 1, 0.75)
    return f" (did you mean {mark}{near[0]}?)" if near else ""


def _once(stage: Stage) -> Iterator[Warning]:
    """MultipleInstructionsDisallowed: told of the one that has no effect."""
    before: dict[str, Typed] = {}
    for step in stage.steps:
        if isinstance(step, _LAST_COUNTS):
            keyword = step.source.keyword
            if keyword in before:
                text = f"Multiple {keyword} instructions should not be used in the same stage because only the last one"
                yield Warning("MultipleInstructionsDisallowed", f"{text} will be used", before[keyword].source.lines)
            before[keyword] = step


def _shell_forms(stage: Stage, plan: Plan) -> Iterator[Warning]:
    """JSONArgsRecommended, unless a SHELL says that one is meant."""
    shell = any(step.source.keyword == "SHELL" for above in _line(stage, plan)[1:] for step in above.steps)
    for step in stage.steps:
        shell |= step.source.keyword == "SHELL"
        if isinstance(step, Command) and step.words is None and not shell:
            text = f"JSON arguments recommended for {step.source.keyword} to prevent unintended behavior"
            yield Warning("JSONArgsRecommended", f"{text} related to OS signals", step.source.lines)


def _directories(stage: Stage, plan: Plan) -> Iterator[Warning]:
    """WorkdirRelativePath."""
    known = any(_sets_directory(step) for above in _line(stage, plan)[1:] for step in above.steps)
    for step in stage.steps:
        if isinstance(step, Single) and step.source.keyword == "WORKDIR":
            if not known and not posixpath.isabs(step.text) and not step.text.startswith("$"):
                text = f'Relative workdir "{step.text}" can have unexpected results if the base image changes'
                yield Warning("WorkdirRelativePath", text, step.source.lines)
            known |= _sets_directory(step)


def _sets_directory(step: Typed) -> bool:
    return isinstance(step, Single) and step.source.keyword == "WORKDIR" and step.text.startswith(("/", "$"))


def _left_behind(stage: Stage, ignored: Callable[[str], bool]) -> Iterator[Warning]:
    """CopyIgnoredFile."""
    for step in stage.steps:
        if isinstance(step, Transfer) and not step.from_:
            for text in step.sources:
                if not has_wildcard(text) and "$" not in text and "://" not in text and ignored(clean(text)):
                    verb = step.source.keyword.capitalize()
                    told = f'Attempting to {verb} file "{text}" that is excluded by .dockerignore'
                    yield Warning("CopyIgnoredFile", told, step.source.lines)


def _line(stage: Stage, plan: Plan) -> list[Stage]:
    """``stage`` and the stages that it is based on."""
    found = [stage]
    while found[-1].base_stage is not None:
        found.append(plan.stages[found[-1].base_stage])
    return found


def root_of(stage: Stage, plan: Plan) -> str:
    """The image that ``stage`` is made from in the end."""
    return _line(stage, plan)[-1].base


def undefined(
    plan: Plan, build_args: Mapping[str, str], environments: Mapping[str, tuple[str, ...]]
) -> list[tuple[str, Warning]]:
    """UndefinedVar, with the image whose environment decides; ``environments``: those known, as ``NAME=value``."""
    found: list[tuple[str, Warning]] = []
    ends: dict[int, State] = {}
    for stage in (plan.stages[number] for number in plan.needed):
        root = root_of(stage, plan)
        if stage.base_stage is not None:
            image = ImageConfig("", "", RootFS(()), config=ends[stage.base_stage].config)
        else:
            image = ImageConfig("", "", RootFS(()), config=ExecutionConfig(env=environments.get(stage.base, ())))
        state = initial(image, plan.escape)
        for step in stage.steps:
            found += [(root, warning) for warning in _undefined(step, state, plan)]
            state = _after(state, step, build_args, plan)
        ends[stage.number] = state
    return found


def _undefined(step: Typed, state: State, plan: Plan) -> Iterator[Warning]:
    names = {name for text in _texts(step) for name in _unset(text, state.value, plan.escape)}
    for name in sorted(names - state.args.keys()):
        known = {*state.environment, *state.args, *plan.global_args}
        yield Warning("UndefinedVar", f"Usage of undefined variable '${name}'{_suggested(name, known, '$')}",
                      step.source.lines)  # fmt: skip


def _texts(step: Typed) -> Iterator[str]:
    """What of an instruction is expanded by the builder."""
    if isinstance(step, Pairs):
        yield from (text for pair in step.pairs for text in pair)
    elif isinstance(step, Arg):
        yield from (default for _, default in step.pairs if default)
    elif isinstance(step, Transfer):
        yield from (*step.sources, step.target, step.chown, step.chmod, *step.exclude, step.checksum)
    elif isinstance(step, Single):
        yield step.text
    elif isinstance(step, Words) and step.source.keyword != "SHELL":
        yield from step.words


def _after(state: State, step: Typed, build_args: Mapping[str, str], plan: Plan) -> State:
    """The state that ``step`` leads to; one that cannot be carried out is told about when it is built."""
    if isinstance(step, (From, Run, Transfer)):
        return state
    try:
        return changed(state, step, build_args, plan.global_args)
    except DockerfileError:
        return state
