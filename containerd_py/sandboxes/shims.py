"""The shims of sandboxes: start one, find it again, replace it, and end it.

Rule: as bundles of tasks, a sandbox's is made before its shim and removed after it. They lie in a directory of their
own (containerd's ``io.containerd.sandbox.controller.v1.shim``), and so do the sockets of our shims: a sandbox may be
called like a task.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import structlog
from google.protobuf.any_pb2 import Any as AnyMessage

from containerd_py.sandboxes.sandbox import SERVICE, Sandbox
from containerd_py.tasks import foreign
from containerd_py.tasks.bundle import Bundle, Endpoint, check_identifier
from containerd_py.tasks.recovery import CALL_SECONDS, RETRY_SECONDS, ShimStarter
from containerd_py.tasks.shim_client import ShimClient
from oci import errors
from protos.containerd import shim_sandbox_pb2 as pb

STATE = "io.containerd.sandbox.controller.v1.shim"
SOCKETS = "b"

_log = structlog.get_logger("containerd_py.sandboxes.shims")


class SandboxBundles(NamedTuple):
    """The bundles of sandboxes below one state directory."""

    state: str

    def bundle(self, namespace: str, id: str) -> Bundle:
        """Raises ``InvalidArgument`` for names that are no identifiers (they become paths)."""
        check_identifier("namespace", namespace)
        check_identifier("sandbox id", id)
        return Bundle(f"{self.state}/{STATE}/{namespace}/{id}", namespace, id)

    def socket(self, bundle: Bundle) -> str:
        """Where the sandbox's shim listens, if it is ours."""
        digest = hashlib.sha256(f"{bundle.namespace}/{bundle.id}".encode()).hexdigest()
        return f"{self.state}/{SOCKETS}/{digest[:32]}"

    def scan(self) -> Iterator[Bundle]:
        """Every bundle there is; what was being removed goes on the way."""
        top = f"{self.state}/{STATE}"
        for namespace in _names(top):
            for name in _names(f"{top}/{namespace}"):
                id = name.removeprefix(".")
                bundle = Bundle(f"{top}/{namespace}/{id}", namespace, id)
                if name == id:
                    yield bundle
                elif not os.path.lexists(bundle.path):
                    bundle.remove()


class SandboxShims:
    """Starts and watches the shims of sandboxes."""

    def __init__(self, bundles: SandboxBundles, zygote: ShimStarter, daemon: foreign.Daemon) -> None:
        self._bundles = bundles
        self._zygote = zygote
        self._daemon = daemon
        self.lost: Callable[[Sandbox], None] = lambda sandbox: None
        """Called when a sandbox's shim is gone for good."""

    async def start(self, sandbox: Sandbox, options: AnyMessage | None) -> None:
        """Start the shim of a bundle that was just made, and connect to it."""
        if sandbox.own:
            os.makedirs(f"{self._bundles.state}/{SOCKETS}", 0o711, exist_ok=True)
            path = self._bundles.socket(sandbox.bundle)
            launched = await self._zygote.start(sandbox.namespace, sandbox.id, sandbox.bundle.path, path)
            await self._connect(sandbox, Endpoint(launched.version, launched.address))
            return
        sandbox.bundle.write(foreign.SHIM_BINARY_PATH, sandbox.program[0].encode())
        await self._connect(sandbox, await foreign.start(sandbox.program, sandbox.bundle, options, self._daemon))

    async def _connect(self, sandbox: Sandbox, endpoint: Endpoint) -> None:
        client = await ShimClient.connect(sandbox.namespace, endpoint.address, endpoint.version, SERVICE)
        sandbox.client, sandbox.endpoint = client, endpoint
        client.on_lost = lambda: self._lost(sandbox, client)

    async def find(self, sandbox: Sandbox) -> bool:
        """Connect to the shim of an earlier life of the daemon; False when there is none that knows the sandbox.

        One of ours that is gone is replaced. The first state that it tells is checked here.
        """
        endpoint = sandbox.bundle.endpoint()
        if sandbox.own:
            endpoint = Endpoint(2, self._bundles.socket(sandbox.bundle))
        if endpoint is None:
            return False
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._connect(sandbox, endpoint)
                await self._known(sandbox)
        except (OSError, TimeoutError, errors.Unavailable):
            self._let_go(sandbox)
            if not sandbox.own:
                return False
            await self._replace(sandbox)
        return True

    async def _known(self, sandbox: Sandbox) -> None:
        """Raises ``NotFound`` when the shim has no such sandbox."""
        request = pb.SandboxStatusRequest(sandbox_id=sandbox.id)
        await sandbox.call("SandboxStatus", request, pb.SandboxStatusResponse, seconds=CALL_SECONDS)

    async def _replace(self, sandbox: Sandbox) -> None:
        path = self._bundles.socket(sandbox.bundle)
        launched = await self._zygote.restore(sandbox.namespace, sandbox.id, sandbox.bundle.path, path)
        await self._connect(sandbox, Endpoint(launched.version, launched.address))
        await self._known(sandbox)

    def _lost(self, sandbox: Sandbox, client: ShimClient) -> None:
        if sandbox.client is not client:
            return
        sandbox.client = None
        if sandbox.deleting or not sandbox.whole:
            return
        _log.warning("shim of a sandbox lost", namespace=sandbox.namespace, id=sandbox.id)
        if sandbox.own:
            sandbox.recovery = asyncio.get_running_loop().create_task(self._recover(sandbox))
        else:
            self.lost(sandbox)

    async def _recover(self, sandbox: Sandbox) -> None:
        """Replace a shim of ours, as often as it takes."""
        attempt = 0
        while not sandbox.deleting:
            await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
            attempt += 1
            try:
                await self._replace(sandbox)
            except (errors.GantryError, OSError) as error:
                self._let_go(sandbox)
                _log.error("shim of a sandbox not replaced", id=sandbox.id, attempt=attempt, error=str(error))
            else:
                _log.info("shim of a sandbox replaced", namespace=sandbox.namespace, id=sandbox.id)
                return

    @staticmethod
    def _let_go(sandbox: Sandbox) -> None:
        client, sandbox.client = sandbox.client, None
        if client is not None:
            client.close()

    async def end(self, sandbox: Sandbox) -> None:
        """End the shim and remove the bundle. What is left of a foreign one its ``delete`` removes."""
        sandbox.deleting = True
        client = sandbox.client
        if client is not None:
            client.on_lost = None
            request = pb.ShutdownSandboxRequest(sandbox_id=sandbox.id)
            try:
                await client.call("ShutdownSandbox", request, pb.ShutdownSandboxResponse, seconds=CALL_SECONDS)
            except errors.GantryError as error:  # it may hang up as soon as it has read the request
                _log.info("shim does not shut the sandbox down", id=sandbox.id, error=str(error))
            await client.hung_up(CALL_SECONDS)
        if not sandbox.own:
            with contextlib.suppress(errors.GantryError):
                await foreign.delete(sandbox.program, sandbox.bundle, self._daemon)
        sandbox.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._bundles.socket(sandbox.bundle))
        sandbox.bundle.remove()


def _names(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
