"""Docker's endpoints of what this engine does not have: plugins and checkpoints.

Rule: a client is told at once and in words, with the status Docker gives for the thing that is not there; nothing is
accepted and dropped.
"""

from __future__ import annotations

from engine.http.messages import Answer, Request, json_response
from engine.http.router import Route
from oci.errors import NotFound, Unimplemented

ONE_PLUGIN = (
    ("GET", "/plugins/{name*}/json"),
    ("DELETE", "/plugins/{name*}"),
    *(("POST", f"/plugins/{{name*}}/{verb}") for verb in ("enable", "disable", "upgrade", "push", "set")),
)
NEW_PLUGIN = (("GET", "/plugins/privileges"), ("POST", "/plugins/pull"), ("POST", "/plugins/create"))
CHECKPOINTS = (
    ("GET", "/containers/{id}/checkpoints"),
    ("POST", "/containers/{id}/checkpoints"),
    ("DELETE", "/containers/{id}/checkpoints/{checkpoint}"),
)


def routes() -> list[Route]:
    """Every endpoint of this module."""
    return [
        Route("GET", "/plugins", _plugins, "always empty: there are no plugins"),
        *(Route(method, template, _no_plugin, "404: there are no plugins") for method, template in ONE_PLUGIN),
        *(Route(method, template, _no_plugins, "refused: plugins are not built") for method, template in NEW_PLUGIN),
        *(Route(method, template, _no_checkpoints, "refused: not built") for method, template in CHECKPOINTS),
    ]


async def _plugins(request: Request) -> Answer:
    return json_response([])


async def _no_plugin(request: Request) -> Answer:
    raise NotFound(f"plugin {request.params['name']!r} not found", hint="this engine has no plugins")


async def _no_plugins(request: Request) -> Answer:
    raise Unimplemented("plugins are not built", hint="volumes have the local driver, networks bridge, macvlan, ipvlan")


async def _no_checkpoints(request: Request) -> Answer:
    raise Unimplemented("checkpoints are not built", hint="docker commit keeps a container's files")
