"""Route table: data, so that the API compatibility page is generated from it.

A template's ``{name}`` matches one path segment, ``{name*}`` one or more (image names hold slashes).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from engine.http.errors import HttpError
from engine.http.messages import Handler
from oci.errors import InvalidArgument, NotFound

API_VERSION = (1, 51)
MIN_API_VERSION = (1, 24)

_VERSION = re.compile(r"/v(\d+)\.(\d+)(/.*)")
_PLACE = re.compile(r"\{(\w+)(\*?)\}")


def version_text(version: tuple[int, int]) -> str:
    """``(1, 51)`` as ``1.51``."""
    return f"{version[0]}.{version[1]}"


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint; ``note`` is what the compatibility page says of it (empty: works in full)."""

    method: str
    template: str
    handler: Handler
    note: str = ""


def split_version(path: str) -> tuple[tuple[int, int], str]:
    """The API version a request asked for and the path behind it; raises ``InvalidArgument`` outside our range."""
    match = _VERSION.fullmatch(path)
    if match is None:
        return API_VERSION, path
    version = (int(match[1]), int(match[2]))
    if version > API_VERSION:
        raise InvalidArgument(
            f"client version {version_text(version)} is too new. "
            f"Maximum supported API version is {version_text(API_VERSION)}"
        )
    if version < MIN_API_VERSION:
        raise InvalidArgument(
            f"client version {version_text(version)} is too old. "
            f"Minimum supported API version is {version_text(MIN_API_VERSION)}, "
            "please upgrade your client to a newer version"
        )
    return version, match[3]


def _compile(template: str) -> re.Pattern[str]:
    out, at = [], 0
    for place in _PLACE.finditer(template):
        out.append(re.escape(template[at : place.start()]))
        out.append(f"(?P<{place[1]}>{'.+' if place[2] else '[^/]+'})")
        at = place.end()
    out.append(re.escape(template[at:]))
    return re.compile("".join(out))


class Router:
    """Finds the handler of a path; literal routes are one dictionary look-up."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._literal: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        by_template: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            methods = by_template.setdefault(route.template, {})
            if route.method in methods:
                raise ValueError(f"two routes for {route.method} {route.template}")
            methods[route.method] = route
        for template, methods in by_template.items():
            if "{" in template:
                self._patterns.append((_compile(template), methods))
            else:
                self._literal[template] = methods

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route for an unversioned ``path`` and its decoded parameters; raises ``NotFound`` or 405."""
        allowed: set[str] = set()
        methods = self._literal.get(path)
        if methods is not None:
            if method in methods:
                return methods[method], {}
            allowed.update(methods)
        for pattern, candidates in self._patterns:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if method in candidates:
                return candidates[method], {k: unquote(v) for k, v in match.groupdict().items()}
            allowed.update(candidates)
        if allowed:
            raise HttpError(405, f"method {method} is not allowed on {path}: use {', '.join(sorted(allowed))}")
        raise NotFound("page not found", hint=f"{method} {path} is not an endpoint of this engine")
