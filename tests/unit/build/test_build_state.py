"""Instructions that change the configuration, and the variables they see."""

from __future__ import annotations

import pytest

from engine.build.dockerfile.errors import DockerfileError
from engine.build.dockerfile.instructions import Run, typed
from engine.build.dockerfile.parser import parse
from engine.build.state import DEFAULT_PATH, State, changed, command_words, initial
from oci.image import ExecutionConfig, ImageConfig, RootFS


def base(**config: object) -> State:
    image = ImageConfig("amd64", "linux", RootFS(()), config=ExecutionConfig(**config))  # type: ignore[arg-type] # by name
    return initial(image, "\\")


def after(text: str, state: State | None = None, **build_args: str) -> State:
    state = state or base()
    for instruction in parse(text).instructions:
        state = changed(state, typed(instruction), build_args, {"outer": "global", "none": None})
    return state


def test_environment_is_expanded_with_what_was_before() -> None:
    state = after('ENV a=hello\nENV a=bye b=$a c="x y"\n')
    assert state.config.env == (f"PATH={DEFAULT_PATH}", "a=bye", "b=hello", "c=x y")


def test_path_of_the_base_stays() -> None:
    assert base(env=("PATH=/mine", "x=1")).config.env == ("PATH=/mine", "x=1")


def test_args_and_environment() -> None:
    state = after("ARG a=1\nARG b=${a}2\nARG c\nARG outer\nENV a=env\nENV r=$a$b$outer\n", c="given")
    assert state.args == {"a": "1", "b": "12", "c": "given", "outer": "global"}
    assert state.environment["r"] == "env12global"
    assert state.visible_args() == ["b=12", "c=given", "outer=global"]
    assert "a=env" in state.run_environment({"http_proxy": "p"})
    assert "http_proxy=p" in state.run_environment({"http_proxy": "p"})


def test_build_argument_beats_the_default() -> None:
    assert after("ARG v=1\n", v="2").args == {"v": "2"}


def test_cmd_entrypoint_and_shell() -> None:
    state = after('CMD echo $x\nENTRYPOINT ["/e"]\n', base(cmd=("old",)))
    assert (state.config.cmd, state.config.entrypoint) == (("/bin/sh", "-c", "echo $x"), ("/e",))
    assert after("ENTRYPOINT run\n", base(cmd=("old",))).config.cmd is None
    shell = after('SHELL ["/bin/bash", "-c"]\nCMD hi\n')
    assert shell.config.cmd == ("/bin/bash", "-c", "hi")


def test_workdir_user_volume_expose_label() -> None:
    state = after(
        "ENV d=sub\nWORKDIR /a\nWORKDIR $d/../c\nUSER me:us\nVOLUME /v /w\nEXPOSE 80 9000-9001/udp $none\n"
        "LABEL a=1\nLABEL b='2 $d'\nSTOPSIGNAL SIGUSR1\nMAINTAINER Someone\n"
    )
    config = state.config
    assert (config.working_dir, config.user, config.stop_signal, state.author) == (
        "/a/c",
        "me:us",
        "SIGUSR1",
        "Someone",
    )
    assert set(config.volumes or ()) == {"/v", "/w"}
    assert set(config.exposed_ports) == {"80/tcp", "9000/udp", "9001/udp"}
    assert config.labels == {"a": "1", "b": "2 $d"}


def test_absolute_keeps_a_trailing_slash() -> None:
    state = after("WORKDIR /w\n")
    assert [state.absolute(p) for p in ("x", "x/", ".", "./", "/", "/a/", "..")] == [
        "/w/x", "/w/x/", "/w/", "/w/", "/", "/a/", "/",
    ]  # fmt: skip


def test_onbuild_and_healthcheck() -> None:
    state = after("ONBUILD RUN make\nHEALTHCHECK --retries=3 CMD true\n", base(on_build=("COPY . /",)))
    assert state.config.on_build == ("COPY . /", "RUN make")
    assert state.config.healthcheck is not None
    assert (state.config.healthcheck.retries, state.config.healthcheck.test) == (3, ("CMD-SHELL", "true"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RUN echo $x", ("/bin/sh", "-c", "echo $x")),
        ('RUN ["a", "b"]', ("a", "b")),
        ("RUN <<EOF\necho 1\nEOF", ("/bin/sh", "-c", "echo 1\n")),
        ("RUN cat <<EOF > /f\nx\nEOF", ("/bin/sh", "-c", "cat <<EOF > /f\nx\nEOF\n")),
    ],
)
def test_command_of_run(text: str, words: tuple[str, ...]) -> None:
    (instruction,) = parse(text).instructions
    run = typed(instruction)
    assert isinstance(run, Run)
    assert command_words(base(), run) == words


@pytest.mark.parametrize(
    "text", ["EXPOSE 0", "EXPOSE 99999", "EXPOSE x", "STOPSIGNAL ?", "USER ${none}", "ENV ${x:?no}=1"]
)
def test_refused(text: str) -> None:
    with pytest.raises(DockerfileError):
        after(text)
