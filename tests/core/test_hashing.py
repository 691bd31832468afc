import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agartha.core.errors import DataError
from agartha.core.hashing import digest


def test_bytes_and_files_of_the_same_content_have_the_plain_sha256(tmp_path: Path) -> None:
    expected = "sha256:" + hashlib.sha256(b"agartha").hexdigest()
    (tmp_path / "f").write_bytes(b"agartha")
    assert digest(b"agartha") == digest(tmp_path / "f") == digest(memoryview(b"agartha")) == expected


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none(), min_size=2))
def test_the_order_of_keys_does_not_matter(value: dict[str, object]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


def test_a_folder_changes_with_a_name_or_a_content(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("1")
    seen = {digest(tmp_path)}
    (tmp_path / "sub" / "a").write_text("2")
    seen.add(digest(tmp_path))
    (tmp_path / "sub" / "a").rename(tmp_path / "sub" / "b")
    seen.add(digest(tmp_path))
    assert len(seen) == 3


def test_a_text_is_not_a_path_and_a_missing_file_is_an_error(tmp_path: Path) -> None:
    assert digest("agartha") != digest(b"agartha")
    with pytest.raises(DataError, match=r"cannot hash .*none"):
        digest(tmp_path / "none")
