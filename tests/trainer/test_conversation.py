"""What a person reads while an answer comes: whole characters only, and all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer.conversation import ShownText


def shown(chunks: list[bytes]) -> tuple[list[str], str]:
    """The pieces that are shown while bytes come in chunks, as from a byte-level tokenizer, and the rest at the end."""
    text, said, pieces = ShownText(), b"", []
    for chunk in chunks:
        said += chunk
        pieces.append(text.new(said.decode(errors="replace")))
    return pieces, text.rest(said.decode(errors="replace"))


@given(text=st.text(alphabet="가힣ㅋ한글 a1é漢😀\n", max_size=20), cuts=st.lists(st.integers(1, 5), min_size=1))
def test_streamed_pieces_are_whole_characters_and_make_the_text(text: str, cuts: list[int]) -> None:
    data, chunks = text.encode(), []
    while data:
        size = cuts[len(chunks) % len(cuts)]
        chunks.append(data[:size])
        data = data[size:]

    pieces, rest = shown(chunks)

    assert "".join(pieces) + rest == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_a_syllable_is_shown_once_its_last_byte_has_come() -> None:
    pieces, rest = shown([b"\xed", b"\x95", b"\x9c", "글".encode()])

    assert (pieces, rest) == (["", "", "한", "글"], "")


def test_bytes_that_never_become_a_character_show_at_the_end() -> None:
    assert shown([b"a", b"\xed\x95"]) == (["a", ""], "\N{REPLACEMENT CHARACTER}")
    assert shown([b"\xed", b"b"]) == (["", "\N{REPLACEMENT CHARACTER}b"], "")


def test_a_decoder_that_takes_text_back_never_shows_it_twice() -> None:
    text = ShownText()

    assert text.new("좋은 ") == "좋은 "
    assert text.new("좋은") == ""
    assert text.new("좋은 날") == "날"
