"""The kinds of words, `##` BPE and WordPiece (BERT's): white space is dropped, what the alphabet lacks is unknown."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_pipeline.tokenizer.cut_words import PREFIX, train_cut_words
from data_pipeline.tokenizer.recipe import Recipe, Texts, check_room, choose_alphabet, is_punctuation
from data_pipeline.tokenizer.special import SPECIAL_TOKENS, UNK

# A longer word is unknown to a WordPiece as a whole (BERT's limit).
MAX_WORD_CHARS = 100


def train_hash_hash(texts: Texts, recipe: Recipe) -> Tokenizer:
    """A BPE tokenizer of words whose inner pieces begin with `##`; raises StageError if the alphabet does not fit."""
    specials = [*SPECIAL_TOKENS, *recipe.markers]
    alphabet = choose_alphabet(
        recipe.normalised(texts)(), required=recipe.required_characters(), max_alphabet=recipe.max_alphabet
    )
    pieces = [*alphabet, *(PREFIX + character for character in alphabet if not is_punctuation(character))]
    check_room(recipe, num_special=len(specials), num_forms=len(pieces), num_characters=len(alphabet))
    if recipe.cut is not None:
        return _with_model(train_cut_words(texts, recipe, specials=specials, alphabet=alphabet), recipe, specials)
    tokenizer = _of_words(models.BPE(unk_token=UNK, continuing_subword_prefix=PREFIX), recipe)
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        min_frequency=recipe.min_frequency,
        # The trainer numbers "##x" in the order of a hash map, another one in each process, and ties between merges
        # follow the numbers. Given as special tokens the forms have fixed numbers; below they become ordinary again.
        special_tokens=[*specials, *pieces],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=PREFIX,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return _with_only(specials, tokenizer)


def train_wordpiece(texts: Texts, recipe: Recipe) -> Tokenizer:
    """The vocabulary of a `##` BPE, matched greedily from the left as BERT does: a word is known whole, or unknown."""
    tree = json.loads(train_hash_hash(texts, recipe).to_str())
    tree["model"] = {
        "type": "WordPiece",
        "unk_token": UNK,
        "continuing_subword_prefix": PREFIX,
        "max_input_chars_per_word": MAX_WORD_CHARS,
        "vocab": tree["model"]["vocab"],
    }
    return Tokenizer.from_str(json.dumps(tree, ensure_ascii=False))


def _with_model(model: dict[str, Any], recipe: Recipe, specials: list[str]) -> Tokenizer:
    """A tokenizer of words around a BPE model that was trained elsewhere."""
    tokenizer = _of_words(
        models.BPE(model["vocab"], model["merges"], unk_token=UNK, continuing_subword_prefix=PREFIX), recipe
    )
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _of_words(model: models.Model, recipe: Recipe) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = recipe.rules.normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX)
    return tokenizer


def _with_only(specials: list[str], tokenizer: Tokenizer) -> Tokenizer:
    tree = json.loads(tokenizer.to_str())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] in set(specials)]
    return Tokenizer.from_str(json.dumps(tree, ensure_ascii=False))
