"""The two kinds of tokenizer: how each cuts text, and how it is trained. Knows no files.

Both normalise to NFC, as the corpus is. Byte-level BPE gives back every NFC text exactly. `##` BPE does not: it keeps
no white space and no character outside its alphabet; its card says how much that is.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data_pipeline.stage import StageError
from data_pipeline.tokenizer.special import SPECIAL_TOKENS, UNK

Kind = Literal["byte_level_bpe", "hash_hash_bpe"]
Texts = Callable[[], Iterator[list[str]]]  # gives the training texts anew each time, in batches

# GPT-4's pattern with single digits (Qwen2's): letters with one mark or space before them, digits one by one, newlines
# with the punctuation before them. On ../shared/data/docs_ko at 8,000 it gives 4.20 bytes a token, GPT-2's pattern
# 3.91, one that parts Hangul from Latin letters 3.77.
BYTE_LEVEL_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PREFIX = "##"

# Printable ASCII and the compatibility jamo (ㅋ, ㅠ): what chat and templates use though a corpus may lack it.
_BASE_ALPHABET = frozenset(map(chr, (*range(0x21, 0x7F), *range(0x3131, 0x3164))))


def train_byte_level(texts: Texts, *, vocab_size: int, min_frequency: int) -> Tokenizer:
    """A byte-level BPE tokenizer; its alphabet is the 256 bytes, so that nothing is ever unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BYTE_LEVEL_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def train_hash_hash(
    texts: Texts, *, vocab_size: int, min_frequency: int, markers: tuple[str, ...], max_alphabet: int
) -> Tokenizer:
    """A BPE tokenizer of words whose inner pieces begin with `##`; raises StageError if the alphabet does not fit."""
    specials = [*SPECIAL_TOKENS, *markers]
    alphabet = choose_alphabet(texts(), required="".join(markers), max_alphabet=max_alphabet)
    pieces = [*alphabet, *(PREFIX + character for character in alphabet if not _is_punctuation(character))]
    if len(specials) + len(pieces) >= vocab_size:
        raise StageError(
            f"vocab_size: {vocab_size:,}, but {len(specials)} special tokens and {len(pieces):,} forms of "
            f"{len(alphabet):,} characters leave no room for a merge; raise vocab_size or lower max_alphabet"
        )
    tokenizer = Tokenizer(models.BPE(unk_token=UNK, continuing_subword_prefix=PREFIX))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
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


def choose_alphabet(texts: Iterable[list[str]], *, required: str, max_alphabet: int) -> list[str]:
    """The characters that a `##` tokenizer knows, sorted: the required ones, then the most frequent of `texts`."""
    counts: Counter[str] = Counter()
    for batch in texts:
        for text in batch:
            counts.update(unicodedata.normalize("NFC", text))
    chosen = {character for character in {*_BASE_ALPHABET, *required} if not character.isspace()}
    others = [character for character in counts if not character.isspace() and character not in chosen]
    others.sort(key=lambda character: (-counts[character], character))
    chosen.update(others[: max(max_alphabet - len(chosen), 0)])
    return sorted(chosen)


def _is_punctuation(character: str) -> bool:
    # What the Punctuation pre-tokenizer cuts at, so that it never stands inside a word.
    return (character.isascii() and not character.isalnum()) or unicodedata.category(character).startswith("P")


def _with_only(specials: list[str], tokenizer: Tokenizer) -> Tokenizer:
    tree = json.loads(tokenizer.to_str())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] in set(specials)]
    return Tokenizer.from_str(json.dumps(tree, ensure_ascii=False))
