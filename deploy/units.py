"""systemd units: written by ``gantry system install``, removed by ``uninstall``.

Rule: a pip-installed program owns no file outside its environment until an administrator asks for it, and what is
written is listed first (``--dry-run``). A file that differs from ours is kept unless ``force`` is given.
"""

from __future__ import annotations

import os
import sys
from importlib import resources
from typing import NamedTuple

from oci.errors import AlreadyExists
from oci.hostpaths import HostPaths

UNITS = ("gantry-containerd.service", "gantry.socket", "gantry.service")
GROUP = "docker"


class File(NamedTuple):
    """A file to be: its path and its text."""

    path: str
    text: str


def files(paths: HostPaths, *, user: bool) -> list[File]:
    """The units for this installation; ``user`` for a user's own service manager."""
    home = os.path.expanduser(os.environ.get("XDG_CONFIG_HOME") or "~/.config")
    directory = f"{home}/systemd/user" if user else "/etc/systemd/system"
    values = {
        "bin": os.path.dirname(os.path.abspath(sys.executable)),
        "data_root": paths.data_root,
        "exec_root": paths.exec_root,
        "target": "default.target" if user else "multi-user.target",
        "socket_group": "" if user else f"SocketGroup={GROUP}\n",
    }
    found = [File(f"{directory}/{name}", _unit(name).format_map(values)) for name in UNITS]
    if not user:
        found.append(
            File("/etc/sysusers.d/gantry.conf", f"# Members of this group are as good as root.\ng {GROUP} -\n")
        )
    return found


def _unit(name: str) -> str:
    return resources.files("deploy").joinpath("systemd", name).read_text()


def install(wanted: list[File], *, force: bool = False) -> list[str]:
    """Write what is not there yet; the paths written. Raises ``AlreadyExists`` before anything is written."""
    differing = [file.path for file in wanted if _text(file.path) not in (None, file.text)]
    if differing and not force:
        raise AlreadyExists(f"{', '.join(differing)}: exists with another content", hint="compare, then use --force")
    changed = [file for file in wanted if _text(file.path) != file.text]
    for file in changed:
        os.makedirs(os.path.dirname(file.path), exist_ok=True)
        with open(f"{file.path}.new", "w", encoding="utf-8") as out:
            out.write(file.text)
        os.rename(f"{file.path}.new", file.path)
    return [file.path for file in changed]


def uninstall(wanted: list[File]) -> list[str]:
    """Remove the files; the paths removed."""
    present = [file.path for file in wanted if os.path.exists(file.path)]
    for path in present:
        os.unlink(path)
    return present


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None
