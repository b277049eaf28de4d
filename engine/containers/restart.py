"""Restart policies: whether a container starts again after an exit, and when.

Rule: pure decisions; who acts on them is ``exits``. Source: Docker's documentation of ``--restart``.
"""

from __future__ import annotations

from engine.containers.model import Container

FIRST_PAUSE = 0.1
MAX_PAUSE = 60.0
SETTLED = 10.0
"""Seconds of a run after which the pause starts small again."""


def wants_restart(doc: Container, exit_code: int) -> bool:
    """Whether ``doc``'s policy starts it again after it ended by itself with ``exit_code``."""
    policy = doc.host.restart_policy
    if doc.stopped_by_user:
        return False
    if policy.name == "on-failure":
        limit = policy.maximum_retry_count
        return exit_code != 0 and (limit == 0 or doc.restart_count < limit)
    return policy.name in ("always", "unless-stopped")


def wants_start_at_boot(doc: Container) -> bool:
    """Whether a container found stopped starts when the daemon does."""
    if not doc.ever_started:
        return False
    policy = doc.host.restart_policy.name
    return policy == "always" or (policy == "unless-stopped" and not doc.stopped_by_user)


def next_pause(previous: float, ran_seconds: float) -> float:
    """Seconds to wait before the next start: doubling from 0.1 to 60, from the beginning after a long run."""
    if previous <= 0 or ran_seconds >= SETTLED:
        return FIRST_PAUSE
    return min(previous * 2, MAX_PAUSE)
