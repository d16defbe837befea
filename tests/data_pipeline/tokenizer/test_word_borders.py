"""Where words begin, by each kind of tokenizer: a table of ids gives back the words of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_pipeline.tokenizer.word_borders import word_borders

TEXT = "영화가 (정말) 재밌었다! 10점, it is good."
WORDS = ["영화가", "(", "정말", ")", "재밌었다", "!", "10점", ",", "it", "is", "good", "."]
SPECIAL = ["[UNK]", "[MASK]"]


def trained(kind: str) -> Tokenizer:
    trainer: Any
    texts = [TEXT, "영화 정말 재밌다 good", "점 it 10 영"] * 2
    if kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=275, special_tokens=SPECIAL, initial_alphabet=sorted(alphabet))
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=46, special_tokens=SPECIAL)
    elif kind == "hash-hash":
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##"))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
        )
        trainer = trainers.BpeTrainer(vocab_size=46, special_tokens=SPECIAL, continuing_subword_prefix="##")
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=SPECIAL, unk_token="[UNK]")
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.mark.parametrize("kind", ["byte-level", "wordpiece", "hash-hash", "metaspace"])
def test_pieces_between_borders_are_the_words_of_a_text(tmp_path: Path, kind: str) -> None:
    tokenizer = trained(kind)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoded = tokenizer.encode(TEXT)

    is_first = word_borders(tmp_path, num_rows=tokenizer.get_vocab_size()).first_of_words(np.array(encoded.ids))

    assert not is_first.all(), "no word has several pieces, so that nothing is tested"
    starts = np.flatnonzero(is_first).tolist()
    spans = zip(starts, [*starts[1:], len(encoded.ids)], strict=True)
    words = [TEXT[encoded.offsets[start][0] : encoded.offsets[end - 1][1]].strip() for start, end in spans]
    assert [word for word in words if word] == WORDS


def test_ids_without_a_token_are_words_of_their_own(tmp_path: Path) -> None:
    tokenizer = trained("wordpiece")
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    borders = word_borders(tmp_path, num_rows=100)

    assert borders.begins[tokenizer.get_vocab_size() :].all()
    assert len(borders.begins) == len(borders.ends) == 100


def test_bytes_of_half_a_character_go_on(tmp_path: Path) -> None:
    tokenizer = trained("byte-level")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = np.array(tokenizer.encode("뷁뷁").ids)
    assert len(ids) == 6

    assert word_borders(tmp_path, num_rows=400).first_of_words(ids).tolist() == [True] + [False] * 5
