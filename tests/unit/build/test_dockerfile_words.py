"""Variables, quotes and .dockerignore."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.build.dockerfile.expand import Expander, ExpansionError
from oci.errors import InvalidArgument
from oci.ignorefile import IgnoreRules

VALUES = {"a": "1", "empty": "", "path": "/usr/lib/x.tar.gz", "words": "one two"}


def expanded(text: str) -> str:
    return Expander(VALUES.get).word(text)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("$a", "1"),
        ("${a}b", "1b"),
        ("$ab", ""),
        ("\\$a", "$a"),
        ("'$a'", "$a"),
        ('"$a"', "1"),
        ('"\\$a \\x"', "$a \\x"),
        ("a\\ b", "a b"),
        ("${unset:-d}", "d"),
        ("${unset-d}", "d"),
        ("${empty:-d}", "d"),
        ("${empty-d}", ""),
        ("${a:+x}", "x"),
        ("${empty:+x}", ""),
        ("${empty+x}", "x"),
        ("${unset:-${a}y}", "1y"),
        ("${path#*/}", "usr/lib/x.tar.gz"),
        ("${path##*/}", "x.tar.gz"),
        ("${path%.*}", "/usr/lib/x.tar"),
        ("${path%%.*}", "/usr/lib/x"),
        ("${path/lib/bin}", "/usr/bin/x.tar.gz"),
        ("${path//r/R}", "/usR/lib/x.taR.gz"),
        ("${a:?gone}", "1"),
        ("$", "$"),
        ("cost: 5$", "cost: 5$"),
    ],
)
def test_forms(text: str, result: str) -> None:
    assert expanded(text) == result


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("${unset:?gone}", "unset: gone"),
        ("'open", "single-quote"),
        ('"open', "double-quote"),
        ("${a", "missing"),
        ("${a:x}", "modifier"),
    ],
)
def test_what_cannot_be_expanded(text: str, why: str) -> None:
    with pytest.raises(ExpansionError, match=why):
        expanded(text)


def test_words_split_outside_quotes_only() -> None:
    expander = Expander(VALUES.get)
    assert expander.words("x $words \"$words\" 'a b' c\\ d") == ["x", "one", "two", "one two", "a b", "c d"]
    assert expander.words("") == []
    assert expander.words("''") == [""]


def test_heredoc_keeps_quotes() -> None:
    expander = Expander(VALUES.get, quotes=False)
    assert expander.word("say \"$a\" 'x' \\$a \\n\n") == "say \"1\" 'x' $a \\n\n"


def test_names_used_and_unset_are_told() -> None:
    expander = Expander(VALUES.get)
    expander.word("$a ${default:-x} $nope")
    assert (expander.used, expander.unset) == ({"a", "default", "nope"}, {"nope"})


@given(st.text())
def test_any_text_expands_or_is_refused(text: str) -> None:
    try:
        expanded(text)
    except ExpansionError as error:
        assert str(error)


@given(st.text(alphabet=st.characters(exclude_characters="'"), max_size=30))
def test_single_quotes_keep_everything(text: str) -> None:
    assert expanded(f"'{text}'") == text


@pytest.mark.parametrize(
    ("patterns", "path", "ignored"),
    [
        (["*.md"], "a.md", True),
        (["*.md"], "d/a.md", False),
        (["**/*.md"], "d/a.md", True),
        (["**/*.md"], "a.md", True),
        (["dir"], "dir/x/y", True),
        (["dir/"], "dir/x", True),
        (["/dir"], "dir/x", True),
        (["*/temp*"], "a/temporary", True),
        (["*/*/temp*"], "a/temporary", False),
        (["temp?"], "tempa", True),
        (["temp?"], "temp", False),
        (["*.md", "!README.md"], "README.md", False),
        (["!README.md", "*.md"], "README.md", True),
        (["dir", "!dir/keep"], "dir/keep/x", False),
        (["dir", "!dir/keep"], "dir/other", True),
        (["[a-c]x"], "bx", True),
        (["a.b"], "axb", False),
        (["# comment", ""], "# comment", False),
        (["**"], "anything/at/all", True),
        (["a/../b"], "b", True),
    ],
)
def test_dockerignore(patterns: list[str], path: str, ignored: bool) -> None:
    assert IgnoreRules(patterns).ignored(path) is ignored


def test_directories_that_exceptions_reach_into() -> None:
    rules = IgnoreRules(["dir", "other", "!dir/a/keep", "!*/deep/x"])
    assert rules.may_hold_exceptions("dir")
    assert rules.may_hold_exceptions("dir/a")
    assert rules.may_hold_exceptions("other/deep")
    assert not rules.may_hold_exceptions("other/shallow")


def test_bad_patterns_are_named() -> None:
    for bad in ("!", "a[", "a\\"):
        with pytest.raises(InvalidArgument, match="line 2"):
            IgnoreRules(["ok", bad])
