"""Which base images can be made here, and the making: files gathered, packed the same way every time, imported.

Rule: the same packages give the same image id, on any machine and at any time; ``SOURCE_DATE_EPOCH`` fixes the date.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator

from engine.images.assembly import timestamp
from engine.images.bootstrap import busybox, debian
from engine.images.bootstrap.apt import Apt
from engine.images.bootstrap.tree import Packer, newest, pieces
from engine.images.importing import Importer
from engine.images.progress import Json, human
from oci.errors import InvalidArgument
from oci.reference import Reference

DISTRIBUTIONS = ("debian", "ubuntu")


def fixed_epoch() -> int | None:
    """``SOURCE_DATE_EPOCH`` of the engine's environment."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(text) if text.isdigit() else None


class Bootstrapper:
    """Makes base images."""

    def __init__(self, importer: Importer) -> None:
        self._importer = importer

    async def make(self, recipe: str, reference: Reference) -> AsyncGenerator[Json, None]:
        """``busybox``, ``debian[:suite]`` or ``ubuntu[:suite]`` as ``reference``; progress in Docker's messages."""
        name, _, suite = recipe.partition(":")
        if name not in ("busybox", *DISTRIBUTIONS) or (name == "busybox" and suite not in ("", "latest")):
            raise InvalidArgument(
                f"no recipe for {recipe!r}", hint="bootstrap knows busybox, debian[:SUITE] and ubuntu[:SUITE]"
            )
        base = tempfile.mkdtemp(prefix="gantry-bootstrap-")
        try:
            steps = self._busybox(base) if name == "busybox" else self._distribution(name, suite, base)
            settings: Json = {}
            async for message in steps:
                if "settings" in message:
                    settings = message["settings"]
                else:
                    yield message
            yield {"status": f"Storing {human(os.path.getsize(f'{base}/root.tar'))} as {reference.familiar}"}
            with open(f"{base}/root.tar", "rb") as tar:
                decoded = await self._importer.import_archive(
                    pieces(tar), reference, settings["comment"], settings["changes"], created=settings["created"]
                )
            yield {"status": f"Status: Made {reference.familiar}"}
            yield {"aux": {"ID": decoded.id}}
        finally:
            await asyncio.to_thread(shutil.rmtree, base, ignore_errors=True)

    async def _busybox(self, base: str) -> AsyncIterator[Json]:
        yield {"status": "Looking for a static busybox", "id": "busybox"}
        program = await busybox.find_program(base)
        found = fixed_epoch()
        epoch = int(os.stat(program).st_mtime) if found is None else found
        with open(f"{base}/root.tar", "wb") as out:
            count = await asyncio.to_thread(busybox.pack, program, out, epoch)
        yield {"status": f"Packed with {count} applets", "id": "busybox"}
        yield {"settings": _settings("busybox from package busybox-static", 'CMD ["sh"]', epoch)}

    async def _distribution(self, name: str, suite: str, base: str) -> AsyncIterator[Json]:
        yield {"status": "Reading package lists", "id": name}
        apt = Apt(f"{base}/apt")
        suite = await apt.use(name, "" if suite == "latest" else suite)
        planned = await apt.planned(*debian.PACKAGES)
        total = sum(size for _, size in planned)
        yield {"status": f"Downloading {len(planned)} packages, {human(total)}", "id": suite}
        task = asyncio.create_task(apt.download(*debian.PACKAGES))
        try:
            async for message in _watch(task, apt.archives, total, suite):
                yield message
            packages = await task
        finally:
            task.cancel()
        root = f"{base}/root"
        os.mkdir(root, 0o755)
        yield {"status": f"Unpacking {len(packages)} packages", "id": suite}
        await debian.unpack(packages, root)
        fixed = fixed_epoch()
        epoch = newest(root) if fixed is None else fixed
        yield {"status": "Configuring", "id": suite}
        await debian.configure(packages, root, epoch)
        yield {"status": "Packing", "id": suite}
        await asyncio.to_thread(self._pack, root, f"{base}/root.tar", epoch, debian.sources_of(apt))
        yield {"settings": _settings(f"{name} {suite} from its packages", 'CMD ["bash"]', epoch)}

    @staticmethod
    def _pack(root: str, path: str, epoch: int, sources: str) -> None:
        debian.clean(root, epoch, sources)
        with open(path, "wb") as out:
            packer = Packer(out, epoch)
            packer.tree(root)
            packer.close()


async def _watch(task: asyncio.Task[list[str]], directory: str, total: int, name: str) -> AsyncIterator[Json]:
    """How much of ``total`` bytes is there, until ``task`` is done."""
    while not task.done():
        await asyncio.wait({task}, timeout=0.3)
        current = sum(
            e.stat().st_size for d in (directory, f"{directory}/partial") for e in os.scandir(d) if e.is_file()
        )
        yield {"status": "Downloading", "progressDetail": {"current": min(current, total), "total": total}, "id": name}


def _settings(comment: str, command: str, epoch: int) -> Json:
    path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"comment": comment, "changes": [path, command], "created": timestamp(epoch * 10**9)}
