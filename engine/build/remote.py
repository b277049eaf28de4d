"""What ADD and ``docker build URL`` fetch: files over HTTP, repositories over git.

Rule: what is fetched becomes a ``Context`` like any other; a checksum that was given is checked before use.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import hashlib
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple
from urllib.parse import urlsplit

from engine.build.context import Context
from oci import digest as digests
from oci.errors import DataLoss, InvalidArgument, Unavailable

FILE_MODE = 0o600
_GIT = re.compile(r"(?:git://|git@|ssh://git@|https?://[^#?]*\.git(?:[#?]|$)).*")
CLONE_SECONDS = 600


class Fetched(NamedTuple):
    """Something fetched. ``is_tree``: a repository, whose root is ``tree``; else one file called ``name``."""

    url: str
    tree: Context
    name: str
    is_tree: bool


def is_url(text: str) -> bool:
    """Whether ADD fetches ``text`` over HTTP."""
    return text.startswith(("http://", "https://"))


def is_git(text: str) -> bool:
    """Whether ``text`` names a git repository."""
    return _GIT.fullmatch(text) is not None


async def fetch(text: str, checksum: str, spool: str, *, keep_git_dir: bool = False) -> AbstractContextManager[Fetched]:
    """Fetch ``text``. Raises ``Unavailable``, ``InvalidArgument``, ``DataLoss`` (checksum)."""
    if is_git(text):
        if checksum and not re.fullmatch(r"[0-9a-f]{7,64}", checksum):
            raise InvalidArgument(f"invalid checksum {checksum!r} for a git source: a commit's hash is expected")
        context = await clone(text, spool, keep_git_dir=keep_git_dir, commit=checksum)
        return _closing(Fetched(text, context, "", True))
    if checksum:
        digests.parse(checksum)
    context = Context(spool)
    try:
        name = await _download(text, checksum, context)
    except BaseException:
        context.close()
        raise
    return _closing(Fetched(text, context, name or "download", False))


@contextlib.contextmanager
def _closing(fetched: Fetched) -> Iterator[Fetched]:
    try:
        yield fetched
    finally:
        fetched.tree.close()


async def _download(url: str, checksum: str, context: Context) -> str:
    import aiohttp

    name = posixpath.basename(urlsplit(url).path)
    digest = hashlib.sha256()
    try:
        async with aiohttp.ClientSession(trust_env=True) as session, session.get(url) as answer:
            if answer.status >= 400:
                raise Unavailable(f"failed to download {url}: invalid response status {answer.status} {answer.reason}")
            modified = email.utils.parsedate_to_datetime(answer.headers["Last-Modified"]) if (
                "Last-Modified" in answer.headers
            ) else None  # fmt: skip
            with context.adding(name or "download", FILE_MODE, int(modified.timestamp()) if modified else 0) as write:
                async for piece in answer.content.iter_chunked(1 << 16):
                    digest.update(piece)
                    write(piece)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise Unavailable(f"failed to download {url}: {error}") from None
    if checksum and checksum != f"sha256:{digest.hexdigest()}":
        raise DataLoss(f"{url}: digest mismatch sha256:{digest.hexdigest()}, expected {checksum}")
    return name


async def clone(text: str, spool: str, *, keep_git_dir: bool = False, commit: str = "") -> Context:
    """The files of a repository ``URL[#REF[:DIRECTORY]]``."""
    url, _, fragment = text.partition("#")
    reference, _, directory = fragment.partition(":")
    if shutil.which("git") is None:
        raise Unavailable(f"cannot fetch {url}: the git program is missing", hint="apt-get install git")
    work = await asyncio.to_thread(tempfile.mkdtemp, prefix="git-", dir=os.path.dirname(spool))
    try:
        await _git("init", "--quiet", work)
        await _git("-C", work, "fetch", "--quiet", "--depth", "1", "--", url, commit or reference or "HEAD")
        await _git("-C", work, "checkout", "--quiet", "FETCH_HEAD")
        root = posixpath.normpath(posixpath.join(work, directory.lstrip("/")))
        if os.path.commonpath([os.path.realpath(root), os.path.realpath(work)]) != os.path.realpath(work):
            raise InvalidArgument(f"{text}: the directory is outside of the repository")
        return await asyncio.to_thread(_indexed, root, spool, keep_git_dir)
    finally:
        await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)


async def _git(*arguments: str) -> None:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_PROTOCOL_FROM_USER": "0"}
    process = await asyncio.create_subprocess_exec(
        "git", *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    try:
        _, told = await asyncio.wait_for(process.communicate(), CLONE_SECONDS)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode:
        lines = told.decode(errors="replace").strip().splitlines()
        raise Unavailable(f"git {arguments[-2]} {arguments[-1]}: {lines[-1] if lines else 'failed'}")


def _indexed(root: str, spool: str, keep_git_dir: bool) -> Context:
    """The files below ``root`` as a context."""
    context = Context(spool)
    try:
        for directory, names, files in os.walk(root):
            if not keep_git_dir and directory == root and ".git" in names:
                names.remove(".git")
            for name in sorted([*names, *files]):
                path = os.path.join(directory, name)
                context.add_path(os.path.relpath(path, root), path)
    except BaseException:
        context.close()
        raise
    return context
