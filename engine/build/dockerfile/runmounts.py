"""``RUN --mount=…``: one comma-separated list of options per mount.

Source: docs.docker.com "Dockerfile reference", RUN --mount.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.build.dockerfile.errors import DockerfileError, Lines

TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARING = ("shared", "private", "locked")
_ALIASES = {"dst": "target", "destination": "target", "src": "source", "ro": "readonly", "rw": "readwrite"}
_ALLOWED = {
    "bind": {"target", "source", "from", "readwrite", "readonly"},
    "cache": {"id", "target", "readonly", "readwrite", "sharing", "from", "source", "mode", "uid", "gid"},
    "tmpfs": {"target", "size"},
    "secret": {"id", "target", "source", "env", "required", "mode", "uid", "gid"},
    "ssh": {"id", "target", "source", "required", "mode", "uid", "gid"},
}
_BOOLEAN = {"readonly", "readwrite", "required"}
_SIZE = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class RunMount(NamedTuple):
    """One mount; ``from_`` names a stage or an image. ``mode`` is octal, None for the type's default."""

    type: str
    target: str = ""
    source: str = ""
    from_: str = ""
    id: str = ""
    env: str = ""
    read_only: bool = False
    sharing: str = "shared"
    required: bool = False
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    size: int = 0


def parse_mount(text: str, lines: Lines) -> RunMount:
    """The mount that ``text`` describes. Raises ``DockerfileError``."""

    def bad(why: str, hint: str = "") -> DockerfileError:
        return DockerfileError(f"RUN --mount={text}: {why}", lines, hint=hint)

    options: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        name = _ALIASES.get(key.strip().lower(), key.strip().lower())
        if not equals and name not in _BOOLEAN:
            raise bad(f"invalid field {part!r} must be a key=value pair")
        options[name] = value if equals else "true"
    kind = options.pop("type", "bind")
    if kind not in TYPES:
        raise bad(f"unsupported mount type {kind!r}", f"one of {', '.join(TYPES)}")
    unknown = sorted(set(options) - _ALLOWED[kind])
    if unknown:
        raise bad(
            f"unexpected key {unknown[0]!r} for mount type {kind!r}", f"it takes {', '.join(sorted(_ALLOWED[kind]))}"
        )
    if kind in ("bind", "cache", "tmpfs") and not options.get("target"):
        raise bad("target is required")
    sharing = options.get("sharing", "shared")
    if sharing not in SHARING:
        raise bad(f"unsupported sharing value {sharing!r}", f"one of {', '.join(SHARING)}")
    try:
        return RunMount(
            type=kind,
            target=options.get("target", ""),
            source=options.get("source", ""),
            from_=options.get("from", ""),
            id=options.get("id", ""),
            env=options.get("env", ""),
            read_only=_read_only(kind, options),
            sharing=sharing,
            required=_boolean(options.get("required", "false")),
            mode=int(options["mode"], 8) if "mode" in options else None,
            uid=int(options.get("uid", "0")),
            gid=int(options.get("gid", "0")),
            size=_bytes(options.get("size", "0")),
        )
    except ValueError as error:
        raise bad(str(error)) from None


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(f"invalid boolean {text!r}")
    return text.lower() in ("true", "1")


def _read_only(kind: str, options: dict[str, str]) -> bool:
    """bind mounts are read-only unless said otherwise, caches the other way round."""
    if "readwrite" in options:
        return not _boolean(options["readwrite"])
    if "readonly" in options:
        return _boolean(options["readonly"])
    return kind == "bind"


def _bytes(text: str) -> int:
    unit = text[-1:].lower() if text[-1:].isalpha() else ""
    digits = text[: len(text) - len(unit)]
    if unit not in _SIZE or not digits.isdigit():
        raise ValueError(f"invalid size {text!r}")
    return int(digits) * _SIZE[unit]
