"""What a BuildKit client asks of a build: the front end's attributes as our options.

Rule: what cannot be done is refused in words, before anything is built. Source: buildkit ``frontend/dockerui`` and
``frontend/dockerfile/builder`` for the names of attributes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from engine.build.options import BuildOptions
from engine.containers.config import HostConfig, Ulimit
from engine.platforms import parse_platform
from oci.errors import InvalidArgument, Unimplemented
from oci.image import Platform

FRONTEND, GATEWAY = "dockerfile.v0", "gateway.v0"
SYNTAX_ARGUMENT = "BUILDKIT_SYNTAX"
LINT = "frontend.lint"
NOTHING: Mapping[str, str] = MappingProxyType({})
OFF = ("disabled=true", "false")
OURS = ("docker/dockerfile", "docker.io/docker/dockerfile", "docker/dockerfile-upstream")


class CacheEntry(NamedTuple):
    """A cache to read from or to write to: ``registry``, ``inline``, ``local``, …"""

    type: str
    attributes: Mapping[str, str]


class BuildRequest(NamedTuple):
    """One build. ``attributes`` are the front end's, ``options`` what the solver understands of them.

    ``inputs``: results of other builds, by the key that ``input:`` refers to.
    """

    attributes: Mapping[str, str]
    options: BuildOptions
    inputs: Mapping[str, str] = {}

    @property
    def filename(self) -> str:
        return self.options.dockerfile

    @property
    def checks_only(self) -> bool:
        """Whether the checks' findings are wanted, and no image."""
        return self.attributes.get("requestid") == LINT

    @property
    def context(self) -> str:
        """Where the context is when it is no directory of the client: an address, or an upload."""
        return self.attributes.get("context", "")

    @property
    def context_key(self) -> str:
        """What the client calls the directory."""
        return self.attributes.get("contextkey", "context")

    @property
    def dockerfile_key(self) -> str:
        """What it calls the one with the Dockerfile; empty when that is in an address's context."""
        return self.attributes.get("dockerfilekey", "" if self.context else "dockerfile")

    @property
    def named(self) -> dict[str, str]:
        """Contexts by the name they replace."""
        return _prefixed(self.attributes, "context:")


def build_request(
    frontend: str, attributes: Mapping[str, str], caches: Iterable[CacheEntry], inputs: Mapping[str, str] = NOTHING
) -> BuildRequest:
    """The build that ``frontend`` is asked for. Raises ``Unimplemented``, ``InvalidArgument``."""
    if frontend == GATEWAY:
        _check_front_end(attributes.get("source", ""))
    if frontend not in (FRONTEND, GATEWAY):
        raise Unimplemented(f"unknown frontend: {frontend}", hint="the Dockerfile language is built in")
    _refuse(attributes, inputs)
    arguments = _prefixed(attributes, "build-arg:")
    _check_front_end(arguments.get(SYNTAX_ARGUMENT, ""))
    stages = attributes.get("no-cache")
    options = BuildOptions(
        dockerfile=attributes.get("filename", "") or "Dockerfile",
        target=attributes.get("target", ""),
        build_args={name: value for name, value in arguments.items() if name != SYNTAX_ARGUMENT},
        labels=_prefixed(attributes, "label:"),
        platform=_platform(attributes.get("platform", "")),
        no_cache=stages == "",
        no_cache_stages=tuple((stages or "").split(",")) if stages else (),
        pull=attributes.get("image-resolve-mode") == "pull",
        network=attributes.get("force-network-mode", ""),
        host=_host(attributes),
        cache_from=tuple(_cache_from(attributes, caches)),
    )
    return BuildRequest(attributes, options, inputs)


def _check_front_end(image: str) -> None:
    if image and not is_ours(image.split(maxsplit=1)[0]):
        raise Unimplemented(f"the front end {image} cannot be run", hint="the Dockerfile language is built in")


def is_ours(image: str) -> bool:
    """Whether an image is that of the Dockerfile language."""
    return image.partition("@")[0].partition(":")[0] in OURS


def _prefixed(attributes: Mapping[str, str], prefix: str) -> dict[str, str]:
    # Maps of messages come in any order: equal requests shall make equal images.
    return {name.removeprefix(prefix): attributes[name] for name in sorted(attributes) if name.startswith(prefix)}


def _refuse(attributes: Mapping[str, str], inputs: Mapping[str, str]) -> None:
    request = attributes.get("requestid", LINT)
    if request != LINT:
        raise Unimplemented(f"unsupported request {request}", hint="--check is built, other --call are not")
    for kind, value in _prefixed(attributes, "attest:").items():
        if value not in OFF:
            raise Unimplemented(f"attestations are not built: {kind}", hint=f"--{kind}=false")
    if "," in attributes.get("platform", ""):
        raise Unimplemented("an image for several platforms is not built", hint="one --platform for each build")
    for name, value in _prefixed(attributes, "context:").items():
        unknown = value.startswith("input:") and not inputs.get(value.removeprefix("input:"))
        if unknown or value.startswith(("target:", "oci-layout:")):
            raise Unimplemented(
                f"the context {name} is {value}", hint="a directory, an image or an address can be used"
            )


def _platform(text: str) -> Platform | None:
    return parse_platform(text) if text else None


def _host(attributes: Mapping[str, str]) -> HostConfig:
    return HostConfig(
        cgroup_parent=attributes.get("cgroup-parent", ""),
        shm_size=_number(attributes, "shm-size"),
        extra_hosts=tuple(text.replace("=", ":", 1) for text in _fields(attributes.get("add-hosts", ""))) or None,
        ulimits=tuple(_ulimit(text) for text in _fields(attributes.get("ulimit", ""))) or None,
        memory=_number(attributes, "memory"),
        memory_swap=_number(attributes, "memory-swap"),
        cpu_shares=_number(attributes, "cpu-shares"),
        cpu_period=_number(attributes, "cpu-period"),
        cpu_quota=_number(attributes, "cpu-quota"),
        cpuset_cpus=attributes.get("cpuset-cpus", ""),
        cpuset_mems=attributes.get("cpuset-mems", ""),
    )


def _fields(text: str) -> list[str]:
    """Comma-separated, quoted where a field holds a comma."""
    return next(csv.reader([text]), []) if text else []


def _number(attributes: Mapping[str, str], name: str) -> int:
    text = attributes.get(name, "")
    try:
        return int(text or 0)
    except ValueError:
        raise InvalidArgument(f"invalid value {text!r} of {name}: not an integer") from None


def _ulimit(text: str) -> Ulimit:
    """``nofile=1024:2048``, or one number for both."""
    name, _, limits = text.partition("=")
    soft, _, hard = limits.partition(":")
    try:
        return Ulimit(name, int(hard or soft), int(soft))
    except ValueError:
        raise InvalidArgument(f"invalid ulimit {text!r}", hint="name=soft:hard") from None


def _cache_from(attributes: Mapping[str, str], caches: Iterable[CacheEntry]) -> list[str]:
    """Images to take steps from."""
    found = [text for text in attributes.get("cache-from", "").split(",") if text]
    entries = [*caches, *_cache_imports(attributes.get("cache-imports", ""))]
    for kind, attrs in entries:
        if kind == "registry":
            found.append(attrs.get("ref", ""))
        else:
            raise Unimplemented(f"--cache-from type={kind} is not built", hint="type=registry takes an image's steps")
    return list(dict.fromkeys(name for name in found if name))


def _cache_imports(text: str) -> list[CacheEntry]:
    if not text:
        return []
    try:
        return [CacheEntry(item["Type"], item.get("Attrs") or {}) for item in json.loads(text) or ()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidArgument("invalid cache-imports: not the JSON of cache entries") from None


def check_cache_exports(caches: Iterable[CacheEntry], options: BuildOptions) -> BuildOptions:
    """``options`` with what ``--cache-to`` asks for. Raises ``Unimplemented``."""
    for kind, _ in caches:
        if kind != "inline":
            raise Unimplemented(f"--cache-to type={kind} is not built", hint="type=inline keeps the steps in the image")
        arguments = {**options.build_args, "BUILDKIT_INLINE_CACHE": "1"}
        options = msgspec.structs.replace(options, build_args=arguments)
    return options
