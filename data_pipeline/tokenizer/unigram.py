"""Unigram, as in SentencePiece: the likeliest pieces of each word; a character without a token is spelled in bytes.

Spaces stand in the tokens as themselves, not as `▁`: a text may hold that character too. Pieces never cross the cuts of
the byte-level pattern, which also keeps a text that spells `<0x41>` from being one token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_pipeline.tokenizer.recipe import BYTE_LEVEL_PATTERN, Recipe, Texts, check_room, choose_alphabet
from data_pipeline.tokenizer.special import SPECIAL_TOKENS, UNK

BYTES: tuple[str, ...] = tuple(f"<0x{byte:02X}>" for byte in range(256))
SPACES = " \n\t"  # the white space that has tokens; any other is spelled in bytes
MAX_TRAINED_CHARS = 64  # of a stretch without white space: the trainer fails on sentences that are too long

_SCORE_DIGITS = 6
_FILLER_STEP = 1e-4  # tokenizers: what the trainer adds from one character without a score to the next

Pieces = list[tuple[str, float]]


def train_unigram(texts: Texts, recipe: Recipe) -> Tokenizer:
    """A Unigram tokenizer with byte fallback: special tokens, 256 bytes, then pieces from the likeliest.

    Raises:
        StageError: the alphabet leaves no room for pieces.
    """
    alphabet = choose_alphabet(
        recipe.normalised(texts)(), required=recipe.required_characters(), max_alphabet=recipe.max_alphabet
    )
    alphabet += SPACES
    num_fixed = len(SPECIAL_TOKENS) + len(BYTES)
    check_room(recipe, num_special=num_fixed, num_forms=len(alphabet), num_characters=len(alphabet))
    tokenizer = _around(models.Unigram(), recipe)
    trainer = trainers.UnigramTrainer(
        vocab_size=recipe.vocab_size - num_fixed + 1,  # the trainer needs an unknown token of its own
        special_tokens=[UNK],
        unk_token=UNK,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_trainable(recipe.pieces(recipe.normalised(texts)), alphabet), trainer)
    trained = json.loads(tokenizer.to_str())["model"]["vocab"]
    pieces = _settled([(piece, score) for piece, score in trained if piece != UNK])
    lowest = pieces[-1][1]  # never better than a piece: no text may be split into these
    fixed = [(token, lowest) for token in (*SPECIAL_TOKENS, *BYTES)]
    tokenizer = _around(models.Unigram([*fixed, *pieces], SPECIAL_TOKENS.index(UNK), True), recipe)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _around(model: models.Model, recipe: Recipe) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = recipe.rules.normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(BYTE_LEVEL_PATTERN), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _trainable(texts: Texts, alphabet: list[str]) -> Iterator[list[str]]:
    """Batches of stretches without characters that are to have no token, and without endless words."""
    known = "".join(map(re.escape, alphabet))
    stretch = re.compile(f"[{known}]+")
    endless = re.compile(rf"(\S{{{MAX_TRAINED_CHARS}}})(?=\S)")
    for batch in texts():
        stretches = [part for text in batch for part in stretch.findall(text)]
        yield [part for whole in stretches for part in endless.sub("\\1\0", whole).split("\0")]


def _settled(pieces: Pieces) -> Pieces:
    """The same pieces for equal texts to the last digit: the trainer adds and numbers in the order of a hash map.

    Sums differ in their last digits, and characters that it has no score for get the lowest one and a little more, in
    that order: scores are rounded, and those characters all get the lowest.
    """
    characters = [score for piece, score in pieces if len(piece) == 1]
    lowest = min(score for _, score in pieces)
    fillers = lowest + _FILLER_STEP * len(characters)
    settled = [
        (piece, round(lowest if len(piece) == 1 and score <= fillers else score, _SCORE_DIGITS))
        for piece, score in pieces
    ]
    return sorted(settled, key=lambda pair: (-pair[1], pair[0]))
