"""Ids: nothing lost, nothing added, nothing injected, and the same from either library."""

from __future__ import annotations

import json
import pickle
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trained_tokenizer import KINDS, OF_WORDS, VOCAB_SIZE

from data_pipeline.stage import StageError
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.measure import Measure, measure, measure_hostile
from data_pipeline.tokenizer.probes import HOSTILE, PROBES
from data_pipeline.tokenizer.special import SPECIAL_TOKENS, TEMPLATE_MARKERS

REPO = Path(__file__).resolve().parents[3]
SHARED_DATA = REPO.parent / "shared" / "data"

hangul = st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3)
jamo = st.characters(min_codepoint=0x1100, max_codepoint=0x11FF) | st.characters(
    min_codepoint=0x3131, max_codepoint=0x318E
)
spice = st.sampled_from(
    ["\n", "\r\n", "\t", "  ", " ", "'s", "12", "<|endoftext|>", "### 답변:", "👨‍👩‍👧", "\u0301", "\x00"]
)
# Characters that this Python knows: of newer ones the libraries' Unicode tables know less or more.
known = st.characters(exclude_categories=["Cs", "Cn"])
korean_text = st.lists(hangul | jamo | spice | known, max_size=30).map("".join)
korean_text |= korean_text.map(lambda text: unicodedata.normalize("NFD", text))


def all_ids(encoder: Encoder, texts: list[str]) -> list[list[int]]:
    ids, offsets = encoder.encode_batch(texts)
    return [ids[start:stop].tolist() for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]


@pytest.fixture(scope="session")
def encoders(trained: dict[str, Path]) -> dict[str, Encoder]:
    return {kind: Encoder(folder) for kind, folder in trained.items()}


@given(text=korean_text)
def test_byte_level_gives_back_every_nfc_text(encoders: dict[str, Encoder], text: str) -> None:
    encoder = encoders["byte_level_bpe"]

    assert encoder.decode_batch(*encoder.encode_batch([text])) == [unicodedata.normalize("NFC", text)]


@pytest.fixture(scope="session")
def reference(byte_level: Path) -> Encoder:
    return Encoder(byte_level, backend="tokenizers")


@given(texts=st.lists(korean_text, max_size=4))
def test_the_fast_library_gives_the_ids_of_the_reference(
    encoders: dict[str, Encoder], reference: Encoder, texts: list[str]
) -> None:
    assert encoders["byte_level_bpe"].backend == "fastokens"
    assert reference.backend == "tokenizers"

    assert all_ids(encoders["byte_level_bpe"], texts) == all_ids(reference, texts)


def test_the_fast_library_gives_the_ids_of_the_reference_on_real_text(
    encoders: dict[str, Encoder], reference: Encoder
) -> None:
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data/docs_ko")
    lines = (SHARED_DATA / "docs_ko/vue_ko.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]

    assert all_ids(encoders["byte_level_bpe"], texts) == all_ids(reference, texts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["fastest", "tokenizers"])
@pytest.mark.parametrize("token", [*SPECIAL_TOKENS[:7], *TEMPLATE_MARKERS])
def test_a_text_that_spells_a_special_token_gets_ordinary_ids(
    trained: dict[str, Path], kind: str, backend: str, token: str
) -> None:
    encoder = Encoder(trained[kind], backend=backend)
    special = set(range(len(SPECIAL_TOKENS) + (len(TEMPLATE_MARKERS) if kind in OF_WORDS else 0)))

    (ids,) = all_ids(encoder, [f"끝났다.{token}그리고 {token}"])

    assert not special & (set(ids) - {encoder.unk_id})
    assert token.replace(" ", "") in encoder.tokenizer.decode(ids, skip_special_tokens=False).replace(" ", "")


@pytest.mark.parametrize("kind", KINDS)
def test_no_special_token_is_added(encoders: dict[str, Encoder], kind: str) -> None:
    assert all_ids(encoders[kind], [""]) == [[]]
    assert encoders[kind].eos_id not in all_ids(encoders[kind], ["강릉에서"])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_texts_one_after_another(encoders: dict[str, Encoder], kind: str) -> None:
    texts = ["강릉에서", "", "바다를 보았다.\n", "x"]

    ids, offsets = encoders[kind].encode_batch(texts)

    assert ids.dtype == np.uint32
    assert offsets.dtype == np.int64
    assert offsets[0] == 0
    assert offsets[-1] == len(ids)
    assert all_ids(encoders[kind], texts) == [all_ids(encoders[kind], [text])[0] for text in texts]
    empty_ids, empty_offsets = encoders[kind].encode_batch([])
    assert len(empty_ids) == 0
    assert empty_offsets.tolist() == [0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_encoder_gives_the_same_ids(encoders: dict[str, Encoder], kind: str) -> None:
    again = pickle.loads(pickle.dumps(encoders[kind]))

    assert all_ids(again, PROBES) == all_ids(encoders[kind], PROBES)
    assert (again.fingerprint, again.backend) == (encoders[kind].fingerprint, encoders[kind].backend)


def test_roles_have_the_fixed_ids(encoders: dict[str, Encoder]) -> None:
    for encoder in encoders.values():
        assert (encoder.eos_id, encoder.pad_id, encoder.vocab_size) == (0, 1, VOCAB_SIZE)
    assert {kind: encoder.unk_id for kind, encoder in encoders.items()} == {
        kind: 2 if kind in OF_WORDS else None for kind in KINDS
    }


def test_hash_hash_counts_what_it_does_not_know(encoders: dict[str, Encoder]) -> None:
    encoder = encoders["hash_hash_bpe"]

    figures = measure(encoder, ["강릉 뷁뷁", "바다\n를"])

    unknown = Measure(num_texts=2, num_chars=9, num_bytes=3 * 7 + 2, num_unk=2, num_letters=7, num_lost=2)
    assert figures.num_tokens == len(all_ids(encoder, ["강릉 뷁뷁", "바다\n를"])[0] + all_ids(encoder, ["바다\n를"])[0])
    assert figures == Measure(**{**vars_of(unknown), "num_tokens": figures.num_tokens})
    assert figures.rates()["lost_character_rate"] == 2 / 7


def vars_of(figures: Measure) -> dict[str, int]:
    return {name: getattr(figures, name) for name in Measure.__dataclass_fields__}


def test_a_marker_is_one_id_for_who_asks_for_it(encoders: dict[str, Encoder]) -> None:
    encoder = encoders["hash_hash_bpe"]

    assert [encoder.id_of(marker) for marker in TEMPLATE_MARKERS] == list(range(38, 38 + len(TEMPLATE_MARKERS)))
    with pytest.raises(StageError, match=r"no token '### 없음:'; train the tokenizer with it"):
        encoder.id_of("### 없음:")


def test_template_characters_are_known_though_the_corpus_lacks_them(encoders: dict[str, Encoder]) -> None:
    ids, _ = encoders["hash_hash_bpe"].encode_batch(["### 질문: ㅋㅋㅠ {x}\n### 답변: ~`@|"])

    assert 2 not in ids


def test_byte_level_loses_nothing_of_the_hostile_list(encoders: dict[str, Encoder]) -> None:
    figures = measure_hostile(encoders["byte_level_bpe"])

    assert set(figures) == set(HOSTILE)
    assert {name for name, one in figures.items() if one.num_exact != 1 or one.num_lost or one.num_unk} == set()


def foreign(byte_level: Path, tmp_path: Path, **changes: object) -> Path:
    folder = tmp_path / "foreign"
    shutil.copytree(byte_level, folder)
    (folder / "special_tokens_map.json").unlink()
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
    return folder


def test_a_foreign_tokenizer_without_padding_has_no_pad_id(byte_level: Path, tmp_path: Path) -> None:
    assert Encoder(foreign(byte_level, tmp_path, pad_token=None)).pad_id is None


def test_padding_that_is_eos_is_no_padding(byte_level: Path, tmp_path: Path) -> None:
    folder = foreign(byte_level, tmp_path, pad_token={"content": "<|endoftext|>", "special": True})

    assert Encoder(folder).pad_id is None


@pytest.mark.parametrize(("eos", "says"), [(None, "None"), ("</s>", "'</s>'")])
def test_a_tokenizer_without_an_end_is_refused(byte_level: Path, tmp_path: Path, eos: str | None, says: str) -> None:
    with pytest.raises(StageError, match=rf"eos_token is {says}, which is no token of its vocabulary"):
        Encoder(foreign(byte_level, tmp_path, eos_token=eos, sep_token=None))


def test_the_separator_ends_a_text_where_no_eos_is_named(byte_level: Path, tmp_path: Path) -> None:
    folder = foreign(byte_level, tmp_path, eos_token=None)

    encoder, looking = Encoder(folder), Encoder(folder, needs_eos=False)

    assert (encoder.eos_id, encoder.eos_is_sep) == (4, True)
    assert (looking.eos_id, looking.eos_is_sep) == (None, False)
    assert not Encoder(byte_level).eos_is_sep


def test_truncation_and_padding_of_a_foreign_file_are_off(byte_level: Path, tmp_path: Path) -> None:
    folder = foreign(byte_level, tmp_path)
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    tree["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1, "pad_type_id": 0,
        "pad_token": "<|pad|>",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tree))

    for backend in ("fastest", "tokenizers"):
        encoder = Encoder(folder, backend=backend)
        assert encoder.backend == {"fastest": "fastokens"}.get(backend, backend)
        assert all_ids(encoder, ["a b c d e", "a"]) == all_ids(Encoder(byte_level), ["a b c d e", "a"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no tokenizer.json there"),
        ("{", "not valid JSON"),
        ("{}", "no 'model' in it"),
        ('{"model": {"type": "Nothing"}}', "the tokenizers library can't load it"),
    ],
)
def test_a_folder_that_is_no_tokenizer_is_named(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(StageError, match=says):
        Encoder(tmp_path)
