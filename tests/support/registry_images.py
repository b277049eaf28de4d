"""Small images for registry tests, written as OCI layouts without any engine."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

from oci.image import MEDIA_CONFIG, MEDIA_INDEX, MEDIA_LAYER_GZIP, MEDIA_MANIFEST


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def files_tar(files: dict[str, bytes]) -> bytes:
    """A plain layer of files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


class Layout:
    """An OCI layout under construction in ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = ""
        self.index = ""
        self.raw = b""
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Store ``data``; its descriptor."""
        digest = sha256(data)
        (self.path / "blobs/sha256" / digest.removeprefix("sha256:")).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def document(self, value: dict[str, Any], media_type: str) -> dict[str, Any]:
        return self.blob(json.dumps(value, indent=1).encode(), media_type)

    def image(self, architecture: str, layers: list[bytes], **more: Any) -> dict[str, Any]:
        """An image of plain layers, gzipped here; the descriptor of its manifest."""
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MEDIA_MANIFEST,
            "config": self.document(config, MEDIA_CONFIG),
            "layers": [self.blob(gzip.compress(layer, 1, mtime=0), MEDIA_LAYER_GZIP) for layer in layers],
            **more,
        }
        return self.document(manifest, MEDIA_MANIFEST)

    def finish(self, target: dict[str, Any], name: str, tag: str) -> None:
        """Write ``index.json`` with the one image."""
        annotations = {"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": name}
        entry = {**target, "annotations": annotations}
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        self.name, self.index = name, target["digest"]
        self.raw = (self.path / "blobs/sha256" / self.index.removeprefix("sha256:")).read_bytes()

    def archive(self) -> bytes:
        """The layout in a tar."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for path in sorted(self.path.rglob("*")):
                tar.add(path, str(path.relative_to(self.path)), recursive=False)
        return out.getvalue()


def index_layout(
    path: Path, seed: int = 1, architectures: tuple[str, ...] = ("arm64", "amd64"), size: int = 50_000
) -> Layout:
    """An index with one image per architecture, an attestation for the first, and annotations nobody knows."""
    layout = Layout(path)
    manifests = []
    for number, architecture in enumerate(architectures):
        noise = random.Random(seed * 100 + number).randbytes(size)
        layers = [files_tar({"shared": b"shared"}), files_tar({architecture: noise})]
        image = layout.image(architecture, layers, annotations={"org.example.unknown": "kept"}, unknownField={"a": 1})
        manifests.append({**image, "platform": {"architecture": architecture, "os": "linux"}})
    manifests.append(_attestation(layout, manifests[0]["digest"]))
    index = {"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": manifests, "unknown": [1]}
    index["annotations"] = {"org.example": "index"}
    layout.finish(layout.document(index, MEDIA_INDEX), f"docker.io/library/multi{seed}:latest", "multi")
    return layout


def _attestation(layout: Layout, of: str) -> dict[str, Any]:
    """What BuildKit puts beside an image ``of`` that digest."""
    unknown = {"architecture": "unknown", "os": "unknown"}
    config = {**unknown, "rootfs": {"type": "layers", "diff_ids": [sha256(b"")]}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MEDIA_MANIFEST,
        "config": layout.document(config, MEDIA_CONFIG),
        "layers": [layout.blob(b'{"_type":"https://in-toto.io/Statement/v0.1"}', "application/vnd.in-toto+json")],
    }
    marks = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": of}
    return {**layout.document(manifest, MEDIA_MANIFEST), "annotations": marks, "platform": unknown}
