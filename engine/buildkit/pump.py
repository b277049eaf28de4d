"""Bytes between a hijacked connection and a socket of ours, unchanged.

Rule: a connection is over when either side of it is.
"""

from __future__ import annotations

import asyncio
import contextlib

from engine.http.messages import Duplex

PIECE = 1 << 18


async def pump(duplex: Duplex, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy both ways until one side ends; ``writer`` is closed then, ``duplex`` is its owner's."""
    tasks = [asyncio.create_task(_up(duplex, writer)), asyncio.create_task(_down(reader, duplex))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _up(duplex: Duplex, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await duplex.read(PIECE):
            writer.write(data)
            await writer.drain()


async def _down(reader: asyncio.StreamReader, duplex: Duplex) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(PIECE):
            await duplex.write(data)
