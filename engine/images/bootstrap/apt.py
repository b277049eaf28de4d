"""apt with state of its own: the host's package sources and proxies, but not its lists, caches, locks or status.

Rule: nothing of the host's package manager is written. apt verifies what it downloads against the archive's signature.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from typing import NamedTuple

from oci.errors import FailedPrecondition, InvalidArgument, Unavailable

_SUITE = re.compile(r"[a-z][a-z0-9.-]*")
_FORMAT = "$(SITE)|$(RELEASE)|$(COMPONENT)"
_KEYRINGS = "/usr/share/keyrings"
UNSTABLE = frozenset({"sid", "unstable", "experimental", "rc-buggy"})


class Source(NamedTuple):
    """One configured package source: where, which release and component."""

    site: str
    release: str
    component: str

    @property
    def distribution(self) -> str:
        """``debian``, ``ubuntu`` or another archive's last path component."""
        return self.site.rstrip("/").rpartition("/")[2]

    def line(self, suite: str) -> str:
        """This source for ``suite`` as a line of sources.list."""
        keyring = f"{_KEYRINGS}/{self.distribution.partition('-')[0]}-archive-keyring.gpg"
        # Without the package of keys apt falls back on the keys that this host trusts for everything.
        options = f"[signed-by={keyring}] " if os.path.exists(keyring) else ""
        return f"deb {options}{self.site} {suite} {self.component}\n"


async def run(*command: str, env: dict[str, str] | None = None, cwd: str | None = None) -> tuple[int, str]:
    """Run a program to its end; (status, all output). It is killed when we are cancelled."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C", **(env or {})},
        cwd=cwd,
    )
    try:
        output, _ = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")


def host_release() -> tuple[str, str]:
    """(distribution, code name) of this machine."""
    fields: dict[str, str] = {}
    try:
        with open("/etc/os-release") as file:
            fields = dict(line.rstrip().split("=", 1) for line in file if "=" in line)
    except OSError:
        pass
    return fields.get("ID", "").strip('"'), fields.get("VERSION_CODENAME", "").strip('"')


class Apt:
    """A private apt below ``base``."""

    def __init__(self, base: str) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise FailedPrecondition(
                "cannot make this image: apt-get and dpkg-deb are not on this machine",
                hint="bootstrap works on Debian and Ubuntu; elsewhere pull or load an image",
            )
        self.base = base
        self.archives = f"{base}/cache/archives"
        for path in ("state/lists/partial", "cache/archives/partial", "log"):
            os.makedirs(f"{base}/{path}", exist_ok=True)
        with open(f"{base}/state/status", "w"):
            pass
        self._sources = f"{base}/sources.list"
        self._options = [
            f"Dir::State={base}/state", f"Dir::State::status={base}/state/status", f"Dir::Cache={base}/cache",
            f"Dir::Log={base}/log", f"Dir::Etc::sourcelist={self._sources}", "Dir::Etc::sourceparts=/dev/null",
            "Dir::Etc::preferences=/dev/null", "Dir::Etc::preferencesparts=/dev/null",
            "APT::Sandbox::User=root", "APT::Install-Recommends=false", "Acquire::Languages=none",
            "APT::Get::List-Cleanup=true", "Acquire::Retries=2", "APT::Update::Post-Invoke-Success=",
            "DPkg::Post-Invoke=", "APT::Update::Post-Invoke=",
        ]  # fmt: skip

    async def sources(self, distribution: str) -> list[Source]:
        """The host's sources of ``distribution`` (component main). Raises ``FailedPrecondition`` without any."""
        status, text = await run("apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages")
        if status:
            raise FailedPrecondition(f"apt cannot read its sources: {_last(text)}")
        rows = (line.split("|") for line in text.splitlines() if line.count("|") == 2)
        found = [Source(*row) for row in rows]
        wanted = {distribution, f"{distribution}-security", f"{distribution}-ports"}
        chosen = [s for s in dict.fromkeys(found) if s.distribution in wanted and s.component == "main"]
        if not chosen:
            raise FailedPrecondition(
                f"this machine has no package source of {distribution}",
                hint=f"add one to /etc/apt/sources.list.d, or bootstrap {host_release()[0] or 'another distribution'}",
            )
        return chosen

    async def use(self, distribution: str, suite: str) -> str:
        """Choose sources for ``suite`` ("" for the host's own) and read their lists; the suite's name."""
        if suite and not _SUITE.fullmatch(suite):
            raise InvalidArgument(f"invalid suite {suite!r}: a code name like bookworm is expected")
        known = await self.sources(distribution)
        host_distribution, host_suite = host_release()
        suite = suite or (host_suite if host_distribution == distribution else "stable")
        lines = {s.line(s.release) for s in known if s.release.partition("-")[0] == suite}
        main = next((s for s in known if s.distribution == distribution), known[0])
        lines.add(main.line(suite))
        with open(self._sources, "w") as file:
            file.writelines(sorted(lines))
        status, text = await self._run("update", "-o", "APT::Update::Error-Mode=any")
        if status:
            raise Unavailable(
                f"cannot read the package lists of {distribution} {suite}: {_last(text)}",
                hint="check the suite's name, the network, and the proxy in /etc/apt/apt.conf.d",
            )
        return suite

    async def _run(self, *arguments: str, cwd: str | None = None) -> tuple[int, str]:
        options = [word for option in self._options for word in ("-o", option)]
        return await run("apt-get", "-q", *options, *arguments, env={"DEBIAN_FRONTEND": "noninteractive"}, cwd=cwd)

    async def planned(self, *packages: str) -> list[tuple[str, int]]:
        """(file name, bytes) of what installing ``packages`` into nothing takes."""
        status, text = await self._run("install", "--yes", "--print-uris", "-qq", *packages)
        if status:
            raise Unavailable(f"apt finds no way to install {' '.join(packages)}: {_last(text)}")
        return [(m[1], int(m[2])) for m in re.finditer(r"^'[^']+' (\S+) (\d+) ", text, re.MULTILINE)]

    async def download(self, *packages: str) -> list[str]:
        """Fetch ``packages`` and all they need; paths of the .deb files, in order of name."""
        status, text = await self._run("install", "--yes", "--download-only", *packages)
        if status:
            raise Unavailable(f"cannot download {' '.join(packages)}: {_last(text)}", hint="check the network")
        return sorted(f"{self.archives}/{n}" for n in os.listdir(self.archives) if n.endswith(".deb"))

    async def download_alone(self, package: str) -> str:
        """Fetch one package without what it depends on; the path of the .deb file."""
        status, text = await self._run("download", package, cwd=self.archives)
        found = [name for name in os.listdir(self.archives) if name.endswith(".deb")]
        if status or not found:
            raise Unavailable(f"cannot download {package}: {_last(text)}", hint="check the network")
        return f"{self.archives}/{found[0]}"


def _last(text: str) -> str:
    """The line of apt's output that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "Err:", "W: Failed"))]
    return (errors or lines or ["no output"])[0]
