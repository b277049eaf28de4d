"""events, stats, df and prune: what the engine does, takes and can give back."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from cli.commands.lifecycle import filters_of
from cli.engine import Parser, client
from cli.errors import CommandFailed
from cli.http import Client
from cli.tables import size, table


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command of this module."""
    out = Parser(f"gantry {name}")
    options(name, out)
    return out


def options(name: str, out: argparse.ArgumentParser) -> None:
    """The options of one command, here and under ``gantry system``."""
    add = out.add_argument
    if name == "events":
        add("--since", metavar="SECONDS", help="unix time to begin at")
        add("--until", metavar="SECONDS", help="unix time to end at")
        add("-f", "--filter", action="append", default=[], metavar="KEY=VALUE")
        add("--json", action="store_true", help="one JSON object a line")
    elif name == "stats":
        add("container", nargs="*", help="all running ones without")
    elif name == "prune":
        add("-a", "--all", action="store_true", help="every image that no container uses, not only nameless ones")
        add("--volumes", action="store_true", help="unused anonymous volumes too")
        add("-f", "--force", action="store_true", help="do not ask")


def execute(name: str, arguments: argparse.Namespace) -> int:
    """Run one command of this module."""
    return {"events": events, "stats": stats, "df": df, "prune": prune}[name](client(arguments), arguments)


def events(engine: Client, arguments: argparse.Namespace) -> int:
    """What happens, as it happens."""
    query = {"since": arguments.since, "until": arguments.until, "filters": filters_of(arguments.filter)}
    with engine.send("GET", "/events", dict(query)) as reply:
        for event in reply.messages():
            print(json.dumps(event) if arguments.json else event_line(event), flush=True)
    return 0


def event_line(event: dict[str, Any]) -> str:
    """An event as docker shows it."""
    seconds, nanoseconds = divmod(event["timeNano"], 10**9)
    moment = time.localtime(seconds)
    zone = time.strftime("%z", moment)
    told = ", ".join(f"{key}={value}" for key, value in sorted(event["Actor"]["Attributes"].items()))
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{nanoseconds:09d}{zone[:3]}:{zone[3:]}"
    return f"{stamp} {event['Type']} {event['Action']} {event['Actor']['ID']}{f' ({told})' if told else ''}"


def stats(engine: Client, arguments: argparse.Namespace) -> int:
    """One look at what containers use."""
    names = arguments.container or [c["Id"] for c in engine.call("GET", "/containers/json")]
    rows = []
    for name in names:
        sample = engine.call("GET", f"/containers/{name}/stats", {"stream": False})
        rows.append(stats_row(sample))
    print(table(("CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "NET I/O", "BLOCK I/O", "PIDS"), rows))
    return 0


def stats_row(sample: dict[str, Any]) -> tuple[str, ...]:
    """One line of ``stats``; CPU and memory as docker computes them."""
    cpu, before = sample["cpu_stats"], sample["precpu_stats"]
    used = cpu["cpu_usage"]["total_usage"] - before["cpu_usage"]["total_usage"]
    passed = cpu.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    share = used / passed * cpu.get("online_cpus", 1) * 100 if passed > 0 and used > 0 else 0.0
    memory = sample["memory_stats"]
    details = memory.get("stats", {})
    cache = details.get("total_inactive_file", details.get("inactive_file", 0))
    taken = max(memory.get("usage", 0) - cache, 0)
    networks = (sample.get("networks") or {}).values()
    received, sent = (sum(n[key] for n in networks) for key in ("rx_bytes", "tx_bytes"))
    blocks = sample["blkio_stats"].get("io_service_bytes_recursive") or ()
    read, written = (sum(b["value"] for b in blocks if b["op"].lower() == op) for op in ("read", "write"))
    return (
        sample["id"][:12],
        sample["name"].lstrip("/"),
        f"{share:.2f}%",
        f"{size(taken)} / {size(memory.get('limit', 0))}",
        f"{size(received)} / {size(sent)}",
        f"{size(read)} / {size(written)}",
        str(sample["pids_stats"].get("current", 0)),
    )


def df(engine: Client, arguments: argparse.Namespace) -> int:
    """What is on disk, and how much of it nothing uses."""
    usage = engine.call("GET", "/system/df")
    images, containers = usage["Images"] or [], usage["Containers"] or []
    volumes, cache = usage["Volumes"] or [], usage["BuildCache"] or []
    running = [c for c in containers if c["State"] in ("running", "paused")]
    used = [v for v in volumes if v["UsageData"]["RefCount"]]
    rows = [
        _row("Images", images, [i for i in images if i["Containers"]], usage["LayersSize"],
             sum(i["Size"] - i["SharedSize"] for i in images if not i["Containers"])),
        _row("Containers", containers, running, sum(c.get("SizeRw", 0) for c in containers),
             sum(c.get("SizeRw", 0) for c in containers if c not in running)),
        _row("Local Volumes", volumes, used, sum(v["UsageData"]["Size"] for v in volumes),
             sum(v["UsageData"]["Size"] for v in volumes if v not in used)),
        _row("Build Cache", cache, [b for b in cache if b["InUse"]], sum(b["Size"] for b in cache),
             sum(b["Size"] for b in cache if not b["InUse"])),
    ]  # fmt: skip
    print(table(("TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"), rows))
    return 0


def _row(title: str, every: list[Any], active: list[Any], total: int, unused: int) -> tuple[str, ...]:
    share = f" ({unused * 100 // total}%)" if total else ""
    return title, str(len(every)), str(len(active)), size(total), f"{size(unused)}{share}"


def prune(engine: Client, arguments: argparse.Namespace) -> int:
    """Stopped containers, unused networks, images and build cache, in this order."""
    if not arguments.force:
        raise CommandFailed(
            "this removes stopped containers, unused networks, images and the build cache: say --force", 125
        )
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("/containers/prune", "ContainersDeleted", {}),
        ("/networks/prune", "NetworksDeleted", {}),
        *([("/volumes/prune", "VolumesDeleted", {})] if arguments.volumes else []),
        ("/images/prune", "ImagesDeleted", {"filters": filters_of(["dangling=false"] if arguments.all else [])}),
        ("/build/prune", "CachesDeleted", {"all": arguments.all}),
    ]
    freed = 0
    for path, key, query in steps:
        answer = engine.call("POST", path, query)
        for one in answer.get(key) or ():
            sys.stdout.write(f"{next(iter(one.values())) if isinstance(one, dict) else one}\n")
        freed += answer.get("SpaceReclaimed", 0)
    print(f"reclaimed {size(freed)}")
    return 0
