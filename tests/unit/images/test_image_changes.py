"""``--change`` instructions: what they do to a configuration and how wrong ones are refused."""

from __future__ import annotations

import pytest

from engine.images.changes import apply_changes, duration
from oci.errors import InvalidArgument
from oci.image import ExecutionConfig, Healthcheck


def changed(*changes: str, base: ExecutionConfig | None = None) -> ExecutionConfig:
    return apply_changes(base or ExecutionConfig(), changes)


def test_commands_in_both_forms() -> None:
    assert changed('CMD ["sh", "-c", "echo hi"]').cmd == ("sh", "-c", "echo hi")
    assert changed("cmd echo hi").cmd == ("/bin/sh", "-c", "echo hi")
    assert changed('ENTRYPOINT ["/x"]').entrypoint == ("/x",)
    assert changed("CMD [not json]").cmd == ("/bin/sh", "-c", "[not json]")


def test_environment_replaces_and_expands() -> None:
    base = ExecutionConfig(env=("A=1", "B=2"))
    assert changed('ENV A=3 C="x y" D=$B-${E:-none}', base=base).env == ("A=3", "B=2", "C=x y", "D=2-none")
    assert changed("ENV A some words").env == ("A=some words",)


def test_the_rest() -> None:
    config = changed(
        "EXPOSE 80 53/udp 8000-8002", "LABEL a=b c='d e'", "USER me", "VOLUME /a /b", "WORKDIR /x", "WORKDIR y",
        "STOPSIGNAL SIGINT", "ONBUILD RUN make",
    )  # fmt: skip
    assert set(config.exposed_ports) == {"80/tcp", "53/udp", "8000/tcp", "8001/tcp", "8002/tcp"}
    assert config.labels == {"a": "b", "c": "d e"}
    assert config.volumes == {"/a": {}, "/b": {}}
    assert (config.user, config.working_dir, config.stop_signal) == ("me", "/x/y", "SIGINT")
    assert config.on_build == ("RUN make",)


def test_health_checks() -> None:
    check = changed("HEALTHCHECK --interval=1m30s --retries=3 CMD curl -f http://x").healthcheck
    assert check == Healthcheck(test=("CMD-SHELL", "curl -f http://x"), interval=90 * 10**9, retries=3)
    assert changed("HEALTHCHECK NONE").healthcheck == Healthcheck(test=("NONE",))
    assert duration("1h2ms") == 3600 * 10**9 + 2 * 10**6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("RUN x", "run is not a valid change command"),
        ("CMD", "CMD requires at least one argument"),
        ("EXPOSE 70000", "invalid containerPort"),
        ("ENV A", "ENV must have two arguments"),
        ("ENV A=1 B", "can't find ="),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD"),
        ("LABEL a='b", "unexpected end of statement"),
        ("HEALTHCHECK --interval=soon CMD x", "invalid duration"),
        ("HEALTHCHECK --bogus=1 CMD x", "unknown flag: bogus"),
    ],
)
def test_wrong_ones_are_refused(change: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        changed(change)
