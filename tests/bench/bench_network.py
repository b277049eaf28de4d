"""Networks beside Debian's docker.io in one run: start-up share, 100 networks, requests, throughput, names.

Run as root: ``python -m tests.bench.bench_network [ROUNDS]``. Exits 3 where Gantry is slower and promises not to be:
the network's share of ``run`` and the set-up of networks.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator

from tests.bench.measure import interleaved
from tests.bench.peers import Peer, dockerd, gantry
from tests.bench.results import MISSED, Result, emit, figure, missed
from tests.support.host import wait_for
from tests.support.images import busybox_rootfs

NETWORKS = 100
REQUESTS = 300
STREAM_SECONDS = 2

REQUEST_LOOP = """
import socket, sys, time
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
began = time.perf_counter()
for _ in range(count):
    with socket.create_connection((host, port)) as connection:
        connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        while connection.recv(4096):
            pass
print(count / (time.perf_counter() - began))
"""

LOOKUP_LOOP = """
import socket, sys, time
packet = b"\\0\\7\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\3web\\0\\0\\1\\0\\1"
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(5)
began = time.perf_counter()
for _ in range(int(sys.argv[1])):
    sock.sendto(packet, ("127.0.0.11", 53))
    sock.recv(512)
print(int(sys.argv[1]) / (time.perf_counter() - began))
"""


def run_share(peers: tuple[Peer, ...], rounds: int) -> dict[str, list[float]]:
    """Milliseconds that a bridge network adds to ``docker run`` in each round, by peer."""
    contenders = {f"{p.name} {mode}": _runner(p, mode) for p in peers for mode in ("bridge", "none")}
    rows = {row.name: row.times for row in interleaved(contenders, rounds)}
    return {
        p.name: [(b - n) * 1e3 for b, n in zip(rows[f"{p.name} bridge"], rows[f"{p.name} none"], strict=True)]
        for p in peers
    }


def _runner(peer: Peer, network: str) -> Callable[[], object]:
    return lambda: peer.docker("run", "--rm", "--network", network, "busybox", "true")


def many_networks(peer: Peer) -> tuple[float, float]:
    """Seconds to make and to remove ``NETWORKS`` networks over the API."""
    script = (
        "import http.client, socket, sys, json\n"
        "class C(http.client.HTTPConnection):\n"
        "    def connect(self):\n"
        "        self.sock = socket.socket(socket.AF_UNIX); self.sock.connect(sys.argv[1])\n"
        "c = C('engine')\n"
        "for n in range(int(sys.argv[3])):\n"
        "    if sys.argv[2] == 'POST':\n"
        "        body = {'Name': f'n{n}', 'IPAM': {'Config': [{'Subnet': f'10.100.{n}.0/24'}]}}\n"
        "        c.request('POST', '/v1.41/networks/create', json.dumps(body), {'Content-Type': 'application/json'})\n"
        "    else:\n"
        "        c.request('DELETE', f'/v1.41/networks/n{n}')\n"
        "    answer = c.getresponse(); answer.read(); assert answer.status < 300, answer.status\n"
    )
    times = []
    for method in ("POST", "DELETE"):
        began = time.perf_counter()
        arguments = (peer.url.removeprefix("unix://"), method, str(NETWORKS))
        peer.host.check("python3", "-c", script, *arguments, timeout=300)
        times.append(time.perf_counter() - began)
    return times[0], times[1]


@contextlib.contextmanager
def traffic(peer: Peer) -> Iterator[tuple[str, str]]:
    """(pid of a web server published on 8080 and 5201, pid of a client on its network)."""
    peer.docker("network", "create", "traffic")
    web = ("--name", "web", "--network", "traffic", "-p", "8080:80", "-p", "5201:5201")
    peer.docker("run", "-d", *web, "busybox", "httpd", "-f", "-h", "/www")
    peer.docker("run", "-d", "--name", "client", "--network", "traffic", "busybox", "sleep", "6000")
    pids = [peer.docker("inspect", "-f", "{{.State.Pid}}", name).stdout.strip() for name in ("web", "client")]
    wait_for(
        lambda: "html" in peer.host.run("curl", "-s", "http://127.0.0.1:8080/nothing").stdout.lower(), "the server"
    )
    try:
        yield pids[0], pids[1]
    finally:
        peer.docker("rm", "-f", "web", "client")
        peer.docker("network", "rm", "traffic")


def requests_a_second(peer: Peer, inside: str | None, address: str, port: int) -> float:
    """Connections with one request each, one after the other, from the host (or from inside a container)."""
    prefix = ("nsenter", "-t", inside, "--net") if inside else ()
    return float(peer.host.check(*prefix, "python3", "-c", REQUEST_LOOP, address, str(port), str(REQUESTS)))


def lookups_a_second(peer: Peer, client: str) -> float:
    """Questions for a neighbour's name, one after the other, from inside a container."""
    return float(peer.host.check("nsenter", "-t", client, "--net", "python3", "-c", LOOKUP_LOOP, "2000"))


def throughput(peer: Peer, server: str, inside: str | None, address: str) -> float:
    """Gbit/s of one TCP stream from the host (or from inside a container) to the server's container."""
    listener = peer.host.popen("nsenter", "-t", server, "--net", "iperf3", "-s", "-1", "-f", "g", stdout=-3)
    prefix = ("nsenter", "-t", inside, "--net") if inside else ()
    wait_for(lambda: ":5201" in peer.host.run("nsenter", "-t", server, "--net", "ss", "-ltn").stdout, "iperf3")
    text = peer.host.check(*prefix, "iperf3", "-J", "-c", address, "-t", str(STREAM_SECONDS))
    listener.wait(10)
    return float(json.loads(text)["end"]["sum_received"]["bits_per_second"]) / 1e9


def main() -> int:
    """Measure and print; the status says whether what is promised holds."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with gantry() as ours, dockerd() as theirs:
        peers: tuple[Peer, ...] = (ours, theirs)
        for peer in peers:
            peer.docker("import", "-c", 'CMD ["sh"]', "-", "busybox:latest", stdin=busybox_rootfs())
        shares = tuple(figure(name, milliseconds) for name, milliseconds in run_share(peers, rounds).items())
        emitted = [Result("network-share", "the network's share of docker run --rm", "ms", shares, {theirs.name: 1.0})]
        emitted += _networks(peers, max(1, rounds // 5))
        for result in emitted:
            emit(result)
        with traffic(ours) as ours_pids, traffic(theirs) as theirs_pids:
            _traffic(((ours, *ours_pids), (theirs, *theirs_pids)), rounds)
    return MISSED if any(map(missed, emitted)) else 0


def _networks(peers: tuple[Peer, ...], rounds: int) -> list[Result]:
    times: dict[str, list[tuple[float, float]]] = {peer.name: [] for peer in peers}
    for peer in [peer for _ in range(rounds) for peer in peers]:
        times[peer.name].append(many_networks(peer))
    found = []
    for index, what in enumerate(("made", "removed")):
        seconds = tuple(figure(name, [both[index] for both in rounds], 1e3) for name, rounds in times.items())
        found.append(Result(f"networks-{what}", f"{NETWORKS} networks {what}", "ms", seconds, {"docker.io": 1.0}))
    return found


def _traffic(peers: tuple[tuple[Peer, str, str], ...], rounds: int) -> None:
    results: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for peer, server, client in peers:
            for what, value in (
                ("requests/s, published port, loopback", requests_a_second(peer, None, "127.0.0.1", 8080)),
                ("requests/s, container to container", requests_a_second(peer, client, _address(peer), 80)),
                ("lookups/s of a neighbour's name", lookups_a_second(peer, client)),
                ("Gbit/s, host to published port", throughput(peer, server, None, "127.0.0.1")),
                ("Gbit/s, container to container", throughput(peer, server, client, _address(peer))),
            ):
                results.setdefault(what, {}).setdefault(peer.name, []).append(value)
    for what, by_peer in results.items():
        unit = what.partition(" ")[0].rstrip(",")
        figures = tuple(figure(name, values) for name, values in by_peer.items())
        emit(Result(f"traffic {what}", what, unit, figures, {"docker.io": 1.0}, higher_is_better=True))


def _address(peer: Peer) -> str:
    shape = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return peer.docker("inspect", "-f", shape, "web").stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
