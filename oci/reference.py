"""Image references: ``[host[:port]/]path[:tag][@digest]`` (the grammar of the distribution project).

Rule: names are kept canonical (host always present) and shown familiar (Docker's defaults left out). A reference is
parsed once at the edge; inside, a ``Reference`` is passed, not text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from oci import digest as digests
from oci.errors import InvalidArgument

DEFAULT_HOST = "docker.io"
"""The registry of names without a host, as every Docker client assumes."""

_LEGACY_HOST = "index." + DEFAULT_HOST
OFFICIAL_PREFIX = "library/"
DEFAULT_TAG = "latest"
MAX_PATH = 255

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)


class Reference(NamedTuple):
    """A parsed name. ``tag`` and ``digest`` are empty when absent; ``str()`` gives the canonical text."""

    host: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """``host/path``, e.g. ``docker.io/library/busybox``."""
        return f"{self.host}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The name as Docker shows it: ``busybox``, ``user/image``, ``localhost:5000/image``."""
        if self.host != DEFAULT_HOST:
            return self.name
        rest = self.path.removeprefix(OFFICIAL_PREFIX)
        return self.path if "/" in rest else rest

    @property
    def familiar(self) -> str:
        """The whole reference as Docker shows it: ``busybox:latest``, ``busybox@sha256:…``."""
        return self.familiar_name + self._suffix()

    @property
    def name_only(self) -> bool:
        """Whether neither a tag nor a digest was given."""
        return not self.tag and not self.digest

    def tagged(self) -> Reference:
        """This reference with ``latest`` where neither a tag nor a digest was given."""
        return self._replace(tag=DEFAULT_TAG) if self.name_only else self

    def with_tag(self, tag: str) -> Reference:
        """This name with ``tag`` and no digest; raises ``InvalidArgument``."""
        if _TAG.fullmatch(tag) is None:
            raise InvalidArgument(f"invalid tag format {tag!r}")
        return self._replace(tag=tag, digest="")

    def with_digest(self, digest: str) -> Reference:
        """This name with ``digest`` and no tag; raises ``InvalidArgument``."""
        digests.parse(digest)
        return self._replace(tag="", digest=digest)

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return self.name + self._suffix()


def _split_host(name: str) -> tuple[str, str]:
    """(host, path): the first component is a host if it looks like one (dot, colon, upper case, ``localhost``)."""
    first, slash, rest = name.partition("/")
    if not slash or not (any(c in first for c in ".:[") or first == "localhost" or first.lower() != first):
        host, path = DEFAULT_HOST, name
    else:
        host, path = first, rest
    if host == _LEGACY_HOST:
        host = DEFAULT_HOST
    if host == DEFAULT_HOST and "/" not in path:
        path = OFFICIAL_PREFIX + path
    return host, path


def parse(text: str) -> Reference:
    """The reference that ``text`` (familiar or canonical) means; no tag is added.

    Raises ``InvalidArgument`` in Docker's words, for upper-case names and bare 64-hex ids too.
    """

    def bad(why: str = "") -> InvalidArgument:
        return InvalidArgument(f"invalid reference format{why and ': ' + why}")

    if digests.SHA256_HEX.fullmatch(text):
        raise InvalidArgument(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    rest, at, digest = text.partition("@")
    if at:
        try:
            digests.parse(digest)
        except InvalidArgument as error:
            raise bad(error.message) from None
    name, tag = rest, ""
    colon = rest.rfind(":")
    if colon > rest.rfind("/"):
        name, tag = rest[:colon], rest[colon + 1 :]
        if _TAG.fullmatch(tag) is None:
            raise bad()
    if not name:
        raise bad()
    host, path = _split_host(name)
    if _HOST.fullmatch(host) is None:
        raise bad()
    if _PATH.fullmatch(path) is None:
        raise bad(f"repository name ({path.removeprefix(OFFICIAL_PREFIX)}) must be lowercase" * (path.lower() != path))
    if len(path) > MAX_PATH:
        raise InvalidArgument(f"repository name must not be more than {MAX_PATH} characters")
    return Reference(host, path, tag, digest)
