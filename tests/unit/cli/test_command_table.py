"""Every command in the table has a parser that builds and a help text."""

from __future__ import annotations

from importlib import import_module

import pytest

from cli.main import COMMANDS, usage


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_parser_builds_and_explains_itself(name: str) -> None:
    module = import_module(f"cli.commands.{COMMANDS[name][0]}")
    assert f"gantry {name}" in module.parser(name).format_help()
    assert f"\n  {name} " in usage()
