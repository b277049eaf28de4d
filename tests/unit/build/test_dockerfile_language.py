"""The Dockerfile language: lines, flags, heredocs, meanings, errors that show the place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.build.dockerfile import instructions as meanings
from engine.build.dockerfile.errors import DockerfileError, Lines, excerpt
from engine.build.dockerfile.instructions import typed
from engine.build.dockerfile.parser import Instruction, parse, parse_line, split_words


def one(text: str) -> Instruction:
    (found,) = parse(text).instructions
    return found


def meaning(text: str) -> meanings.Typed:
    return typed(one(text))


def test_directives_comments_and_continuations() -> None:
    text = "# syntax=docker/dockerfile:1\n# escape=`\n# a comment\nFROM scratch\nrun echo `\n  # gone\n\n  a `  \n  b\n"
    parsed = parse(text)
    assert parsed.directives == {"syntax": "docker/dockerfile:1", "escape": "`"}
    first, second = parsed.instructions
    assert (first.keyword, first.text) == ("FROM", "scratch")
    assert (second.keyword, second.text.split(), second.lines) == ("RUN", ["echo", "a", "b"], Lines(5, 9))
    assert [w.rule for w in parsed.warnings] == ["NoEmptyContinuation"]


def test_directive_after_a_comment_is_a_comment() -> None:
    assert parse("# hello\n# escape=`\nFROM a\n").escape == "\\"


def test_byte_order_mark_and_windows_lines() -> None:
    assert one("\ufeffFROM a\r\n".encode().decode()).text == "a"
    assert parse("\ufeffFROM a \\\r\n AS b\r\n".encode()).instructions[0].text.split() == ["a", "AS", "b"]


def test_flags_and_json_form() -> None:
    found = one('COPY --from=build --chown="a b" --link ["x y", "/z"]\n')
    assert found.flags == (("from", "build"), ("chown", "a b"), ("link", None))
    assert found.words == ("x y", "/z")
    assert one("CMD [broken, json]").words is None
    assert one('CMD ["a", 1]').words is None


def test_heredocs() -> None:
    run = one("RUN <<EOF\necho $a\n\techo b\nEOF\n")
    assert [(h.name, h.content, h.expand) for h in run.heredocs] == [("EOF", "echo $a\n\techo b\n", True)]
    chomped = one("RUN python3 <<-'PY' > /out\n\tprint(1)\n\tPY\n")
    assert chomped.heredocs[0].content == "print(1)\n"
    assert (chomped.heredocs[0].expand, chomped.heredocs[0].chomp) == (False, True)
    two = parse("COPY <<a <<b /dir/\n1\na\n2\nb\nRUN true\n").instructions
    assert [h.content for h in two[0].heredocs] == ["1\n", "2\n"]
    assert two[1].keyword == "RUN"
    assert one('RUN cat <<< "word"').heredocs == ()
    assert one("RUN echo '<<EOF'").heredocs == ()
    with pytest.raises(DockerfileError, match="unterminated heredoc EOF"):
        parse("RUN <<EOF\nnever ends\n")


def test_copy_and_add() -> None:
    copy = meaning("COPY --from=0 --chmod=u=rwx,go=r --parents --exclude=*.o --exclude=x a b /c/")
    assert isinstance(copy, meanings.Transfer)
    assert (copy.from_, copy.chmod, copy.parents, copy.exclude) == ("0", "u=rwx,go=r", True, ("*.o", "x"))
    assert (copy.sources, copy.target, copy.add) == (("a", "b"), "/c/", False)
    inline = meaning("COPY <<one file /d/\nx\none\n")
    assert isinstance(inline, meanings.Transfer)
    assert (inline.sources, [h.name for h in inline.heredocs]) == (("file",), ["one"])
    add = meaning("ADD --checksum=sha256:" + "0" * 64 + " --keep-git-dir=true --unpack=false https://x/y /z")
    assert isinstance(add, meanings.Transfer)
    assert (add.keep_git_dir, add.unpack, add.add) == (True, False, True)


def test_run_mounts() -> None:
    run = meaning(
        "RUN --mount=type=cache,target=/c,sharing=locked --mount=type=secret,id=s,required,mode=0400"
        " --mount=type=tmpfs,target=/t,size=64m --mount=target=/src,rw --network=none make"
    )
    assert isinstance(run, meanings.Run)
    cache, secret, tmpfs, bind = run.mounts
    assert (cache.type, cache.sharing, cache.read_only) == ("cache", "locked", False)
    assert (secret.required, secret.mode) == (True, 0o400)
    assert tmpfs.size == 64 << 20
    assert (bind.type, bind.read_only) == ("bind", False)
    assert (run.network, run.text) == ("none", "make")


def test_env_label_arg() -> None:
    env = meaning('ENV a=1 b=\'2 3\' c="4\\""')
    assert isinstance(env, meanings.Pairs)
    assert env.pairs == (("a", "1"), ("b", "'2 3'"), ("c", '"4\\""'))
    old = meaning("ENV name all of this")
    assert isinstance(old, meanings.Pairs)
    assert old.pairs == (("name", "all of this"),)
    arg = meaning("ARG a b=c")
    assert isinstance(arg, meanings.Arg)
    assert arg.pairs == (("a", None), ("b", "c"))


def test_healthcheck() -> None:
    check = meaning("HEALTHCHECK --interval=1m30s --retries=2 CMD curl -f http://localhost/")
    assert isinstance(check, meanings.Healthcheck)
    assert (check.interval, check.retries) == (90 * 10**9, 2)
    assert check.test == ("CMD-SHELL", "curl -f http://localhost/")
    words = meaning('HEALTHCHECK CMD ["a", "b"]')
    assert isinstance(words, meanings.Healthcheck)
    assert words.test == ("CMD", "a", "b")
    none = meaning("HEALTHCHECK NONE")
    assert isinstance(none, meanings.Healthcheck)
    assert none.test == ("NONE",)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("FROM a\nRNU x\n", "unknown instruction: RNU", 2),
        ("", "file with no instructions", 1),
        ("FROM a b\n", "requires either one or three arguments", 1),
        ("FROM a AS 1x\n", "invalid name for build stage", 1),
        ("FROM a\nCOPY x\n", "requires at least two arguments", 2),
        ("FROM a\n\nENV\n", "requires at least one argument", 3),
        ("FROM a\nENV a=1 b\n", "can't find = in 'b'", 2),
        ("FROM a\nRUN --mount=type=magic,target=/x y\n", "unsupported mount type 'magic'", 2),
        ("FROM a\nRUN --mount=type=cache x\n", "target is required", 2),
        ("FROM a\nRUN --colour=red y\n", "unknown flag: colour", 2),
        ("FROM a\nCOPY --chown= a b\n", "missing a value on flag: --chown", 2),
        ("FROM a\nCOPY --link=maybe a b\n", "expecting boolean value for flag --link", 2),
        ("FROM a\nSHELL /bin/sh\n", "requires the arguments to be in JSON form", 2),
        ("FROM a\nONBUILD ONBUILD RUN x\n", "Chaining ONBUILD", 2),
        ("FROM a\nONBUILD FROM x\n", "isn't allowed as an ONBUILD trigger", 2),
        ("FROM a\nHEALTHCHECK --interval=x CMD y\n", "invalid duration 'x'", 2),
        ("# escape=x\nFROM a\n", "invalid escape token", 1),
        ("# escape=`\n# escape=`\nFROM a\n", "only one escape parser directive", 2),
    ],
)
def test_errors_name_the_line(text: str, message: str, line: int) -> None:
    with pytest.raises(DockerfileError) as caught:
        for instruction in parse(text).instructions:
            typed(instruction)
    assert message in str(caught.value)
    assert caught.value.lines.first == line
    assert f"on line {line}" in str(caught.value)


def test_error_shows_the_source_with_a_caret() -> None:
    text = "FROM a\nRUN one\n  RNU two\nRUN three\n"
    with pytest.raises(DockerfileError) as caught:
        parse(text)
    shown = excerpt(text, "Dockerfile", caught.value.lines).splitlines()
    assert shown[0] == "Dockerfile:3"
    assert " 3 | >>>   RNU two" in shown
    assert shown[shown.index(" 3 | >>>   RNU two") + 1].endswith("^^^^^^^")
    assert "did you mean RUN?" in str(caught.value)


def test_parse_line_takes_exactly_one() -> None:
    assert parse_line('CMD ["sh"]').words == ("sh",)
    with pytest.raises(DockerfileError):
        parse_line("CMD a\nCMD b")


@given(st.text())
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        for instruction in parse(text).instructions:
            typed(instruction)
    except DockerfileError as error:
        excerpt(text, "Dockerfile", error.lines)


@given(st.lists(st.from_regex(r"[a-z0-9/.]{1,8}", fullmatch=True), max_size=6))
def test_words_come_back(words: list[str]) -> None:
    assert split_words("  ".join(words), "\\") == words
