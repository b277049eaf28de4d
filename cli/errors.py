"""How a command fails: one exception that carries the exit status."""

from __future__ import annotations


class CommandFailed(Exception):
    """Ends the command: ``message`` goes to stderr as ``gantry: …``, ``status`` is the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class ApiError(CommandFailed):
    """The engine answered with an error; ``http_status`` is its HTTP status."""

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message)
        self.http_status = http_status


class EngineUnreachable(CommandFailed):
    """Nothing answers where the engine should be."""
