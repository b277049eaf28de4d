"""Media types of layers: what can be applied, and what each says about compression.

Rule: what is not listed is refused by name, so that an encrypted or a foreign format is never taken for a tar.
"""

from __future__ import annotations

from oci.errors import Unimplemented
from oci.image import DOCKER_LAYER, DOCKER_LAYER_GZIP, MEDIA_LAYER, MEDIA_LAYER_GZIP, MEDIA_LAYER_ZSTD

UNCOMPRESSED = "containerd.io/uncompressed"
"""Label of a layer blob: the digest of its plain tar."""

_NON_DISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_COMPRESSION = {
    MEDIA_LAYER: "",
    MEDIA_LAYER_GZIP: "gzip",
    MEDIA_LAYER_ZSTD: "zstd",
    DOCKER_LAYER: "",
    DOCKER_LAYER_GZIP: "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
    _NON_DISTRIBUTABLE: "",
    f"{_NON_DISTRIBUTABLE}+gzip": "gzip",
    f"{_NON_DISTRIBUTABLE}+zstd": "zstd",
    _DOCKER_FOREIGN: "",
    f"{_DOCKER_FOREIGN}.gzip": "gzip",
}


def check_layer(media_type: str) -> None:
    """Raises ``Unimplemented`` unless blobs of ``media_type`` can be applied."""
    if media_type not in _COMPRESSION:
        raise Unimplemented(f"cannot apply layers of media type {media_type!r}")


def compression(media_type: str) -> tuple[str, str]:
    """(media type, compression) to write; "" stands for OCI gzip. Raises ``Unimplemented``."""
    wanted = media_type or MEDIA_LAYER_GZIP
    if wanted not in _COMPRESSION:
        raise Unimplemented(f"unsupported diff media type: {media_type}")
    return wanted, _COMPRESSION[wanted]
