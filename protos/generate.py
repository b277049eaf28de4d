"""Generate the protobuf and gRPC stubs that stand beside the .proto files.

Run as ``python -m protos.generate`` from the repository's root, with the ``dev`` extra installed. The stubs are
committed, so that an installed Gantry needs no compiler; ``tests/unit/protos`` fails when they are stale.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (ROOT / "protos" / "containerd", ROOT / "protos" / "buildkit")


def generate(out: Path) -> None:
    """Write the stubs of every .proto below ``out``, in the layout of the repository."""
    sources = sorted(source for directory in SOURCES for source in directory.glob("*.proto"))
    with_services = [s for s in sources if "\nservice " in s.read_text()]
    compiler = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}"]
    # The compiler looks for its plugins on PATH, and they lie beside the interpreter.
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', '')}"}
    outputs = (f"--python_out={out}", f"--pyi_out={out}")
    subprocess.run([*compiler, *outputs, *map(str, sources)], check=True, env=environment)
    subprocess.run(
        [*compiler, f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}", *map(str, with_services)],
        check=True,
        env=environment,
    )


if __name__ == "__main__":
    generate(ROOT)
