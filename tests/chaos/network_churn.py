"""Changes networks and containers of an engine at random, from several threads, until the engine is gone.

Runs inside a private host: ``network_churn.py SOCKET SEED``. Refusals are part of the game; a lost connection ends it.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import sys
import threading
from typing import Any

WORKERS = 4
CONTAINERS = 12
NETWORKS = ("red", "green", "blue")


class Connection(http.client.HTTPConnection):
    """HTTP over the engine's socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])


def call(method: str, path: str, body: Any = None) -> None:
    """One request; what the engine answers does not matter."""
    connection = Connection("engine", timeout=60)
    connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
    connection.getresponse().read()
    connection.close()


def create(chance: random.Random, name: str) -> None:
    """A container that serves on port 80, published by TCP, by UDP, or not at all."""
    protocol = chance.choice(("tcp", "udp", ""))
    ports = {f"80/{protocol}": [{"HostPort": ""}]} if protocol else {}
    body = {
        "Image": "busybox",
        "Cmd": ["httpd", "-f", "-p", "80", "-h", "/www"],
        "ExposedPorts": {key: {} for key in ports},
        "HostConfig": {"NetworkMode": chance.choice(("bridge", "none", *NETWORKS)), "PortBindings": ports},
    }
    call("POST", f"/containers/create?name={name}", body)
    call("POST", f"/containers/{name}/start")


def change(chance: random.Random) -> None:
    """One step."""
    name, network = f"c{chance.randrange(CONTAINERS)}", chance.choice(NETWORKS)
    match chance.choice("ccccsrrnnNddfk"):
        case "c":
            create(chance, name)
        case "s":
            call("POST", f"/containers/{name}/restart?t=0")
        case "r":
            call("DELETE", f"/containers/{name}?force=1")
        case "n":
            call("POST", "/networks/create", {"Name": network, "EnableIPv6": chance.random() < 0.5})
        case "N":
            call("DELETE", f"/networks/{network}")
        case "d":
            call("POST", f"/networks/{network}/connect", {"Container": name})
        case "f":
            call("POST", f"/networks/{network}/disconnect", {"Container": name, "Force": True})
        case _:
            call("POST", f"/containers/{name}/kill")


def work(seed: int) -> None:
    chance = random.Random(seed)
    try:
        while True:
            change(chance)
    except (OSError, http.client.HTTPException):
        return


def main() -> None:
    seed = int(sys.argv[2])
    threads = [threading.Thread(target=work, args=(seed * WORKERS + number,)) for number in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
