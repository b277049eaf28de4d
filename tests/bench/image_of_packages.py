"""A large image made from Debian packages: the same for every engine that is measured, and the limit beside them.

Rule: at least 500 MB unpacked, 20,000 files and 5 layers; packages come through apt's ordinary client.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import json
import os
import subprocess
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

from isal import igzip_lib, isal_zlib

from oci.image import MEDIA_CONFIG, MEDIA_INDEX, MEDIA_LAYER_GZIP, MEDIA_MANIFEST
from tests.support.images import busybox_rootfs

HEADERS = "linux-headers-amd64"
"""A package that only names the newest kernel's headers."""
LAYERS: tuple[tuple[str, ...], ...] = (
    ("golang-1.19-src",),
    (HEADERS,),
    ("gcc-12", "cpp-12", "g++-12", "binutils-x86-64-linux-gnu"),
    ("vim-runtime", "git", "perl-modules-5.36", "python3-numpy", "libpython3.11-stdlib"),
    ("golang-1.19-go",),
)


class Facts(NamedTuple):
    """What the image is: bytes and files unpacked, bytes compressed, layers; ``layout`` holds it as an OCI layout."""

    layout: Path
    files: int
    plain: int
    compressed: int
    layers: int

    def __str__(self) -> str:
        sizes = f"{self.plain / 1e6:.0f} MB in {self.files} files, {self.compressed / 1e6:.0f} MB compressed"
        return f"{self.layers} layers, {sizes}"


def make(directory: Path, layers: tuple[tuple[str, ...], ...] = LAYERS) -> Facts:
    """Download the packages and write the image as ``directory``/layout, tag ``bench``."""
    tars = [busybox_rootfs()]
    for number, packages in enumerate(layers):
        root = directory / f"layer{number}"
        for archive in _downloaded(directory / "packages", packages):
            subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
        tars.append(_packed(root))
    return _written(directory / "layout", tars)


def _downloaded(directory: Path, packages: tuple[str, ...]) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    found = []
    for package in packages:
        for name in _headers() if package == HEADERS else (package,):
            place = directory / name
            place.mkdir(exist_ok=True)
            subprocess.run(["apt-get", "download", "-q", name], cwd=place, check=True, stdout=subprocess.DEVNULL)
            found += sorted(place.glob("*.deb"))
    return found


def _headers() -> list[str]:
    out = subprocess.run(["apt-cache", "depends", HEADERS], check=True, capture_output=True, text=True).stdout
    name = next(line.split()[1] for line in out.splitlines() if line.strip().startswith("Depends:"))
    return [name, name.removesuffix("-amd64") + "-common"]


def _packed(root: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            tar.add(path, str(path.relative_to(root)), recursive=False)
    return out.getvalue()


def _written(layout: Path, tars: list[bytes]) -> Facts:
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    diffs, layers, files, plain, compressed = [], [], 0, 0, 0
    for data in tars:
        packer = isal_zlib.compressobj(level=3, wbits=31)
        packed = packer.compress(data) + packer.flush()
        diffs.append("sha256:" + hashlib.sha256(data).hexdigest())
        layers.append(blob(packed, MEDIA_LAYER_GZIP))
        compressed += len(packed)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                files, plain = files + 1, plain + member.size
    rootfs = {"type": "layers", "diff_ids": diffs}
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["true"]}, "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MEDIA_MANIFEST,
        "config": blob(json.dumps(config).encode(), MEDIA_CONFIG),
        "layers": layers,
    }
    target = blob(json.dumps(manifest).encode(), MEDIA_MANIFEST)
    entry = {**target, "annotations": {"org.opencontainers.image.ref.name": "bench"}}
    index = {"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": [entry]}
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return Facts(layout, files, plain, compressed, len(tars))


def limit(layout: Path) -> float:
    """Seconds that hashing the blobs, decompressing and hashing the plain bytes take alone, on all processors."""
    blobs = sorted((layout / "blobs/sha256").iterdir(), key=lambda path: -path.stat().st_size)
    with concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(_checked, blobs[:1]))  # warm
        began = time.perf_counter()
        list(pool.map(_checked, blobs))
        return time.perf_counter() - began


def _checked(blob: Path) -> None:
    compressed, plain = hashlib.sha256(), hashlib.sha256()
    inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    with blob.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        while data := file.read(1 << 20):
            compressed.update(data)
            if packed and not inflater.eof:
                plain.update(inflater.decompress(data))
