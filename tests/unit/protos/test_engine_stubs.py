"""The engine's stubs, made from descriptions, call what the generated ones call; grpc waits until it is needed."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

import protos.containerd
from engine.stubs import Stub

METADATA = (("containerd-namespace", "moby"),)
SERVICES = [
    (module, service)
    for found in pkgutil.iter_modules(protos.containerd.__path__, "protos.containerd.")
    if found.name.endswith("_pb2_grpc")
    for module in [importlib.import_module(found.name.removesuffix("_grpc"))]
    for service in module.DESCRIPTOR.services_by_name
]


class Recorder:
    """A channel whose methods tell how they were made and called."""

    def __getattr__(self, kind: str) -> Any:
        def made(path: str, *, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
            return lambda **named: (kind, path, request_serializer, response_deserializer, named.get("metadata"))

        return made


@pytest.mark.parametrize(("module", "service"), SERVICES, ids=lambda value: getattr(value, "__name__", value))
def test_methods_are_those_of_the_generated_stubs(module: ModuleType, service: str) -> None:
    generated = getattr(importlib.import_module(f"{module.__name__}_grpc"), f"{service}Stub")(Recorder())
    ours = Stub(module.DESCRIPTOR.services_by_name[service], Recorder(), METADATA)
    assert vars(generated)
    for name, theirs in vars(generated).items():
        assert getattr(ours, name)() == (*theirs()[:-1], METADATA)
        assert getattr(ours, name)(metadata=()) == (*theirs()[:-1], ())
    with pytest.raises(AttributeError, match=service):
        ours.Missing  # noqa: B018 -- it is the looking that raises


def test_an_engine_starts_without_grpc() -> None:
    program = "import sys, engine.app; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
