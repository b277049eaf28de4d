"""The ``/networks`` endpoints."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from engine.http.messages import Request, Response, empty, json_response
from engine.http.router import Route
from engine.network import attach
from engine.network.creation import CreateRequest
from engine.network.model import Network, is_true
from engine.network.service import NetworkService
from oci.errors import GantryError, InvalidArgument

_LIST_FILTERS = frozenset({"dangling", "driver", "id", "label", "name", "scope", "type"})
_PRUNE_FILTERS = frozenset({"label", "label!", "until"})
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_UNIT = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class ConnectBody(msgspec.Struct, frozen=True, rename="pascal"):
    """Body of connect and disconnect."""

    container: str = ""
    endpoint_config: dict[str, Any] | None = None
    force: bool = False


def routes(service: NetworkService) -> list[Route]:
    """Every endpoint of networks."""
    api = NetworksApi(service)
    return [
        Route("GET", "/networks", api.list),
        Route("POST", "/networks/create", api.create, "drivers bridge, macvlan, ipvlan"),
        Route("POST", "/networks/prune", api.prune),
        Route("GET", "/networks/{id}", api.inspect),
        Route("DELETE", "/networks/{id}", api.remove),
        Route("POST", "/networks/{id}/connect", api.connect),
        Route("POST", "/networks/{id}/disconnect", api.disconnect),
    ]


class NetworksApi:
    """Handlers over one ``NetworkService``."""

    def __init__(self, service: NetworkService) -> None:
        self._service = service

    async def list(self, request: Request) -> Response:
        """``GET /networks``"""
        filters = _known(request.filters(), _LIST_FILTERS)
        tests = _tests(filters, self._in_use)
        found = [n for n in self._service.registry.all() if all(test(n) for test in tests)]
        if request.api_version < (1, 28):
            return json_response([self._service.inspect(n.id) for n in found])
        return json_response(self._service.views(found))

    async def inspect(self, request: Request) -> Response:
        """``GET /networks/{id}``"""
        view = self._service.inspect(request.params["id"])
        if request.text("scope") not in ("", "local"):
            raise InvalidArgument(f"network scope {request.text('scope')} needs a swarm, and this node is in none")
        return json_response(view)

    async def create(self, request: Request) -> Response:
        """``POST /networks/create``"""
        network = await self._service.create(await request.json(CreateRequest))
        return json_response({"Id": network.id, "Warning": ""}, 201)

    async def remove(self, request: Request) -> Response:
        """``DELETE /networks/{id}``"""
        await self._service.remove(request.params["id"])
        return empty()

    async def connect(self, request: Request) -> Response:
        """``POST /networks/{id}/connect``"""
        body = await self._target(request)
        config = {k: v for k, v in (body.endpoint_config or {}).items() if v is not None}
        await attach.connect(self._service, request.params["id"], body.container, config)
        return Response(200)

    async def disconnect(self, request: Request) -> Response:
        """``POST /networks/{id}/disconnect``"""
        body = await self._target(request)
        await attach.disconnect(self._service, request.params["id"], body.container, force=body.force)
        return Response(200)

    @staticmethod
    async def _target(request: Request) -> ConnectBody:
        body = await request.json(ConnectBody)
        if not body.container:
            raise InvalidArgument("invalid request: no container was named")
        return body

    async def prune(self, request: Request) -> Response:
        """``POST /networks/prune``"""
        filters = _known(request.filters(), _PRUNE_FILTERS)
        tests = _tests(filters, self._in_use)
        deleted = []
        for network in self._service.registry.all():
            if network.predefined or self._in_use(network) or not all(test(network) for test in tests):
                continue
            try:
                await self._service.remove(network.id)
            except GantryError:
                continue  # somebody connected to it, or removed it, since the look
            deleted.append(network.name)
        return json_response({"NetworksDeleted": deleted or None})

    def _in_use(self, network: Network) -> bool:
        return bool(self._service.members(network))


def _known(filters: dict[str, list[str]], names: frozenset[str]) -> dict[str, list[str]]:
    for name in filters:
        if name not in names:
            raise InvalidArgument(f"invalid filter '{name}'")
    return filters


def _tests(filters: dict[str, list[str]], in_use: Callable[[Network], bool]) -> list[Callable[[Network], bool]]:
    """One predicate for each filter; values of one filter are alternatives, except labels, which must all fit."""
    out: list[Callable[[Network], bool]] = []
    for name, values in filters.items():
        if not values:
            continue
        out.append(_test(name, values, in_use))
    return out


def _test(name: str, values: list[str], in_use: Callable[[Network], bool]) -> Callable[[Network], bool]:
    match name:
        case "name":
            return lambda n: any(v in n.name for v in values)
        case "id":
            return lambda n: any(v in n.id for v in values)
        case "driver":
            return lambda n: n.driver in values
        case "scope":
            return lambda n: "local" in values
        case "label":
            return lambda n: all(_has_label(n, v) for v in values)
        case "label!":
            return lambda n: not any(_has_label(n, v) for v in values)
        case "type":
            for value in values:
                if value not in ("custom", "builtin"):
                    raise InvalidArgument(f"invalid filter: 'type'='{value}'")
            return lambda n: ("builtin" if n.predefined else "custom") in values
        case "dangling":
            wanted = is_true(values[0], False)
            return lambda n: not n.predefined and in_use(n) != wanted
        case _:
            limit = _until(values[-1])
            return lambda n: _created(n) <= limit


def _has_label(network: Network, text: str) -> bool:
    key, separator, value = text.partition("=")
    return key in network.labels and (not separator or network.labels[key] == value)


def _until(text: str) -> float:
    """Seconds since the epoch of a timestamp, a date, or a duration before now."""
    if text.replace(".", "", 1).isdigit():
        return float(text)
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return time.time() - sum(float(number) * _UNIT[unit] for number, unit in parts)
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InvalidArgument(f"invalid filter 'until={text}': not a time and not a duration") from None


def _created(network: Network) -> float:
    # fromisoformat takes at most microseconds.
    return datetime.fromisoformat(network.created[:26] + "+00:00").timestamp()
