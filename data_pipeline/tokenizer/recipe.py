"""The kinds of tokenizer, what each is trained by, and byte-level BPE, the default. Knows no files.

`words.py` has the two kinds of words, `unigram.py` the third. All normalise to NFC, as the corpus is, and then apply a
user's merge rules. Byte-level BPE and Unigram give back every text exactly. `##` BPE and WordPiece do not: they keep no
white space and nothing outside their alphabet; the card says how much that is. A cut (at morphemes) is for training.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_pipeline.stage import StageError
from data_pipeline.tokenizer.merge_rules import MergeRules
from data_pipeline.tokenizer.special import SPECIAL_TOKENS

Kind = Literal["byte_level_bpe", "hash_hash_bpe", "unigram", "wordpiece"]
Texts = Callable[[], Iterator[list[str]]]  # gives the training texts anew each time, in batches
Cut = Callable[[Sequence[str]], list[list[str]]]  # texts -> each in pieces that, put together, are the text

# Made of words, so that they drop what stands between; the others keep every text.
OF_WORDS: frozenset[str] = frozenset({"hash_hash_bpe", "wordpiece"})

# GPT-4's pattern with single digits (Qwen2's): letters with one mark or space before them, digits one by one, newlines
# with the punctuation before them. On ../shared/data/docs_ko at 8,000 it gives 4.20 bytes a token, GPT-2's pattern
# 3.91, one that parts Hangul from Latin letters 3.77.
BYTE_LEVEL_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Printable ASCII and the compatibility jamo (ㅋ, ㅠ): what chat and templates use though a corpus may lack it.
_BASE_ALPHABET = frozenset(map(chr, (*range(0x21, 0x7F), *range(0x3131, 0x3164))))


@dataclass(frozen=True)
class Recipe:
    """What a kind is trained by, beside its texts.

    `max_alphabet`, `markers`: not for byte_level_bpe; `min_frequency`: not for unigram. `cut`: None leaves texts whole.
    """

    vocab_size: int
    min_frequency: int = 2
    max_alphabet: int = 8_000
    markers: tuple[str, ...] = ()
    rules: MergeRules = field(default_factory=MergeRules)
    cut: Cut | None = None

    def normalised(self, texts: Texts) -> Texts:
        """The texts as the tokenizer will see them."""
        return lambda: ([self.rules.normalise(text) for text in batch] for batch in texts())

    def pieces(self, texts: Texts) -> Texts:
        """The texts, or what the cut makes of them as the tokenizer will see them, for a trainer that never joins two.

        A cut falls between two letters of a word, so that each piece is pre-tokenised as it is inside its text.
        """
        cut = self.cut
        if cut is None:
            return texts
        whole = self.normalised(texts)
        return lambda: ([piece for pieces in cut(batch) for piece in pieces] for batch in whole())

    def required_characters(self) -> str:
        return "".join(self.markers) + "".join(rule.new for rule in self.rules.rules)


def train_byte_level(texts: Texts, recipe: Recipe) -> Tokenizer:
    """A byte-level BPE tokenizer; its alphabet is the 256 bytes, so that nothing is ever unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = recipe.rules.normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BYTE_LEVEL_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        min_frequency=recipe.min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(recipe.pieces(texts)(), trainer)
    return tokenizer


def choose_alphabet(texts: Iterable[list[str]], *, required: str, max_alphabet: int) -> list[str]:
    """The characters that a tokenizer knows, sorted: the required ones, then the most frequent of `texts`; no space."""
    counts: Counter[str] = Counter()
    for batch in texts:
        for text in batch:
            counts.update(unicodedata.normalize("NFC", text))
    chosen = {character for character in {*_BASE_ALPHABET, *required} if not character.isspace()}
    others = [character for character in counts if not character.isspace() and character not in chosen]
    others.sort(key=lambda character: (-counts[character], character))
    chosen.update(others[: max(max_alphabet - len(chosen), 0)])
    return sorted(chosen)


def check_room(recipe: Recipe, *, num_special: int, num_forms: int, num_characters: int) -> None:
    """Raises StageError where special tokens and characters alone fill the vocabulary."""
    if num_special + num_forms >= recipe.vocab_size:
        raise StageError(
            f"vocab_size: {recipe.vocab_size:,}, but {num_special} special tokens and {num_forms:,} forms of "
            f"{num_characters:,} characters leave no room for a merge; raise vocab_size or lower max_alphabet"
        )


def is_punctuation(character: str) -> bool:
    """Whether the Punctuation pre-tokenizer cuts there, so that it never stands inside a word."""
    return (character.isascii() and not character.isalnum()) or unicodedata.category(character).startswith("P")
