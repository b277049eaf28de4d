"""An image as Docker's JSON: list entries, inspect, history. Source: moby ``api/swagger.yaml``, versions 1.24 to 1.51.

Rule: shapes only; sizes are asked of ``Sizes``, which remembers what cannot change.
"""

from __future__ import annotations

import calendar
import re
from typing import Any

import msgspec

from engine.images.assembly import timestamp
from engine.images.catalog import Catalog
from engine.images.containerd import Containerd
from engine.images.records import Decoded, Image
from oci import digest as digests
from oci.errors import GantryError, NotFound
from oci.image import INDEX_TYPES, Descriptor, Index

Json = dict[str, Any]
Version = tuple[int, int]

ZERO_TIME = "0001-01-01T00:00:00Z"
_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(\.\d+)?(Z|z|[+-]\d\d:?\d\d)?")

LEGACY_CONFIG: Json = {
    "Hostname": "", "Domainname": "", "User": "", "AttachStdin": False, "AttachStdout": False, "AttachStderr": False,
    "Tty": False, "OpenStdin": False, "StdinOnce": False, "Env": None, "Cmd": None, "Image": "", "Volumes": None,
    "WorkingDir": "", "Entrypoint": None, "OnBuild": None, "Labels": None,
}  # fmt: skip
"""Fields that inspect shows below 1.50 whether or not the image has them."""


def unix_seconds(text: str) -> int:
    """An RFC 3339 time in seconds since the epoch; 0 for none."""
    return unix_nanoseconds(text) // 10**9


def unix_nanoseconds(text: str) -> int:
    """An RFC 3339 time in nanoseconds since the epoch; 0 for none or for nonsense."""
    match = _TIME.match(text)
    if match is None:
        return 0
    seconds = calendar.timegm(tuple(int(match[n]) for n in range(1, 7)))
    zone = (match[8] or "Z").replace(":", "")
    if zone not in "Zz":
        offset = int(zone[1:3]) * 3600 + int(zone[3:5]) * 60
        seconds -= offset if zone[0] == "+" else -offset
    return seconds * 10**9 + int(((match[7] or ".0")[1:] + "0" * 9)[:9])


def descriptor_json(descriptor: Descriptor) -> Json:
    """A descriptor in OCI's JSON."""
    value: Json = msgspec.to_builtins(descriptor)
    return value


class Sizes:
    """Bytes of snapshots and blobs."""

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self._usage: dict[str, int] = {}

    async def layer(self, chain_id: str) -> int | None:
        """Bytes of the layer that ends ``chain_id``, unpacked; None when it is not."""
        known = self._usage.get(chain_id)
        if known is None:
            try:
                known = self._usage[chain_id] = await self._containerd.usage(chain_id)
            except NotFound:
                return None
        return known

    async def layers(self, image: Decoded) -> list[int]:
        """Bytes of every layer, base first; of its blob where it is not unpacked."""
        chain = digests.chain_ids(image.config.rootfs.diff_ids)
        found = [await self.layer(chain_id) for chain_id in chain]
        blobs = [layer.size for layer in image.layers] + [0] * len(chain)
        return [blobs[n] if size is None else size for n, size in enumerate(found)]

    async def image(self, image: Decoded) -> int:
        """Bytes of all layers, shared or not."""
        return sum(await self.layers(image))

    async def shared(self, images: list[Image]) -> dict[str, int]:
        """By image id, the bytes of its layers that another of ``images`` has too."""
        users: dict[str, int] = {}
        for image in images:
            for chain_id in digests.chain_ids(image.decoded.config.rootfs.diff_ids):
                users[chain_id] = users.get(chain_id, 0) + 1
        shared: dict[str, int] = {}
        for image in images:
            chain = digests.chain_ids(image.decoded.config.rootfs.diff_ids)
            sizes = await self.layers(image.decoded)
            shared[image.id] = sum(size for chain_id, size in zip(chain, sizes, strict=True) if users[chain_id] > 1)
        return shared

    async def total(self, images: list[Image]) -> int:
        """Bytes of all layers of ``images``, each counted once."""
        seen: dict[str, int] = {}
        for image in images:
            chain = digests.chain_ids(image.decoded.config.rootfs.diff_ids)
            seen.update(zip(chain, await self.layers(image.decoded), strict=True))
        return sum(seen.values())


class Views:
    """Makes Docker's JSON of images."""

    def __init__(self, containerd: Containerd, catalog: Catalog, sizes: Sizes) -> None:
        self._containerd = containerd
        self._catalog = catalog
        self._sizes = sizes

    async def summary(self, image: Image, version: Version) -> Json:
        """One entry of ``GET /images/json``; ``SharedSize`` and ``Containers`` are -1 (not asked for)."""
        size = await self._sizes.image(image.decoded)
        dangling = image.dangling and version < (1, 43)
        entry: Json = {
            "Id": image.id,
            "ParentId": image.decoded.parent,
            "RepoTags": ["<none>:<none>"] if dangling else image.tags,
            "RepoDigests": ["<none>@<none>"] if dangling else image.digests,
            "Created": unix_seconds(image.decoded.config.created),
            "Size": size,
            "SharedSize": -1,
            "Labels": image.decoded.config.config.labels,
            "Containers": -1,
        }
        if version < (1, 44):
            entry["VirtualSize"] = size
        if version >= (1, 48):
            entry["Descriptor"] = descriptor_json(image.records[0].target)
        return entry

    async def inspect(self, image: Image, version: Version, *, manifests: bool = False) -> Json:
        """``GET /images/{name}/json``."""
        decoded, config = image.decoded, image.decoded.config
        raw = msgspec.json.decode(await self._containerd.read(decoded.id))
        size = await self._sizes.image(decoded)
        last_tagged = max((r.updated_at or r.created_at for r in image.records if not r.dangling), default=0)
        own_config = {k: v for k, v in (raw.get("config") or {}).items() if v not in (None, "", [], {}, False)}
        answer: Json = {
            "Id": image.id,
            "RepoTags": image.tags,
            "RepoDigests": image.digests,
            "Parent": decoded.parent,
            "Comment": config.history[-1].comment if config.history else "",
            "Created": config.created or ZERO_TIME,
            "DockerVersion": raw.get("docker_version", ""),
            "Author": config.author,
            "Config": {**LEGACY_CONFIG, **own_config} if version < (1, 50) else own_config,
            "Architecture": config.architecture,
            "Os": config.os,
            "Size": size,
            "GraphDriver": self._graph_driver(decoded),
            "RootFS": {"Type": "layers", "Layers": list(config.rootfs.diff_ids)},
            "Metadata": {"LastTagTime": timestamp(last_tagged) if last_tagged else ZERO_TIME},
        }
        if config.variant:
            answer["Variant"] = config.variant
        if raw.get("os.version"):
            answer["OsVersion"] = raw["os.version"]
        if version < (1, 44):
            answer["VirtualSize"] = size
        if version < (1, 45):
            answer |= {"Container": raw.get("container", ""), "ContainerConfig": dict(LEGACY_CONFIG)}
        if version >= (1, 48):
            answer["Descriptor"] = descriptor_json(image.records[0].target)
        if manifests:
            answer["Manifests"] = await self.manifests(image)
        return answer

    def _graph_driver(self, image: Decoded) -> Json:
        return {"Data": {"Snapshot": image.chain_id}, "Name": self._containerd.snapshotter}

    async def history(self, image: Image) -> list[Json]:
        """``GET /images/{name}/history``: newest first."""
        sizes = iter(await self._sizes.layers(image.decoded))
        config = image.decoded.config
        entries: list[Json] = [
            {
                "Id": "<missing>",
                "Created": unix_seconds(step.created),
                "CreatedBy": step.created_by,
                "Tags": None,
                "Size": 0 if step.empty_layer else next(sizes, 0),
                "Comment": step.comment,
            }
            for step in config.history
        ]
        entries.reverse()
        if entries:
            entries[0] |= {"Id": image.id, "Tags": image.tags or None}
        return entries

    async def manifests(self, image: Image) -> list[Json]:
        """The ``Manifests`` of an image: one object for each manifest of its index (or for its only one)."""
        target = image.records[0].target
        return [await self._manifest(image, descriptor) for descriptor in await self._catalog.children(target)]

    async def _manifest(self, image: Image, descriptor: Descriptor) -> Json:
        content, unpacked, here, chosen = descriptor.size, 0, True, None
        try:
            if descriptor.media_type not in INDEX_TYPES:
                chosen = await self._catalog.decode(descriptor)
                content += chosen.config_blob.size + sum(layer.size for layer in chosen.layers)
                if await self._containerd.snapshot_exists(chosen.chain_id):
                    unpacked = await self._sizes.image(chosen)
        except GantryError:
            here = False
        attests = descriptor.annotations.get("vnd.docker.reference.type") == "attestation-manifest"
        kind = "attestation" if attests else "image" if chosen is not None or not here else "unknown"
        value: Json = {
            "ID": descriptor.digest,
            "Descriptor": descriptor_json(descriptor),
            "Available": here,
            "Size": {"Content": content if here else 0, "Total": (content if here else 0) + unpacked},
            "Kind": kind,
        }
        if kind == "image":
            platform = descriptor.platform
            shown = (
                msgspec.to_builtins(platform)
                if platform is not None
                else {"architecture": image.decoded.config.architecture, "os": image.decoded.config.os}
            )
            value["ImageData"] = {"Platform": shown, "Size": {"Unpacked": unpacked}, "Containers": []}
        elif kind == "attestation":
            value["AttestationData"] = {"For": descriptor.annotations.get("vnd.docker.reference.digest", "")}
        return value

    async def index(self, target: Descriptor) -> Index | None:
        """The index behind ``target``; None when it is a manifest."""
        return await self._catalog.document(target, Index) if target.media_type in INDEX_TYPES else None
