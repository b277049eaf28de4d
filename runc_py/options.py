"""Options of a command: declared as for ``argparse``, which is asked only for help and for errors.

Rule: the short way reads what is plainly right, and gives what ``argparse`` would. Everything else (help, wrong
or joined options) goes to a real parser with the same declarations, whose answer holds.
"""

from __future__ import annotations

from runc_py.light import TYPE_CHECKING, os

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

REMAINDER = "..."
"""``nargs`` of what takes the rest of the line, whatever it looks like."""


class Options:
    """Values by the names of options and arguments."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...


class _Unclear(Exception):
    """Something that argparse is to judge."""


class _Declared:
    """One option or argument."""

    __slots__ = ("action", "choices", "default", "dest", "kind", "nargs")

    def __init__(self, names: tuple[str, ...], settings: dict[str, Any]) -> None:
        longest = next((name for name in names if name.startswith("--")), names[0])
        self.dest: str = settings.get("dest") or longest.lstrip("-").replace("-", "_")
        self.action: str = settings.get("action") or "store"
        self.kind: Callable[[str], Any] = settings.get("type") or str
        self.nargs: str = settings.get("nargs") or ""
        self.choices: tuple[str, ...] | None = settings.get("choices")
        self.default: Any = settings.get("default", False if self.action == "store_true" else None)

    def put(self, values: dict[str, Any], text: str) -> None:
        """Add a value that was given."""
        try:
            value = self.kind(text)
        except Exception as error:
            raise _Unclear from error
        if self.choices is not None and value not in self.choices:
            raise _Unclear
        values[self.dest] = [*(values[self.dest] or ()), value] if self.action == "append" else value


_TRUTHS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}
"""What Go's flags take behind the ``=`` of a switch."""


class Parser:
    """The declarations of one command."""

    def __init__(self, program: str, usage: str, description: str) -> None:
        self._about = program, usage, description
        self._calls: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    def add_argument(self, *names: str, **settings: Any) -> None:
        """As argparse's, with the actions ``store``, ``store_true`` and ``append``."""
        self._calls.append((names, settings))

    def parse_args(self, arguments: list[str]) -> Options:
        """The values. Prints help or the error and exits where argparse does."""
        try:
            return Options(self._plain(arguments))
        except _Unclear:
            return Options(vars(self._argparse().parse_args(arguments)))

    def _plain(self, arguments: list[str]) -> dict[str, Any]:
        named: dict[str, _Declared] = {}
        expected: list[_Declared] = []
        values: dict[str, Any] = {}
        for names, settings in self._calls:
            one = _Declared(names, settings)
            values[one.dest] = one.default
            if names[0].startswith("-"):
                named |= dict.fromkeys(names, one)
            else:
                expected.append(one)
        begun = closed = False
        rest = iter(arguments)
        for text in rest:
            if expected and expected[0].nargs == REMAINDER:
                values[expected.pop(0).dest] = [text, *rest]
            elif text.startswith("-"):
                _read_option(named, text, rest, values)
                closed = begun  # argparse takes the arguments only where they stand together
            elif expected and not closed:
                expected.pop(0).put(values, text)
                begun = True
            else:
                raise _Unclear
        for one in expected:
            if not one.nargs:
                raise _Unclear
            if one.nargs == REMAINDER:
                values[one.dest] = []
        return values

    def _argparse(self) -> argparse.ArgumentParser:
        import argparse

        program, usage, description = self._about

        class Help(argparse.HelpFormatter):
            def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
                super().add_usage(usage, actions, groups, "Usage: ")

        def formatter(prog: str) -> argparse.HelpFormatter:
            # Without a width each of the many formatters that argparse makes asks the terminal for it.
            return Help(prog, width=_columns() - 2)

        parser = argparse.ArgumentParser(*(program, usage, description), allow_abbrev=False, formatter_class=formatter)
        for names, settings in self._calls:
            parser.add_argument(*names, **settings)
        return parser


def _read_option(named: dict[str, _Declared], text: str, rest: Any, values: dict[str, Any]) -> None:
    if not text.startswith("--") and f"-{text.partition('=')[0]}" in named:
        text = f"-{text}"  # Go's flags take one dash as well, and containerd writes -no-subreaper
    name, separator, value = text.partition("=") if text.startswith("--") else (text, "", "")
    one = named.get(name)
    if one is None or one.nargs:
        raise _Unclear
    if one.action == "store_true":
        if separator and value not in _TRUTHS:
            raise _Unclear
        values[one.dest] = not separator or _TRUTHS[value]
        return
    if not separator:
        value = next(rest, "-")
        if value.startswith("-"):
            raise _Unclear
    one.put(values, value)


def _columns() -> int:
    text = os.environ.get("COLUMNS", "")
    return max(40, int(text)) if text.isascii() and text.isdigit() else 80
