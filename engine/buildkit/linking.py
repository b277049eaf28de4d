"""Results as inputs of other builds: targets of ``docker buildx bake`` that use each other as contexts.

Rule: a client gets a graph that says nothing but a name of ours, and sends it back unread.
"""

from __future__ import annotations

import hashlib
from typing import Any

from google.protobuf.message import DecodeError

from protos.buildkit.ops_pb2 import Definition, Input, Op, SourceOp

PREFIX = "docker-image://gantry.result/"


def definition_of(name: str) -> Definition:
    """The result ``name`` as a graph of one source."""
    source = Op(source=SourceOp(identifier=PREFIX + name)).SerializeToString()
    digest = f"sha256:{hashlib.sha256(source).hexdigest()}"
    definition = Definition()
    operations(definition).extend([source, Op(inputs=[Input(digest=digest)]).SerializeToString()])
    definition.metadata[digest].SetInParent()
    return definition


def name_in(definition: Definition) -> str:
    """The result that a graph of ours names; "" for other graphs."""
    for data in operations(definition):
        try:
            identifier = Op.FromString(data).source.identifier
        except DecodeError:
            return ""
        if identifier.startswith(PREFIX):
            return identifier.removeprefix(PREFIX)
    return ""


def operations(definition: Definition) -> Any:
    """The field ``def``, whose name is a word of the language."""
    return getattr(definition, "def")
