"""What the build checks found, as docker shows it.

Rule: findings are the answer that was asked for, so they go to stdout; the status says whether there were any.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from cli.errors import CommandFailed

FINDING = "gantry.check"
DOCUMENTATION = "https://docs.docker.com/go/dockerfile/rule"


def show_findings(messages: Iterable[dict[str, Any]]) -> int:
    """Print every finding; 1 when there were any. A Dockerfile that cannot be read raises ``CommandFailed``."""
    shown = []
    for message in messages:
        if "error" in message:
            raise CommandFailed(str(message["error"]))
        if message.get("id") == FINDING:
            shown.append(_text(message["aux"]))
    if not shown:
        print("Check complete, no warnings found.")
        return 0
    print("\n\n".join([f"Check complete, {len(shown)} warning{'s' * (len(shown) > 1)} found!", *shown]))
    return 1


def _text(finding: dict[str, Any]) -> str:
    rule = str(finding["rule"])
    page = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=JSON)", "-", rule).lower()
    return f"WARNING: {rule} - {DOCUMENTATION}/{page}/\n{finding['text']}\n{finding['excerpt']}"
