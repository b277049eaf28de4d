"""The corpus: one file per case, a Dockerfile with its context.

Rule: a case is text that a reader sees whole. The head has a sentence and ``key: value`` lines, then come files:

    builder: classic | buildkit | newest | expect     who else builds it (default: classic)
    args: --build-arg X=1                             further options of ``docker build``
    fails: REGEX                                      both must refuse it, in words like these
    differs: PATH REASON                              a file (or ``config.KEY``) that may differ

``-- NAME --`` begins a file, ``-- NAME (755) --`` one with a mode, ``-- NAME/ --`` a directory, ``-- NAME -> X --`` a
link, ``-- NAME (tar:gz) --`` an archive that is made here, ``(gzip)`` a packed text. ``EXPECT`` lists ``PATH MODE`` or
``PATH absent``, for what no builder at hand knows.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import shlex
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

CORPUS = Path(__file__).with_name("corpus")
_FILE = re.compile(r"^-- (?P<name>.+?)(?: -> (?P<link>\S+))?(?: \((?P<how>[a-z0-9:]+)\))? --$")
_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": lambda data: data,
    "tar:gz": lambda data: gzip.compress(data, mtime=0),
    "tar:bz2": bz2.compress,
    "tar:xz": lzma.compress,
}


class File(NamedTuple):
    """One file of a context."""

    name: str
    content: str
    link: str = ""
    how: str = ""


class Case(NamedTuple):
    """One case. ``differs`` maps paths to reasons; ``expected`` paths to a mode in octal, None for absent."""

    name: str
    builder: str
    args: tuple[str, ...]
    fails: str
    differs: dict[str, str]
    files: tuple[File, ...]
    expected: dict[str, int | None]

    def write(self, root: Path) -> None:
        """Make the context below ``root``."""
        for file in self.files:
            _write(root / file.name, file)


def read(path: Path) -> Case:
    """The case in ``path``."""
    head, files = _split(path.read_text())
    pairs = [line.partition(": ")[::2] for line in head if re.match(r"[a-z]+: ", line)]
    fields = {key: value for key, value in pairs if key != "differs"}
    differs = {value.split()[0]: value.split(None, 1)[1] for key, value in pairs if key == "differs"}
    listed = next((file.content for file in files if file.name == "EXPECT"), "")
    expected = {name: None if mode == "absent" else int(mode, 8) for name, mode in map(str.split, listed.splitlines())}
    return Case(
        name=path.stem,
        builder=fields.get("builder", "classic"),
        args=tuple(shlex.split(fields.get("args", ""))),
        fails=fields.get("fails", ""),
        differs=differs,
        files=tuple(file for file in files if file.name != "EXPECT"),
        expected=expected,
    )


def every() -> list[Case]:
    """The whole corpus, by name."""
    return [read(path) for path in sorted(CORPUS.glob("*.case"))]


def _split(text: str) -> tuple[list[str], list[File]]:
    head: list[str] = []
    files: list[File] = []
    for line in text.splitlines(keepends=True):
        match = _FILE.match(line.rstrip("\n"))
        if match is not None:
            files.append(File(match["name"], "", match["link"] or "", match["how"] or ""))
        elif files:
            files[-1] = files[-1]._replace(content=files[-1].content + line)
        else:
            head.append(line.strip())
    return head, files


def _write(path: Path, file: File) -> None:
    if file.name.endswith("/"):
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    if file.link:
        path.symlink_to(file.link)
    elif file.how in _PACKERS:
        path.write_bytes(_PACKERS[file.how](sample_tar()))
    elif file.how == "gzip":
        path.write_bytes(gzip.compress(file.content.encode(), mtime=0))
    elif not file.name.endswith("/"):
        path.write_text(file.content)
    if file.how.isdigit():
        path.chmod(int(file.how, 8))


def sample_tar() -> bytes:
    """An archive with owners, modes, links of both kinds, and names with a dot in front."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, mode, content, link in (
            ("dir", tarfile.DIRTYPE, 0o750, b"", ""),
            ("dir/file", tarfile.REGTYPE, 0o640, b"in the archive\n", ""),
            ("dir/link", tarfile.SYMTYPE, 0o777, b"", "file"),
            ("dir/hard", tarfile.LNKTYPE, 0o640, b"", "dir/file"),
            ("./dotted", tarfile.REGTYPE, 0o4755, b"x", ""),
            ("no/parent/entry", tarfile.REGTYPE, 0o600, b"y", ""),
            ("fifo", tarfile.FIFOTYPE, 0o622, b"", ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.linkname, info.size = kind, mode, link, len(content)
            info.uid, info.gid, info.mtime = 11, 12, 1_500_000_000
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()
