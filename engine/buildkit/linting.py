"""``docker build --check``: what the build checks find, in the form that BuildKit's clients print.

Rule: nothing is built, and of the context nothing is sent. Source: buildkit ``frontend/subrequests/lint``.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from engine.build.context import Context
from engine.build.service import BuildService
from engine.buildkit.inputs import Inputs
from engine.buildkit.requests import BuildRequest
from engine.buildkit.status import rule_url

VERSION = b"1.0.0"


async def lint(builds: BuildService, inputs: Inputs, request: BuildRequest) -> dict[str, bytes]:
    """The result's metadata. Raises ``DockerfileError``."""
    alone = Context(builds.spool())
    alone.add_file(request.filename, inputs.source)
    alone.left_out = inputs.context.left_out
    found = [message["aux"] async for message in builds.check(alone, request.options)]
    source = {
        "filename": request.filename,
        "data": base64.b64encode(inputs.source).decode(),
        "language": "Dockerfile",
    }
    result = {"warnings": [_warning(finding) for finding in found], "sources": [source]}
    return {
        "result.json": json.dumps(result, indent=2).encode(),
        "result.txt": "".join(_text(finding) for finding in found).encode(),
        "result.statuscode": b"1" if found else b"0",
        "version": VERSION,
    }


def _warning(finding: dict[str, Any]) -> dict[str, Any]:
    span = {"start": {"line": finding["first"]}, "end": {"line": finding["last"]}}
    return {
        "ruleName": finding["rule"],
        "url": rule_url(finding["rule"]),
        "detail": finding["text"],
        "location": {"ranges": [span]},
    }


def _text(finding: dict[str, Any]) -> str:
    return f"\nWARNING: {finding['rule']} - {rule_url(finding['rule'])}\n{finding['text']}\n{finding['excerpt']}\n"
