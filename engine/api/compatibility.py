"""``docs/api-compatibility.md``, made from the route table: what of the Docker Engine API works, and how far.

Rule: the page is generated (``python -m engine.api.compatibility``) and a test holds it to the routes; an endpoint of
Docker's that has no route is listed as not built. Source of ``OPERATIONS``: Docker Engine API reference, version 1.51.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable

from engine.api.fields import tables
from engine.http.router import API_VERSION, MIN_API_VERSION, Route, version_text

OPERATIONS: dict[str, str] = {
    "System": """GET /_ping; HEAD /_ping; POST /auth; GET /events; GET /info; GET /system/df; GET /version""",
    "Containers": """
        GET /containers/json; POST /containers/create; GET /containers/{id}/json; GET /containers/{id}/top;
        GET /containers/{id}/logs; GET /containers/{id}/changes; GET /containers/{id}/export;
        GET /containers/{id}/stats;
        POST /containers/{id}/resize; POST /containers/{id}/start; POST /containers/{id}/stop;
        POST /containers/{id}/restart; POST /containers/{id}/kill; POST /containers/{id}/update;
        POST /containers/{id}/rename; POST /containers/{id}/pause; POST /containers/{id}/unpause;
        POST /containers/{id}/attach; GET /containers/{id}/attach/ws; POST /containers/{id}/wait;
        DELETE /containers/{id}; DELETE /containers/{id}/{link};
        HEAD /containers/{id}/archive; GET /containers/{id}/archive;
        PUT /containers/{id}/archive; POST /containers/prune; GET /containers/{id}/checkpoints;
        POST /containers/{id}/checkpoints; DELETE /containers/{id}/checkpoints/{checkpoint}""",
    "Exec": """POST /containers/{id}/exec; POST /exec/{id}/start; POST /exec/{id}/resize; GET /exec/{id}/json""",
    "Images": """
        GET /images/json; POST /images/create; GET /images/{name}/json; GET /images/{name}/history;
        POST /images/{name}/push; POST /images/{name}/tag; DELETE /images/{name}; GET /images/search;
        POST /images/prune; POST /commit; GET /images/{name}/get; GET /images/get; POST /images/load;
        GET /distribution/{name}/json""",
    "Builds": """POST /build; POST /build/prune; POST /build/cancel; POST /session; POST /grpc""",
    "Networks": """
        GET /networks; GET /networks/{id}; DELETE /networks/{id}; POST /networks/create; POST /networks/{id}/connect;
        POST /networks/{id}/disconnect; POST /networks/prune""",
    "Volumes": """
        GET /volumes; POST /volumes/create; GET /volumes/{name}; PUT /volumes/{name}; DELETE /volumes/{name};
        POST /volumes/prune""",
    "Plugins": """
        GET /plugins; GET /plugins/privileges; POST /plugins/pull; GET /plugins/{name}/json; DELETE /plugins/{name};
        POST /plugins/{name}/enable; POST /plugins/{name}/disable; POST /plugins/{name}/upgrade; POST /plugins/create;
        POST /plugins/{name}/push; POST /plugins/{name}/set""",
    "Swarm": """
        GET /swarm; POST /swarm/init; POST /swarm/join; POST /swarm/leave; POST /swarm/update; GET /swarm/unlockkey;
        POST /swarm/unlock; GET /nodes; GET /nodes/{id}; DELETE /nodes/{id}; POST /nodes/{id}/update; GET /services;
        POST /services/create; GET /services/{id}; DELETE /services/{id}; POST /services/{id}/update;
        GET /services/{id}/logs; GET /tasks; GET /tasks/{id}; GET /tasks/{id}/logs; GET /secrets; POST /secrets/create;
        GET /secrets/{id}; DELETE /secrets/{id}; POST /secrets/{id}/update; GET /configs; POST /configs/create;
        GET /configs/{id}; DELETE /configs/{id}; POST /configs/{id}/update""",
}
"""Docker's operations by group."""

DIFFERENCES: tuple[tuple[str, str, str], ...] = (
    ("*", ".headers.Api-Version", "ours speaks newer versions"),
    ("* /_ping", ".headers.Swarm", "added to the API since (1.42)"),
    ("GET /version", ".body.*", "what the versions are of"),
    (
        "GET /info",
        ".body.*",
        "the host's own names and numbers, storage driver, runtimes, and keys added or dropped since",
    ),
    (
        "*",
        ".body.message",
        "errors are worded as Docker 28 words them, or with the next step added; clients go by the status",
    ),
    ("GET /nothing/here", ".headers.*", "unknown paths get the common headers too"),
    ("PUT /containers/json", ".headers.*", "unknown paths get the common headers too"),
    ("PUT /containers/json", ".status", "405 for a method an endpoint does not have, where Docker says 404"),
    ("*", ".status", "400, 403 or 409 where Docker 20.10 said 500 for the client's mistake"),
    ("GET /images/*", ".body.DockerVersion", "who built an image is not told"),
    (
        "GET *",
        ".body*.RepoDigests*",
        "every image has a digest here: images are kept as manifests, as in Docker's containerd store",
    ),
    ("GET *", ".body*.GraphDriver*", "snapshots of containerd, as in Docker's containerd store"),
    ("GET *", ".body*.Driver", "snapshots of containerd, as in Docker's containerd store"),
    ("GET *", ".body*.ImageManifestDescriptor", "added to the API since (1.48)"),
    ("GET *", ".body*.EnableIPv4", "added to the API since (1.48)"),
    ("GET *", ".body*.DNSNames", "added to the API since (1.44)"),
    ("GET *", ".body*.GwPriority", "added to the API since (1.48)"),
    ("GET *", ".body*.Aliases", "the short id and the host name are in DNSNames, as in Docker 28"),
    ("GET *", ".body*.NetworkMode", "the default network is told by its name, as in Docker 28"),
    ("GET *", ".body*.NetworkID", "a created container's networks are told with their ids, as in Docker 28"),
    ("GET *", ".body*.KernelMemory*", "dropped from the API since (1.42)"),
    ("GET *", ".body*.MaskedPaths", "the paths Docker 28 masks"),
    ("GET *", ".body*.OomKillDisable", "null where nothing was asked for, as in Docker 28"),
    ("GET *", ".body*.PortBindings", "an empty object, as in Docker 28"),
    ("GET *", ".body*.RestartPolicy.Name", "no by its name, as in Docker 28"),
    ("GET *", ".body*.Runtime", "runc-py is the default runtime"),
    ("GET *", ".body*.Propagation", "rprivate everywhere; Docker says rslave for its own data directory"),
    ("GET *", ".body*.LogPath", "the json file lies beside the raw log"),
    ("GET *", ".body*.SandboxKey", "network namespaces are pinned under the container's id"),
    ("GET *", ".body*.SandboxID", "a container that does not run has no network sandbox"),
    ("GET *", ".body*.SizeRw", "told when it is 0, too"),
    ("GET *", ".body*.IPAM.Config", "null, as in Docker 28"),
    ("GET */bad/json", ".body*", "a start that failed leaves no network sandbox and no files behind to be named"),
    ("GET */top*", ".body.Processes*", "process numbers"),
    ("GET */stats*", ".body.blkio_stats.*", "whether the container had read from a disk by then"),
    (
        "GET /images/made/*",
        ".body*",
        "a committed image names its builder's container no more, as with Docker's containerd store",
    ),
    ("POST */wait", ".body.Error", "absent without an error, as in Docker 28"),
    ("GET /system/df", ".body.*", "the build cache is an empty list; containers count for the images they use"),
)
"""(request, JSON path, reason) of what answers differ in from Docker 20.10's at API 1.41; both are shell patterns."""

NOT_BUILT = "not built"

HEAD = f"""# API compatibility

Made from the route table by `python -m engine.api.compatibility`; a test keeps it current.

The engine answers API versions {version_text(MIN_API_VERSION)} to {version_text(API_VERSION)}, with and without the
version in the path. An operation without a remark works in full. What is not built answers 404 with the engine's own
words, or 501 where only an option is missing; nothing is accepted and then ignored.

Request bodies are read as Go reads them: keys match in any case, null means absent, unknown keys are ignored. The
fields of containers and execs, and the options of log drivers, stand behind the operations.
"""


DIFFERENCES_HEAD = """## Differences from Docker 20.10

The same requests at API 1.41 are sent to both engines by tests/differential; ids, times and addresses are masked. What
answers differ in is this and nothing else:
"""


def operations() -> dict[str, list[tuple[str, str]]]:
    """(method, template) by group."""
    return {group: [(op.split()[0], op.split()[1]) for op in text.split(";")] for group, text in OPERATIONS.items()}


def _shape(template: str) -> str:
    """A template with its places unnamed, so that ``{id}`` and ``{name*}`` are the same place."""
    return "/".join("{}" if part.startswith("{") else part for part in template.split("/"))


def page(routes: Iterable[Route]) -> str:
    """The whole page."""
    by_operation = {(route.method, _shape(route.template)): route for route in routes}
    lines = [HEAD]
    for group, listed in operations().items():
        lines += [f"## {group}\n", "| operation | |", "|---|---|"]
        for method, template in listed:
            route = by_operation.pop((method, _shape(template)), None)
            lines.append(f"| `{method} {template}` | {NOT_BUILT if route is None else route.note or 'works'} |")
        lines.append("")
    lines += ["## Gantry's own\n", "| operation | |", "|---|---|"]
    lines += [f"| `{r.method} {r.template.replace('*', '')}` | {r.note or 'works'} |" for r in by_operation.values()]
    lines += ["", *tables()]
    lines += ["", DIFFERENCES_HEAD, "| request | in the answer | reason |", "|---|---|---|"]
    lines += [f"| `{request}` | `{path}` | {reason} |" for request, path, reason in DIFFERENCES]
    return "\n".join(lines) + "\n"


async def current() -> str:
    """The page of this tree's engine, which is built and not started."""
    import tempfile

    from engine.app import App
    from engine.config import load

    with tempfile.TemporaryDirectory() as directory:
        config = load(["--data-root", directory, "--exec-root", directory, "--config-file", "/dev/null"])
        return page(App(config, None).routes())


def main() -> None:
    """Write the page to standard output."""
    sys.stdout.write(asyncio.run(current()))


if __name__ == "__main__":
    main()
