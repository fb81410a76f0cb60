"""Object keys: text that is written is read back, and other text is rejected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.domain.keys import ObjectKey
from tests.domain.strategies import THOROUGH

parts = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,20}[a-z0-9])?", fullmatch=True)


@THOROUGH
@given(parts, parts)
def test_a_keys_text_is_read_back(namespace: str, name: str) -> None:
    key = ObjectKey(namespace, name)
    assert ObjectKey.parse(str(key)) == key


@pytest.mark.parametrize("text", ["", "/", "a", "a/", "/a", "a/b/c", "a//b", "/a/b"])
def test_other_text_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="namespace/name"):
        ObjectKey.parse(text)
