"""Image rows: the names under which a transfer's result is kept.

Rule: a name is written when everything it stands for is here, and replaces what it stood for before.
"""

from __future__ import annotations

import contextlib

from containerd_py.interfaces import Image, Scope
from containerd_py.transfer.model import Destination, ExtraName, Stores
from oci import reference as references
from oci.errors import AlreadyExists, InvalidArgument, NotFound
from oci.image import Descriptor


def save(stores: Stores, scope: Scope, name: str, target: Descriptor, labels: dict[str, str]) -> None:
    """Point ``name`` at ``target``, whether it existed or not."""
    image = Image(name, target, labels)
    while True:
        with contextlib.suppress(AlreadyExists):
            stores.images.create(scope, image)
            return
        with contextlib.suppress(NotFound):
            fields = ["target", *(f"labels.{key}" for key in labels)]
            stores.images.update(scope, image, fields)
            return


def of_archive(destination: Destination, given: str, digest: str) -> list[str]:
    """The names to keep an archive's image under: ``given`` is its name there ("" for none)."""
    found = [name for extra in destination.extra if extra.prefix and (name := _prefixed(extra, given, digest))]
    found += [extra.name for extra in destination.extra if not extra.prefix and extra.name]
    if destination.name:
        found.append(destination.name)
    if not destination.extra and not destination.name and (name := _canonical(given)):
        found.append(name)
    return list(dict.fromkeys(found))


def _prefixed(extra: ExtraName, given: str, digest: str) -> str:
    name = _canonical(given)
    if extra.name and given and not name:
        name = f"{extra.name}:{given}"  # an OCI layout that names its images by tags alone
    if name and extra.name and not name.startswith(extra.name):
        name = ""
    if name and not (extra.add_digest and extra.skip_named_digest):
        return name
    if not name and extra.add_digest and extra.name:
        return f"{extra.name}@{digest}"
    return name


def _canonical(given: str) -> str:
    """``given`` in full when it is a whole name; "" when it is a bare tag or nothing."""
    if "/" not in given and ":" not in given:
        return ""
    try:
        return str(references.parse(given).tagged())
    except InvalidArgument:
        return ""
