"""JSON without the ``json`` package, which imports ``re``: its scanner and encoder in C are called directly.

Rule: the same documents in and out as ``json.loads`` and ``json.dumps``. Whatever the short way does not take goes the
long way, through ``json`` itself, so that errors read as everywhere else.
"""

from __future__ import annotations

import _json

from runc_py.light import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


class _Settings:
    """What the scanner asks its decoder for."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int = float, int
    parse_constant = {"-Infinity": -float("inf"), "Infinity": float("inf"), "NaN": float("nan")}.__getitem__
    memo: dict[str, str] = {}  # noqa: RUF012 -- shared, as the decoder's is


_scan = _json.make_scanner(_Settings)  # type: ignore[arg-type] # typeshed wants a decoder, C takes its attributes
_BLANKS = " \t\n\r"


def loads(data: bytes | str) -> Any:
    """``json.loads``."""
    try:
        text = (data if isinstance(data, str) else data.decode("utf-8")).strip(_BLANKS)
        value, end = _scan(text, 0)
        if end == len(text):
            return value
    except (StopIteration, ValueError):
        pass  # not JSON, or not UTF-8: the package says what is wrong, or knows the encoding
    import json

    return json.loads(data)


def dumps(value: Any, *, sort_keys: bool = False) -> str:
    """``json.dumps``."""
    encode = _json.make_encoder(*({}, _refuse, _json.encode_basestring_ascii, None, ": ", ", ", sort_keys, False, True))
    return "".join(encode(value, 0))


def dumps_indented(value: Any, indent: str = "  ", before: str = "\n") -> str:
    """``json.dumps(value, indent=2)``."""
    if not value or not isinstance(value, (dict, list, tuple)):
        return dumps(value)
    inside = before + indent
    if isinstance(value, dict):
        parts = [f"{dumps(str(name))}: {dumps_indented(item, indent, inside)}" for name, item in value.items()]
        return f"{{{inside}{f',{inside}'.join(parts)}{before}}}"
    return f"[{inside}{f',{inside}'.join([dumps_indented(item, indent, inside) for item in value])}{before}]"


def _refuse(value: object) -> object:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
