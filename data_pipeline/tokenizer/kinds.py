"""How each kind of tokenizer is trained, by its name."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer

from data_pipeline.tokenizer.recipe import Kind, Recipe, Texts, train_byte_level
from data_pipeline.tokenizer.unigram import train_unigram
from data_pipeline.tokenizer.words import train_hash_hash, train_wordpiece

TRAINERS: dict[Kind, Callable[[Texts, Recipe], Tokenizer]] = {
    "byte_level_bpe": train_byte_level,
    "hash_hash_bpe": train_hash_hash,
    "unigram": train_unigram,
    "wordpiece": train_wordpiece,
}
