"""Streaming JSON gives what the json module gives, in any chunks, and names the byte of a fault."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.corpus.json_stream import JsonError, iterate_values

leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
value = st.recursive(leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner))


def expected(root: Any) -> list[tuple[str, Any]]:
    if isinstance(root, list):
        return [("", item) for item in root]
    if not isinstance(root, dict):
        return [("", root)]
    return [(key, item) for key, held in root.items() for item in (held if isinstance(held, list) else [held])]


@given(root=value, chunk_bytes=st.integers(1, 9), indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_values_are_those_of_the_json_module_in_any_chunks(root, chunk_bytes, indent, ascii_only) -> None:
    data = json.dumps(root, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")

    found = list(iterate_values(io.BytesIO(data), chunk_bytes=chunk_bytes))

    assert [(key, item) for key, _, item in found] == expected(root)
    for _, offset, item in found:
        rest = data[offset:].decode()
        assert json.JSONDecoder().raw_decode(rest)[0] == item


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        ('{"가": [1, 2 3]}'.encode(), 14),
        ('{"가": [1, oops]}'.encode(), 12),
        ('{"가": [{"a": oops}]}'.encode(), 15),
        ('{"가": [1]} x'.encode(), 13),
        ('\ufeff{"가" [1]}'.encode(), 10),
        ('{"가": [1'.encode(), 10),
        ('{"가": ["'.encode() + b"\xff" + b'"]}', 10),
        (b"{1: 2}", 2),
        (b"", 0),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 1 << 20])
def test_a_fault_is_named_by_its_byte(data: bytes, offset: int, chunk_bytes: int) -> None:
    with pytest.raises(JsonError) as caught:
        list(iterate_values(io.BytesIO(data), chunk_bytes=chunk_bytes))

    assert caught.value.offset == offset


def test_memory_holds_an_element_and_not_the_file() -> None:
    class Counted(io.BytesIO):
        num_read = 0

        def read(self, size: int | None = -1) -> bytes:
            self.num_read += size or 0
            return super().read(size)

    stream = Counted(json.dumps({"data": ["가" * 100] * 1000}).encode())

    next(iterate_values(stream, chunk_bytes=64))

    assert stream.num_read < 4096


def test_nesting_without_end_is_a_fault_and_not_a_crash() -> None:
    with pytest.raises(JsonError, match="nested too deep"):
        list(iterate_values(io.BytesIO(b'{"a": ' + b"[" * 200_000)))
