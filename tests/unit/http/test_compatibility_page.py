"""The page that says what of the API works is the one the route table gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engine.api import compatibility, fields
from engine.containers.logoptions import EVERYWHERE, OPTIONS

PAGE = Path(__file__).resolve().parents[3] / "docs/api-compatibility.md"


def test_the_page_is_current() -> None:
    # In a process of its own: an engine brings grpc's threads along, and other tests fork this one.
    made = subprocess.run(
        [sys.executable, "-m", "engine.api.compatibility"], capture_output=True, text=True, check=True
    )
    expected = made.stdout
    assert PAGE.read_text() == expected, "python -m engine.api.compatibility > docs/api-compatibility.md"


def test_every_remark_is_about_a_field() -> None:
    listed = [name for _, name in fields.fields()]
    assert set(fields.REMARKS) <= set(listed)
    options = {name for names in OPTIONS.values() for name in names}
    assert set(fields.LOG_REMARKS) <= options | set(EVERYWHERE)


def test_every_operation_is_listed_once() -> None:
    listed = [operation for group in compatibility.operations().values() for operation in group]
    assert len(listed) == len(set(listed))
