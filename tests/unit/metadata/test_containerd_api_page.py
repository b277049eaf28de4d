"""The page about containerd's API is the one the servicers give; all of our protos is served."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SERVED = """
import json
from containerd_py.services import compatibility
print(json.dumps(compatibility.services()))
"""


def run(*arguments: str) -> str:
    # In a process of its own: the daemon's modules bring grpc's threads along, and other tests fork this one.
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_page_is_current() -> None:
    made = run("-m", "containerd_py.services.compatibility")
    assert (ROOT / "docs/containerd-api.md").read_text() == made, (
        "python -m containerd_py.services.compatibility > docs/containerd-api.md"
    )


def test_every_method_of_our_protos_is_served() -> None:
    served: dict[str, list[str]] = json.loads(run("-c", SERVED))
    missing = []
    for proto in sorted((ROOT / "protos/containerd").glob("*.proto")):
        package = service = ""
        for line in proto.read_text().splitlines():
            words = line.replace(";", " ").replace("(", " ").split()
            if words[:1] == ["package"]:
                package = words[1]
            elif words[:1] == ["service"]:
                service = f"{package}.{words[1]}"
            elif words[:1] == ["rpc"] and service.startswith("containerd.services.") and ".ttrpc." not in service:
                missing += [f"{service}/{words[1]}"] if words[1] not in served.get(service, ()) else []
    assert missing == []
