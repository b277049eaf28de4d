"""A busybox image made from the machine's own busybox, without a network; and an image store in memory."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence

import msgspec

from engine.images.records import Record
from oci import digest as digests
from oci.errors import NotFound
from oci.image import (
    MEDIA_CONFIG,
    MEDIA_LAYER_GZIP,
    MEDIA_MANIFEST,
    Descriptor,
    ExecutionConfig,
    History,
    ImageConfig,
    Manifest,
    RootFS,
)

APPLETS_SKIPPED = frozenset({"busybox", "init", "linuxrc"})
PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534::/home:/bin/false\n"
)
GROUP = "root:x:0:\ndaemon:x:1:\nwheel:x:10:root\nnobody:x:65534:\n"


def busybox_rootfs() -> bytes:
    """A tar of a small root file system: busybox, a link per applet, users, /tmp and a web page."""
    program = shutil.which("busybox")
    assert program, "busybox is missing: install busybox-static"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("www", 0o755)):
            _add(tar, name, tarfile.DIRTYPE, mode)
        with open(program, "rb") as file:
            _add(tar, "bin/busybox", tarfile.REGTYPE, 0o755, file.read())
        for applet in subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split():
            if applet not in APPLETS_SKIPPED:
                _add(tar, f"bin/{applet}", tarfile.SYMTYPE, 0o777, link="busybox")
        _add(tar, "etc/passwd", tarfile.REGTYPE, 0o644, PASSWD.encode())
        _add(tar, "etc/group", tarfile.REGTYPE, 0o644, GROUP.encode())
        _add(tar, "www/index.html", tarfile.REGTYPE, 0o644, b"served\n")
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, kind: bytes, mode: int, data: bytes = b"", link: str = "") -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(data), link
    entry.mtime = int(os.environ.get("SOURCE_DATE_EPOCH", "1700000000"))
    tar.addfile(entry, io.BytesIO(data))


class MemoryContainerd:
    """The calls of ``engine.images.containerd.Containerd`` that need no kernel, over dictionaries."""

    snapshotter = "overlayfs"

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.blobs: dict[str, bytes] = {}
        self.blob_labels: dict[str, dict[str, str]] = {}
        self.sizes: dict[str, int] = {}
        self.calls: list[str] = []

    def blob(self, data: bytes, media_type: str, labels: dict[str, str] | None = None) -> Descriptor:
        """Store ``data``."""
        digest = digests.of_bytes(data)
        self.blobs[digest] = data
        self.blob_labels[digest] = labels or {}
        return Descriptor(media_type, digest, len(data))

    def image(
        self,
        *names: str,
        layers: Sequence[str] = ("base",),
        created: str = "2024-01-02T03:04:05Z",
        parent: str = "",
        labels: dict[str, str] | None = None,
    ) -> str:
        """Add an image whose layers are called so, under ``names`` (dangling without); its id."""
        diff_ids = tuple(digests.of_bytes(layer.encode()) for layer in layers)
        for chain_id in digests.chain_ids(diff_ids):
            self.sizes[chain_id] = 100
        history = tuple(History(created=created, created_by=f"add {layer}") for layer in layers)
        config = ImageConfig(
            architecture="amd64",
            os="linux",
            created=created,
            config=ExecutionConfig(cmd=("sh",), labels=labels),
            rootfs=RootFS(diff_ids),
            history=history,
        )
        kept = {"org.mobyproject.image.parent": parent} if parent else {}
        config_blob = self.blob(msgspec.json.encode(config), MEDIA_CONFIG, kept)
        blobs = tuple(self.blob(layer.encode(), MEDIA_LAYER_GZIP) for layer in layers)
        manifest = self.blob(
            msgspec.json.encode(Manifest(config=config_blob, layers=blobs, media_type=MEDIA_MANIFEST)), MEDIA_MANIFEST
        )
        for name in names or (f"moby-dangling@{manifest.digest}",):
            self.records[name] = Record(name, manifest, created_at=1, updated_at=1)
        return config_blob.digest

    async def get(self, name: str) -> Record:
        self.calls.append(f"get {name}")
        if name not in self.records:
            raise NotFound(f"image {name}: not found")
        return self.records[name]

    async def list(self) -> list[Record]:
        return [self.records[name] for name in sorted(self.records)]

    async def put(self, name: str, target: Descriptor, labels: dict[str, str] | None = None) -> None:
        self.records[name] = Record(name, target, labels or {}, 2, 2)

    async def remove(self, name: str, *, sync: bool = False) -> None:
        self.records.pop(name, None)

    async def read(self, digest: str) -> bytes:
        if digest not in self.blobs:
            raise NotFound(f"content {digest}: not found")
        return self.blobs[digest]

    async def labels(self, digest: str) -> dict[str, str]:
        await self.read(digest)
        return self.blob_labels[digest]

    async def has(self, digest: str) -> bool:
        return digest in self.blobs

    async def snapshot_exists(self, key: str) -> bool:
        return key in self.sizes

    async def usage(self, key: str) -> int:
        if key not in self.sizes:
            raise NotFound(f"snapshot {key}: not found")
        return self.sizes[key]
