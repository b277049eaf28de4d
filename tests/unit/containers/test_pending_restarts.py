"""Jobs beside everything else: cut off before they began, and failing."""

from __future__ import annotations

import asyncio
import gc
import warnings
from types import SimpleNamespace
from typing import Any, cast

from engine.containers.exits import Exits
from oci import errors


def test_a_restart_that_is_taken_back_before_it_began_is_closed() -> None:
    async def go() -> None:
        exits = Exits(cast("Any", None), cast("Any", None), cast("Any", None))
        machine: Any = SimpleNamespace(restart_timer=None)
        exits.restart_later(machine, 5)
        machine.restart_timer.cancel()
        await asyncio.gather(machine.restart_timer, return_exceptions=True)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(go())
        gc.collect()


def test_a_job_that_fails_hurts_nobody() -> None:
    async def fails(error: Exception) -> None:
        raise error

    async def go() -> None:
        exits = Exits(cast("Any", None), cast("Any", None), cast("Any", None))
        exits.spawn(fails(errors.NotFound("gone")))
        exits.spawn(fails(ValueError("odd")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(go())
