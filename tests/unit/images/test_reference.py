"""Docker's reference grammar as a table: what is accepted, how it is shown, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci import digest, reference
from oci.errors import DataLoss, InvalidArgument

D = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("busybox", f"{reference.DEFAULT_HOST}/library/busybox", "busybox"),
        ("busybox:1.36", f"{reference.DEFAULT_HOST}/library/busybox:1.36", "busybox:1.36"),
        ("user/app", f"{reference.DEFAULT_HOST}/user/app", "user/app"),
        (f"index.{reference.DEFAULT_HOST}/a", f"{reference.DEFAULT_HOST}/library/a", "a"),
        (f"{reference.DEFAULT_HOST}/library/a:x", f"{reference.DEFAULT_HOST}/library/a:x", "a:x"),
        ("library/a/b", f"{reference.DEFAULT_HOST}/library/a/b", "library/a/b"),
        ("localhost/a", "localhost/a", "localhost/a"),
        ("localhost:5000/a/b:t", "localhost:5000/a/b:t", "localhost:5000/a/b:t"),
        ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a"),
        ("reg.example/a__b/c-d.e", "reg.example/a__b/c-d.e", "reg.example/a__b/c-d.e"),
        (f"a@{D}", f"{reference.DEFAULT_HOST}/library/a@{D}", f"a@{D}"),
        (f"a:t@{D}", f"{reference.DEFAULT_HOST}/library/a:t@{D}", f"a:t@{D}"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000/x", "127.0.0.1:5000/x"),
    ],
)
def test_accepted(text: str, canonical: str, familiar: str) -> None:
    parsed = reference.parse(text)
    assert (str(parsed), parsed.familiar) == (canonical, familiar)
    assert reference.parse(canonical) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "a:", "A", "Foo/bar/", "a//b", "-a", "a-", "a..b", "a b", "a:t t", "a@sha256:12", "a@md5:" + "0" * 32,
        "a/../b", "../a", "/a", "a:" + "t" * 129, "localhost:port/a", "a\n", "a:t\n", "x" * 300, "a" * 64, "é",
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        reference.parse(text)


def test_upper_case_is_explained() -> None:
    with pytest.raises(InvalidArgument, match=r"repository name \(Foo\) must be lowercase"):
        reference.parse("Foo")


def test_default_tag_is_added_only_to_bare_names() -> None:
    assert reference.parse("a").tagged().tag == "latest"
    assert reference.parse(f"a@{D}").tagged().tag == ""
    assert reference.parse("a:b").tagged().tag == "b"


@given(st.text(max_size=80))
def test_round_trip_or_refusal(text: str) -> None:
    try:
        parsed = reference.parse(text)
    except InvalidArgument:
        return
    assert reference.parse(str(parsed)) == parsed
    assert reference.parse(parsed.familiar) == parsed


def test_chain_ids_follow_the_image_spec() -> None:
    a, b = digest.of_bytes(b"a"), digest.of_bytes(b"b")
    assert digest.chain_ids([a, b]) == [a, digest.of_bytes(f"{a} {b}".encode())]
    assert digest.chain_id([]) == ""


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:" + "A" * 64, "sha256:../x", "sha1:" + "0" * 40])
def test_bad_digests_are_refused(text: str) -> None:
    assert not digest.is_digest(text)
    with pytest.raises(InvalidArgument):
        digest.parse(text)


def test_verify_names_both_digests() -> None:
    with pytest.raises(DataLoss, match=r"layer x: content has digest sha256:.* expected sha256:"):
        digest.verify(b"a", digest.of_bytes(b"b"), "layer x")
