"""Export: which images and blobs an archive gets.

Rule: an image keeps its digest: an index is written as it is, with the platforms asked for (or here) below it.
"""

from __future__ import annotations

from collections.abc import Sequence

from containerd_py.archives.writer import Exported
from containerd_py.interfaces import ContentStore, Image, Scope
from containerd_py.transfer import graph, platforms
from oci.errors import NotFound
from oci.image import Descriptor, Index, Manifest, Platform


class Plan:
    """What goes into one archive."""

    def __init__(self, content: ContentStore, scope: Scope, wanted: Sequence[Platform], docker: bool) -> None:
        self._content = content
        self._scope = scope
        self._wanted = wanted
        self._docker = docker
        self.images: dict[str, Exported] = {}
        self.blobs: dict[str, Descriptor] = {}

    def add(self, image: Image, named: bool = True) -> None:
        """Add ``image``. Raises ``NotFound`` when nothing of it that was asked for is here."""
        target = Descriptor(image.target.media_type, image.target.digest, image.target.size)
        known = self.images.get(target.digest)
        names = (*(known.names if known else ()), *((image.name,) if named else ()))
        if known is None:
            shown = self._visit(target, image.name)
            known = Exported((), target, shown if self._docker else None)
        self.images[target.digest] = known._replace(names=tuple(dict.fromkeys(names)))

    def _visit(self, target: Descriptor, name: str) -> Manifest | None:
        """Add the blobs from ``target`` down; the manifest that ``docker load`` shall see."""
        if graph.is_index(target):
            return self._index(target, name)
        self.blobs[target.digest] = target
        if not graph.is_manifest(target):
            return None
        manifest = graph.read(self._content, self._scope, target, Manifest)
        for blob in (manifest.config, *manifest.layers):
            self._content.info(self._scope, blob.digest)
            self.blobs[blob.digest] = blob
        return manifest if all(graph.is_layer(layer) for layer in manifest.layers) else None

    def _index(self, target: Descriptor, name: str) -> Manifest | None:
        index = graph.read(self._content, self._scope, target, Index)
        self.blobs[target.digest] = target
        here = [one for one in index.manifests if graph.complete(self._content, self._scope, one)]
        chosen = platforms.select(here, self._wanted)
        if not chosen:
            raise NotFound(f"image {name}: no platform of it that was asked for is here", hint="pull it first")
        shown = {manifest.digest: self._visit(manifest, name) for manifest in chosen}
        best = platforms.best(platforms.host(), chosen) or chosen[0]
        return shown[best.digest]
