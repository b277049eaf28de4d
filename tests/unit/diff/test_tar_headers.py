"""Headers of tar members against those of Python's tarfile."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci import tarhead

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
NAMES = st.one_of(st.text("ab/.", max_size=110), st.text(CHARACTERS, max_size=60), st.just("x" * 100))
KINDS = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
NUMBERS = st.one_of(st.integers(0, 0xFFFFFFFE), st.sampled_from([8**7 - 1, 8**7]))
SIZES = st.one_of(st.integers(0, 2**40), st.sampled_from([8**11 - 1, 8**11]))
TIMES = st.one_of(st.integers(-(10**12), 2**63), st.integers(0, 2**33).map(lambda seconds: seconds * 10**9))
NO_RECORDS: dict[str, str] = {}
RECORDS = st.one_of(
    st.just(NO_RECORDS), st.dictionaries(st.just("SCHILY.xattr.user.a"), st.text(CHARACTERS, max_size=9))
)
MEMBERS = st.builds(
    tarhead.Member,
    NAMES,
    st.sampled_from(KINDS),
    st.integers(0, 0o177777),
    NUMBERS,
    NUMBERS,
    SIZES,
    TIMES,
    NAMES,
    st.tuples(st.integers(0, 300), st.integers(0, 300)),
)


@given(MEMBERS, RECORDS)
def test_every_header_is_byte_for_byte_tarfiles(member: tarhead.Member, records: dict[str, str]) -> None:
    plain = member if member.kind == tarfile.CHRTYPE else member._replace(device=(0, 0))
    assert tarhead.header(plain, records) == tarhead.unusual(plain, records)


def test_what_is_usual_does_not_take_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = tarhead.Member("usr/bin/x", tarfile.REGTYPE, 0o100755, 1000, 1000, 7, 1_700_000_000_123_456_789)
    tarhead.header(usual)  # what is made once, is made
    monkeypatch.delattr(tarhead, "unusual")
    monkeypatch.delattr(tarfile.TarInfo, "tobuf")
    data = tarhead.header(usual) + b"content" + tarhead.padding(7) + tarhead.END
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (found,) = archive.getmembers()
        assert (found.name, found.mode, found.uid, found.size) == ("usr/bin/x", 0o755, 1000, 7)
        assert found.pax_headers == {"mtime": "1700000000.123456789"}
        file = archive.extractfile(found)
        assert file is not None and file.read() == b"content"
