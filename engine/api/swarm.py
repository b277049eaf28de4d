"""Swarm's endpoints, answered as an engine answers that is in no swarm.

Rule: clients that look (``docker info``, Compose, Portainer) are told the truth in Docker's words; nothing is stored.
"""

from __future__ import annotations

from engine.http.errors import HttpError
from engine.http.messages import Answer, Request
from engine.http.router import Route
from oci.errors import Unimplemented

NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and'
    " try again."
)
NOT_IN_A_SWARM = "This node is not part of a swarm"
NOTE = "answers as an engine outside a swarm does"

LISTED = (
    *(("GET", p) for p in ("/swarm", "/swarm/unlockkey", "/nodes", "/nodes/{id}", "/services", "/services/{id}")),
    *(("GET", p) for p in ("/services/{id}/logs", "/tasks", "/tasks/{id}", "/tasks/{id}/logs")),
    *(("GET", p) for p in ("/secrets", "/secrets/{id}", "/configs", "/configs/{id}")),
    *(("POST", p) for p in ("/swarm/update", "/swarm/unlock", "/nodes/{id}/update", "/services/create")),
    *(("POST", p) for p in ("/services/{id}/update", "/secrets/create", "/secrets/{id}/update")),
    *(("POST", p) for p in ("/configs/create", "/configs/{id}/update")),
    *(("DELETE", p) for p in ("/nodes/{id}", "/services/{id}", "/secrets/{id}", "/configs/{id}")),
)


def routes() -> list[Route]:
    """Every endpoint of swarm mode."""
    return [
        *(Route(method, template, _not_a_manager, NOTE) for method, template in LISTED),
        Route("POST", "/swarm/leave", _not_in_a_swarm, NOTE),
        Route("POST", "/swarm/init", _not_built, "refused: this engine has no swarm mode"),
        Route("POST", "/swarm/join", _not_built, "refused: this engine has no swarm mode"),
    ]


async def _not_a_manager(request: Request) -> Answer:
    raise HttpError(503, NOT_A_MANAGER)


async def _not_in_a_swarm(request: Request) -> Answer:
    raise HttpError(503, NOT_IN_A_SWARM)


async def _not_built(request: Request) -> Answer:
    raise Unimplemented("swarm mode is not built", hint="Compose runs several containers on one machine")
