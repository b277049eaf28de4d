"""The shims of sandboxes: start one, find it again, replace it, and end it.

Rule: as a task's, a sandbox's bundle is made before its shim and removed after it, so that what a kill leaves behind is
found by listing directories.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from containerd_py.sandboxes.bundles import SOCKETS, SandboxBundles
from containerd_py.sandboxes.sandbox import SERVICE, Sandbox
from containerd_py.tasks import foreign
from containerd_py.tasks.bundle import Endpoint
from containerd_py.tasks.recovery import CALL_SECONDS, RETRY_SECONDS, ShimStarter
from containerd_py.tasks.shim_client import ShimClient
from oci import errors
from protos.containerd import shim_sandbox_pb2 as pb
from protos.containerd import shim_v2_pb2

_log = structlog.get_logger("containerd_py.sandboxes.shims")


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
        sandbox.log = foreign.ShimLog(sandbox.bundle)
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
        if not sandbox.own:
            sandbox.log = foreign.ShimLog(sandbox.bundle)
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
            await self._shut_down(sandbox, client)
            await client.hung_up(CALL_SECONDS)
        if not sandbox.own:
            with contextlib.suppress(errors.GantryError):
                await foreign.delete(sandbox.program, sandbox.bundle, self._daemon)
        sandbox.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._bundles.socket(sandbox.bundle))
        sandbox.bundle.remove()

    @staticmethod
    async def _shut_down(sandbox: Sandbox, client: ShimClient) -> None:
        """Tell the shim to end, as one that has no sandbox where it does not know what that is."""
        request = pb.ShutdownSandboxRequest(sandbox_id=sandbox.id)
        try:
            await client.call("ShutdownSandbox", request, pb.ShutdownSandboxResponse, seconds=CALL_SECONDS)
        except (errors.Unimplemented, errors.NotFound):
            with contextlib.suppress(errors.GantryError, OSError):
                tasks = await ShimClient.connect(sandbox.namespace, client.address, client.version)
                end = shim_v2_pb2.ShutdownRequest(id=sandbox.id, now=True)
                try:
                    await tasks.call("Shutdown", end, Empty, seconds=CALL_SECONDS)
                finally:
                    tasks.close()
        except errors.GantryError as error:  # it may hang up as soon as it has read the request
            _log.info("shim does not shut the sandbox down", id=sandbox.id, error=str(error))
