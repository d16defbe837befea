"""Frames: what a tokenizer's roles say, what transformers puts around the same texts, and what is cut of long ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from data_pipeline.shards.format import Frame
from data_pipeline.shards.frames import Texts, cut_lengths, find_frame, num_frame_ids, put_in_frame
from data_pipeline.stage import StageError
from tests.data_pipeline.shards.example_folders import byte_level, save, write_bert, write_plain, write_roberta

FRAMES = [Frame("plain"), Frame("bert", 2, 3), Frame("roberta", 0, 2)]
BEGUN = Frame("plain", 7)  # as Llama 3 and Gemma: BOS a EOS b EOS
EOS = 9


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    makers = {"plain": write_plain, "bert": write_bert, "roberta": write_roberta}
    return {kind: make(folder / kind) for kind, make in makers.items()}


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame.kind)
def test_auto_follows_the_roles_of_the_tokenizer(tokenizers: dict[str, Path], frame: Frame) -> None:
    assert find_frame(tokenizers[frame.kind]) == frame


def test_a_frame_can_be_chosen(tokenizers: dict[str, Path]) -> None:
    assert find_frame(tokenizers["roberta"], wanted="bert") == Frame("bert", 0, 2)
    assert find_frame(tokenizers["roberta"], wanted="plain") == Frame("plain")
    with pytest.raises(StageError, match=r"frame is 'bert', but of its tokens cls_token is None .*frame: plain"):
        find_frame(tokenizers["plain"], wanted="bert")


@pytest.mark.parametrize(
    ("name", "pair", "kind"),
    [
        ("XLMRobertaTokenizer", None, "roberta"),
        ("BertTokenizer", None, "bert"),
        ("XLMRobertaTokenizer", "<s> $A </s> $B </s>", "bert"),
        ("BertTokenizer", "<s> $A </s> </s> $B </s>", "roberta"),
    ],
)
def test_the_post_processor_decides_before_the_class(tmp_path: Path, name: str, pair: str | None, kind: str) -> None:
    tokenizer = byte_level(["<s>", "</s>"])
    if pair is not None:
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(),
                processors.TemplateProcessing(
                    single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 0), ("</s>", 1)]
                ),
            ]
        )
    folder = save(tokenizer, tmp_path / "x", cls_token="<s>", sep_token="</s>", tokenizer_class=name)

    assert find_frame(folder).kind == kind


def test_a_role_that_is_no_token_is_none(tmp_path: Path) -> None:
    folder = save(byte_level(["<s>", "</s>"]), tmp_path / "x", cls_token="<cls>", sep_token="</s>", eos_token="</s>")

    assert find_frame(folder) == Frame("plain")


@pytest.mark.parametrize("is_inner", [False, True])
@pytest.mark.parametrize(
    ("single", "settings", "begins"),
    [
        ("<bos> $A", {}, True),
        ("<bos> $A <eos>", {"add_bos_token": False}, True),
        ("$A <eos>", {"add_bos_token": True}, False),
        ("", {"add_bos_token": True}, False),
        ("<cls> $A <eos>", {"cls_token": "<cls>"}, False),
    ],
)
def test_a_plain_frame_begins_as_transformers_begins_a_text(
    tmp_path: Path, single: str, settings: dict[str, object], begins: bool, is_inner: bool
) -> None:
    tokenizer = byte_level(["<eos>", "<bos>", "<cls>"])
    tokenizer.post_processor = None
    if single:
        names = [("<eos>", 0), ("<bos>", 1), ("<cls>", 2)]
        template = processors.TemplateProcessing(single=single, pair=None, special_tokens=names)
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template]) if is_inner else template
    folder = save(tokenizer, tmp_path / "x", bos_token="<bos>", eos_token="<eos>", **settings)

    assert find_frame(folder) == Frame("plain", 1 if begins else None)
    assert (AutoTokenizer.from_pretrained(folder)("가")["input_ids"][0] == 1) is begins


def encoded(texts: list[list[int] | None]) -> Texts:
    lengths = [len(text or []) for text in texts]
    flat = np.array([token for text in texts for token in text or []], np.uint32)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]).astype(np.int64)
    return Texts(flat, offsets, np.array([text is not None for text in texts], bool))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_frame_is_the_one_that_the_tokenizer_itself_puts(tokenizers: dict[str, Path], kind: str) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizers[kind] / "tokenizer.json"))
    pairs = [("길다", "짧다"), ("짧다", None), ("바다와 커피", "도시다")]
    columns = [
        encoded([None if text is None else tokenizer.encode(text, add_special_tokens=False).ids for text in side])
        for side in zip(*pairs, strict=True)
    ]

    framed = put_in_frame(
        [columns], find_frame(tokenizers[kind]), kept=[[text.lengths for text in columns]], eos_id=EOS
    )

    expected = [tokenizer.encode(first, second).ids for first, second in pairs]
    assert framed.ids.tolist() == [token for ids in expected for token in ids]
    assert framed.lengths.tolist() == [len(ids) for ids in expected]


IDS = st.lists(st.integers(10, 20), min_size=1, max_size=12)
ROWS = st.lists(st.tuples(IDS, st.none() | IDS), min_size=1, max_size=6)


@given(rows=ROWS, frame=st.sampled_from([*FRAMES, BEGUN]), max_tokens=st.integers(6, 20))
def test_a_cut_sequence_fits_and_keeps_a_token_of_each_text(
    rows: list[tuple[list[int], list[int] | None]], frame: Frame, max_tokens: int
) -> None:
    first, second = encoded([row[0] for row in rows]), encoded([row[1] for row in rows])
    frames = np.where(second.is_there, num_frame_ids(frame, num_texts=2), num_frame_ids(frame, num_texts=1))
    kept = cut_lengths([first.lengths, second.lengths], max_tokens - frames)

    framed = put_in_frame([[first, second]], frame, kept=[kept], eos_id=EOS)

    starts = np.concatenate([[0], np.cumsum(framed.lengths)])
    for number, (a, b) in enumerate(rows):
        found = framed.ids[starts[number] : starts[number + 1]].tolist()
        num_a, num_b = int(kept[0][number]), int(kept[1][number])
        assert len(found) <= max_tokens
        assert found == by_hand(a[:num_a], None if b is None else b[:num_b], frame)
        assert num_a >= 1 and (b is None or num_b >= 1)
        is_whole = len(a) + len(b or []) <= max_tokens - int(frames[number])
        assert ((num_a, num_b) == (len(a), len(b or []))) == is_whole
        assert is_whole or len(found) == max_tokens, "no more is cut than must be"
        assert num_a == len(a) or num_b == len(b or []) or num_a - num_b in (0, 1), "the longer is cut first"


def by_hand(first: list[int], second: list[int] | None, frame: Frame) -> list[int]:
    if frame.kind == "plain":
        begun = [] if frame.cls_id is None else [frame.cls_id]
        return [*begun, *first, EOS, *([*second, EOS] if second is not None else [])]
    assert frame.cls_id is not None and frame.sep_id is not None
    between = [frame.sep_id] if frame.kind == "roberta" else []
    return [frame.cls_id, *first, frame.sep_id, *([*between, *second, frame.sep_id] if second is not None else [])]


@given(rows=st.lists(st.tuples(IDS, IDS, IDS), min_size=1, max_size=5), frame=st.sampled_from([*FRAMES, BEGUN]))
def test_texts_of_a_pair_are_sequences_of_their_own(rows: list[tuple[list[int], ...]], frame: Frame) -> None:
    columns = [[encoded(list(side))] for side in zip(*rows, strict=True)]

    framed = put_in_frame(columns, frame, kept=[[side[0].lengths] for side in columns], eos_id=EOS)

    parts = [[by_hand(text, None, frame) for text in row] for row in rows]
    assert framed.ids.tolist() == [token for row in parts for part in row for token in part]
    assert framed.ends.tolist() == [np.cumsum([len(part) for part in row]).tolist() for row in parts]


def test_the_settings_file_may_be_missing(tmp_path: Path) -> None:
    folder = save(byte_level(["<s>", "</s>"]), tmp_path / "x")
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").write_text(json.dumps({"cls_token": "<s>", "sep_token": {"content": "</s>"}}))

    assert find_frame(folder) == Frame("bert", 0, 1)
