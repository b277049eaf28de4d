"""Images out of ``docker save``, made comparable: the file system that the layers add up to, and the configuration.

Rule: what is left out is left out here and said: times of files, history texts, ids.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

CONFIG_KEYS = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "Healthcheck",
    "OnBuild", "Shell",
)  # fmt: skip


class Image(NamedTuple):
    """``files``: what is at each path, as text; ``config``: what the image says of itself; ``layers``: how many."""

    files: dict[str, str]
    config: dict[str, Any]
    layers: int


def images(archive: Path) -> dict[str, Image]:
    """Every tagged image of a ``docker save`` archive, by name without tag."""
    found: dict[str, Image] = {}
    layers: dict[str, list[tuple[str, str]]] = {}
    with tarfile.open(archive) as tar:
        for entry in json.load(_open(tar, "manifest.json")):
            config = json.load(_open(tar, entry["Config"]))
            for name in entry["Layers"]:
                if name not in layers:
                    layers[name] = _members(tar, name)
            image = Image(_flat([layers[name] for name in entry["Layers"]]), _comparable(config), len(entry["Layers"]))
            for tag in entry["RepoTags"] or ():
                found[tag.rpartition(":")[0].rpartition("/")[2]] = image
    return found


def _open(tar: tarfile.TarFile, name: str) -> Any:
    member = tar.getmember(name)
    if member.issym():
        # Older engines link equal layers to each other.
        member = tar.getmember(posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname)))
    file = tar.extractfile(member)
    assert file is not None
    return file


def _members(tar: tarfile.TarFile, name: str) -> list[tuple[str, str]]:
    """(path, description) of one layer, in order."""
    out: list[tuple[str, str]] = []
    known: dict[str, str] = {}
    with tarfile.open(fileobj=_open(tar, name), mode="r:*") as layer:
        for member in layer:
            path = posixpath.normpath("/" + member.name)
            if member.islnk():
                text = known[posixpath.normpath("/" + member.linkname)]
            else:
                file = layer.extractfile(member) if member.isreg() else None
                text = _described(member, file.read() if file is not None else b"")
            known[path] = text
            out.append((path, text))
    return out


def _described(member: tarfile.TarInfo, content: bytes) -> str:
    kind = {b"0": "file", b"\0": "file", b"2": "link", b"3": "char", b"4": "block", b"5": "dir", b"6": "fifo"}
    mode = "" if member.issym() else f" {member.mode & 0o7777:o}"
    text = f"{kind[member.type]}{mode} {member.uid}:{member.gid}"
    if member.issym():
        return f"{text} -> {member.linkname}"
    if member.isreg():
        shown = content.decode(errors="replace") if len(content) < 200 else hashlib.sha256(content).hexdigest()
        return f"{text} {len(content)} {shown!r}"
    return f"{text} {member.devmajor},{member.devminor}" if member.ischr() or member.isblk() else text


def _flat(layers: list[list[tuple[str, str]]]) -> dict[str, str]:
    files: dict[str, str] = {}
    for layer in layers:
        fresh: set[str] = set()
        for path, text in layer:
            parent, name = posixpath.split(path)
            if name == ".wh..wh..opq":
                _drop(files, parent, fresh, itself=False)
            elif name.startswith(".wh."):
                _drop(files, posixpath.join(parent, name[4:]), fresh, itself=True)
            else:
                if not text.startswith("dir"):
                    _drop(files, path, fresh, itself=True)
                files[path] = text
                fresh.add(path)
    files.pop("/", None)
    return files


def _drop(files: dict[str, str], path: str, fresh: set[str], *, itself: bool) -> None:
    below = path.rstrip("/") + "/"
    for name in [n for n in files if (n == path and itself) or n.startswith(below)]:
        if name not in fresh:
            del files[name]


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    inner = config.get("config") or {}
    found = {key: inner[key] for key in CONFIG_KEYS if inner.get(key)}
    found |= {key: config.get(key) for key in ("os", "architecture", "author") if config.get(key)}
    return found
