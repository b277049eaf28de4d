"""From text to instructions: directives, comments, continuation lines, flags, heredocs, the JSON form.

Rule: this module knows how lines are joined and split, not what an instruction means; nothing is expanded here. Source:
docs.docker.com "Dockerfile reference".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from engine.build.dockerfile.errors import DockerfileError, Lines, Warning

KEYWORDS = frozenset(
    [
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "MAINTAINER",
        "ONBUILD",
        "RUN",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    ]
)
JSON_FORM = frozenset({"ADD", "CMD", "COPY", "ENTRYPOINT", "RUN", "SHELL", "VOLUME"})
HEREDOC_FORM = frozenset({"ADD", "COPY", "RUN"})
DIRECTIVES = frozenset({"syntax", "escape", "check"})

_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")
_FLAG = re.compile(r"--([A-Za-z][A-Za-z0-9-]*)(?:=(.*))?", re.DOTALL)
_HEREDOC = re.compile(r"(\d*)<<(-?)(?:\"([^\"]+)\"|'([^']+)'|([A-Za-z0-9_.]+))")
MAX_LINE = 1 << 20


class Heredoc(NamedTuple):
    """A here-document: ``expand`` unless its word was quoted, tabs stripped already where ``<<-`` asked for it."""

    name: str
    content: str
    expand: bool
    chomp: bool
    fd: str


class Instruction(NamedTuple):
    """One instruction as written.

    ``flags`` in order of appearance (``None`` for a flag without a value); ``text`` what stands behind them, joined to
    one line; ``words`` the strings of the JSON form, None in the other form; ``original`` for history and messages.
    """

    keyword: str
    flags: tuple[tuple[str, str | None], ...]
    text: str
    words: tuple[str, ...] | None
    heredocs: tuple[Heredoc, ...]
    original: str
    lines: Lines
    comments: tuple[str, ...] = ()


class Dockerfile(NamedTuple):
    """A parsed file. ``directives`` by lower-case name; ``escape`` is a backslash or a backtick."""

    instructions: tuple[Instruction, ...]
    directives: Mapping[str, str]
    escape: str
    warnings: tuple[Warning, ...]


def parse(source: bytes | str) -> Dockerfile:
    """All instructions of ``source`` (UTF-8, with or without a byte order mark). Raises ``DockerfileError``."""
    text = source if isinstance(source, str) else _decoded(source)
    rows = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    if rows and rows[-1] == "":
        rows.pop()
    directives, escape = _directives(rows)
    reader = _Reader(rows, escape)
    instructions = tuple(reader.instructions())
    if not instructions:
        raise DockerfileError("file with no instructions", Lines(1, max(1, len(rows))))
    return Dockerfile(instructions, directives, escape, tuple(reader.warnings))


def parse_line(line: str) -> Instruction:
    """One instruction given as text: ``--change`` of commit and import, ONBUILD of a base image."""
    parsed = parse(line)
    if len(parsed.instructions) != 1:
        raise DockerfileError("exactly one instruction is expected", Lines(1, 1))
    return parsed.instructions[0]


def _decoded(source: bytes) -> str:
    try:
        return source.decode()
    except UnicodeDecodeError as error:
        line = source[: error.start].count(b"\n") + 1
        raise DockerfileError("the file is not UTF-8 text", Lines(line, line)) from None


def _directives(rows: list[str]) -> tuple[dict[str, str], str]:
    """Parser directives stand before everything else; the first other line ends them."""
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        match = _DIRECTIVE.fullmatch(row.strip())
        if match is None or match[1].lower() not in DIRECTIVES:
            if number == 1 and row.startswith("#!"):
                continue
            break
        name = match[1].lower()
        if name in found:
            raise DockerfileError(f"only one {name} parser directive can be used", Lines(number, number))
        found[name] = match[2]
    escape = found.get("escape", "\\")
    if escape not in ("\\", "`"):
        raise DockerfileError(f"invalid escape token {escape!r}: it is ` or \\", Lines(1, 1))
    return found, escape


class _Reader:
    """Walks the rows once."""

    def __init__(self, rows: list[str], escape: str) -> None:
        self._rows = rows
        self._escape = escape
        self._continued = re.compile(rf"{re.escape(escape)}[ \t]*$")
        self._at = 0
        self.warnings: list[Warning] = []

    def instructions(self) -> Iterator[Instruction]:
        comments: list[str] = []
        while self._at < len(self._rows):
            row = self._rows[self._at].strip()
            if not row:
                comments.clear()
                self._at += 1
            elif row.startswith("#"):
                comments.append(row[1:].strip())
                self._at += 1
            else:
                yield self._instruction(tuple(comments))
                comments.clear()

    def _instruction(self, comments: tuple[str, ...]) -> Instruction:
        first = self._at + 1
        line = self._logical_line()
        keyword, rest = _split_keyword(line)
        if keyword.upper() not in KEYWORDS:
            raise DockerfileError(
                f"unknown instruction: {keyword}", Lines(first, self._at), hint=_did_you_mean(keyword.upper())
            )
        flags, text = _split_flags(rest, self._escape, Lines(first, self._at))
        bare = keyword.upper()
        heredocs: tuple[Heredoc, ...] = ()
        if bare in HEREDOC_FORM or (bare == "ONBUILD" and text.split(None, 1)[:1] and "<<" in text):
            heredocs = tuple(self._heredoc(match) for match in _heredoc_marks(text, self._escape))
        lines = Lines(first, self._at)
        words = _json_words(text) if bare in JSON_FORM and not heredocs else None
        return Instruction(bare, flags, text, words, heredocs, line.strip(), lines, comments)

    def _logical_line(self) -> str:
        """Rows joined over escapes; comments between them vanish, empty ones too (with a warning)."""
        parts: list[str] = []
        first = self._at + 1
        while self._at < len(self._rows):
            row = self._rows[self._at]
            self._at += 1
            if parts and row.lstrip().startswith("#"):
                continue
            if parts and not row.strip():
                if self._at < len(self._rows):
                    self.warnings.append(
                        Warning("NoEmptyContinuation", "Empty continuation line", Lines(self._at, self._at))
                    )
                continue
            match = self._continued.search(row)
            if match is None:
                parts.append(row)
                break
            parts.append(row[: match.start()])
        line = "".join(parts)
        if len(line) > MAX_LINE:
            raise DockerfileError(f"line of {len(line)} characters is longer than {MAX_LINE}", Lines(first, self._at))
        return line.lstrip()

    def _heredoc(self, mark: re.Match[str]) -> Heredoc:
        """Read the rows of one here-document up to its word."""
        fd, dash, double, single, plain = mark.groups()
        name = double or single or plain
        first = self._at
        body: list[str] = []
        while self._at < len(self._rows):
            row = self._rows[self._at]
            self._at += 1
            if (row.lstrip("\t") if dash else row) == name:
                content = "".join(f"{line.lstrip(chr(9)) if dash else line}\n" for line in body)
                return Heredoc(name, content, expand=plain is not None, chomp=bool(dash), fd=fd)
            body.append(row)
        raise DockerfileError(f"unterminated heredoc {name}", Lines(first, first))


def _split_keyword(line: str) -> tuple[str, str]:
    head = [*line.split(None, 1), "", ""]
    return head[0], head[1]


def _split_flags(rest: str, escape: str, lines: Lines) -> tuple[tuple[tuple[str, str | None], ...], str]:
    """Leading ``--name[=value]`` words; a value may be quoted."""
    flags: list[tuple[str, str | None]] = []
    text = rest.lstrip()
    while text.startswith("--"):
        end = _word_end(text, escape)
        word = text[:end]
        if word == "--":
            text = text[end:].lstrip()
            break
        match = _FLAG.fullmatch(word)
        if match is None:
            raise DockerfileError(f"malformed flag {word!r}", lines)
        flags.append((match[1], _unquoted(match[2], escape) if match[2] is not None else None))
        text = text[end:].lstrip()
    return tuple(flags), text.rstrip()


def _word_end(text: str, escape: str) -> int:
    """Where the first word ends, quotes and escapes respected."""
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        if char == escape and at + 1 < len(text):
            at += 2
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char.isspace():
            return at
        at += 1
    return at


def _unquoted(value: str, escape: str) -> str:
    """A flag's value without its quotes and escapes."""
    out, quote, at = [], "", 0
    while at < len(value):
        char = value[at]
        if char == escape and at + 1 < len(value) and quote != "'":
            out.append(value[at + 1])
            at += 2
            continue
        if char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote = char
        else:
            out.append(char)
        at += 1
    return "".join(out)


def _heredoc_marks(text: str, escape: str) -> Iterator[re.Match[str]]:
    """``<<WORD`` marks that stand outside quotes, and not as part of ``<<<``."""
    quote, at = "", 0
    while at < len(text):
        char = text[at]
        if char == escape and quote != "'":
            at += 2
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char == "<" and text.startswith("<<", at):
            if text.startswith("<<<", at):
                at += 3
                continue
            begin = at
            while begin and text[begin - 1].isdigit():
                begin -= 1
            if begin and not (text[begin - 1].isspace() or text[begin - 1] in "|&;("):
                begin = at
            match = _HEREDOC.match(text, begin)
            if match is not None:
                yield match
                at = match.end()
                continue
        at += 1


def _json_words(text: str) -> tuple[str, ...] | None:
    """The strings of the JSON form; None when it is not a JSON array of strings."""
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        return None
    return tuple(value)


def split_words(text: str, escape: str) -> list[str]:
    """Words of ``text`` as written (quotes and escapes kept)."""
    words: list[str] = []
    rest = text.lstrip()
    while rest:
        end = _word_end(rest, escape)
        words.append(rest[:end])
        rest = rest[end:].lstrip()
    return words


def _did_you_mean(keyword: str) -> str:
    import difflib

    near = difflib.get_close_matches(keyword, sorted(KEYWORDS), 1, 0.6)
    return f"did you mean {near[0]}?" if near else ""
