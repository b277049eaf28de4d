"""``docker run --rm busybox true``: the same docker CLI in front of Gantry and of Debian's docker.io.

Run as root: ``python -m tests.bench.bench_run [ROUNDS]``. Exits 1 when Gantry is slower.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from tests.bench.measure import figures, interleaved
from tests.bench.peers import Peer, dockerd, gantry
from tests.bench.results import Result, emit
from tests.support.images import busybox_rootfs

NETWORKS = ("bridge", "none", "host")


def main() -> int:
    """Measure every network mode; the status says whether Gantry was faster in all."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    slower = False
    with gantry() as ours, dockerd() as theirs:
        peers: tuple[Peer, ...] = (ours, theirs)
        for peer in peers:
            peer.docker("import", "-c", 'CMD ["sh"]', "-", "busybox:latest", stdin=busybox_rootfs())
        for network in NETWORKS:
            rows = interleaved({peer.name: _runner(peer, network) for peer in peers}, rounds)
            goals = {"docker.io": 0.25} if network == "bridge" else {"docker.io": 1.0}
            title = f"docker run --rm --network {network} busybox true"
            result = emit(Result(f"run-{network}", title, "ms", figures(rows), goals))
            slower |= (result.ratio("docker.io") or 0) >= 1
    return 1 if slower else 0


def _runner(peer: Peer, network: str) -> Callable[[], object]:
    return lambda: peer.docker("run", "--rm", "--network", network, "busybox", "true")


if __name__ == "__main__":
    sys.exit(main())
