"""A `##` vocabulary from words that are cut at morphemes: `##` marks what continues a word, not what begins a morpheme.

The trainer knows no such piece: a piece that it is given begins a word. So each character inside a word is written as
a private one, and the trained tokens are written back: 강릉 | 에서 is learned as 강, ##릉 and ##에, ##서.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Set
from typing import Any

from tokenizers import Tokenizer, models, trainers

from data_pipeline.tokenizer.recipe import Recipe, Texts, is_punctuation

PREFIX = "##"

_PRIVATE = 0xF0000  # the first of 131,068 private code points: one for each character of the alphabet

_SPACE = re.compile(r"\s+")


def train_cut_words(texts: Texts, recipe: Recipe, *, specials: list[str], alphabet: list[str]) -> dict[str, Any]:
    """`vocab` and `merges` of a BPE model with the `##` prefix; equal for equal texts."""
    inside = {character: chr(_PRIVATE + number) for number, character in enumerate(alphabet)}
    continuing = [inside[character] for character in alphabet if not is_punctuation(character)]
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        min_frequency=recipe.min_frequency,
        special_tokens=specials,
        initial_alphabet=[*alphabet, *continuing],
        limit_alphabet=len(alphabet) + len(continuing),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_written(texts, recipe, inside), trainer)
    tree = json.loads(tokenizer.to_str())["model"]
    outside = {ord(private): character for character, private in inside.items()}
    names = {token: _named(token, outside) for token in tree["vocab"]}
    return {
        "vocab": {names[token]: number for token, number in tree["vocab"].items()},
        "merges": [(names[left], names[right]) for left, right in tree["merges"]],
    }


def _written(texts: Texts, recipe: Recipe, inside: dict[str, str]) -> Iterator[list[str]]:
    """Batches of pieces, the characters inside words as private ones."""
    assert recipe.cut is not None
    table = str.maketrans(inside)
    in_words = {character for character in inside if not is_punctuation(character)}
    alone = inside.keys() - in_words
    for batch in recipe.normalised(texts)():
        yield [
            part[0] + part[1:].translate(table) if is_first else part.translate(table)
            for pieces in recipe.cut(batch)
            for is_first, part in _parts_of_words(pieces, in_words=in_words, alone=alone)
        ]


def _parts_of_words(pieces: list[str], *, in_words: Set[str], alone: Set[str]) -> Iterator[tuple[bool, str]]:
    """Stretches of known characters, each with whether it begins its word; `alone`: punctuation, each a word."""
    is_first = True
    for piece in pieces:
        for number, stretch in enumerate(_SPACE.split(piece)):
            is_first = is_first or number > 0
            start = 0
            for place, character in enumerate(stretch):
                if character in in_words:
                    continue
                if start < place:
                    yield is_first, stretch[start:place]
                is_punctuated = is_punctuation(character)
                if character in alone:
                    yield True, character
                is_first, start = is_punctuated, place + 1
            if start < len(stretch):
                yield is_first, stretch[start:]
                is_first = False


def _named(token: str, outside: dict[int, str]) -> str:
    return (PREFIX if ord(token[0]) in outside else "") + token.translate(outside)
