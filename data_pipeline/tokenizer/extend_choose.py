"""Which words of a corpus are worth a token: greedily, by how many tokens each saves, counted as texts are encoded.

Texts are seen as words, each with the one space before it, as byte-level and sentence-piece tokenizers cut them. A
candidate is the beginning of a run of letters and digits: the stem of an eojeol (데이터 of 데이터를), an identifier or
its first part. Each choice is measured beside all earlier ones, for tokens overlap: after `컴포넌트`, `컴포` saves
little. Memory is bounded by the number of words that are kept; equal corpora give equal choices.
"""

from __future__ import annotations

import functools
import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tokenizers import Tokenizer

MAX_WORDS = 400_000  # different words in memory; the rarest go where there are more (Manku and Motwani 2002)
MAX_WORD_CHARS = 64  # a longer "word" is an address or a picture in letters
MAX_TOKEN_CHARS = 24
CANDIDATES_PER_TOKEN = 20
MIN_CANDIDATES = 4_000

_WORD = re.compile(r"[ ]?[^\s]+")
_RUN = re.compile(r"[^\W_][\w]*")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Choice:
    """A token that was chosen: how often it stands in the words counted, and how many tokens it saved there.

    `num_saved` counts what was saved beyond all choices before it. `pieces`: what its text was before.
    """

    text: str
    count: int
    num_saved: int
    pieces: tuple[str, ...]


class _Bound(NamedTuple):
    """Sorts the likeliest to save first; equals in the order of their texts."""

    negative_saving: int
    text: str


def choose_tokens(
    tokenizer: Tokenizer, texts: Iterable[Iterable[str]], *, count: int, min_count: int = 10, max_words: int = MAX_WORDS
) -> list[Choice]:
    """At most `count` new tokens for `texts` (batches of documents), the one that saves most first.

    Fewer where no candidate saves anything. `min_count`: a word seen less often is no candidate.
    """
    words = count_words(tokenizer, texts, max_words=max_words)
    lengths = _Lengths(tokenizer)
    candidates = _candidates(words, lengths, count=count, min_count=min_count)
    return _greedy(words, candidates, lengths, count=count)


def count_words(tokenizer: Tokenizer, texts: Iterable[Iterable[str]], *, max_words: int) -> dict[str, int]:
    """How often each word stands in the texts as the tokenizer normalises them; at most `max_words` are kept."""
    counts: Counter[str] = Counter()
    floor = 0
    normalizer = tokenizer.normalizer
    for batch in texts:
        for text in batch:
            written = normalizer.normalize_str(text) if normalizer is not None else text
            counts.update(word for word in _WORD.findall(written) if len(word) <= MAX_WORD_CHARS)
        while len(counts) > max_words:
            floor += 1
            counts = Counter({word: number for word, number in counts.items() if number > floor})
    return dict(sorted(counts.items()))


def _candidates(words: dict[str, int], lengths: _Lengths, *, count: int, min_count: int) -> dict[str, int]:
    """Text -> the most that it could save: each beginning of a run, the likeliest of them."""
    seen: Counter[str] = Counter()
    for word, number in words.items():
        for text in _beginnings(word):
            seen[text] += number
    often = [text for text, number in seen.items() if number >= min_count]
    bounds = {text: seen[text] * (lengths[text] - 1) for text in lengths.known(often)}
    kept = max(MIN_CANDIDATES, CANDIDATES_PER_TOKEN * count)
    best = heapq.nsmallest(kept, (_Bound(-bound, text) for text, bound in bounds.items() if bound > 0))
    return {bound.text: -bound.negative_saving for bound in best}


def _beginnings(word: str) -> Iterator[str]:
    """Of each run of letters and digits; with the word's space too where the run stands at its start."""
    for run in _RUN.finditer(word):
        text = run.group()
        has_space = run.start() == 1 and word[0] == " "
        for end in range(2, min(len(text), MAX_TOKEN_CHARS) + 1):
            part = text[:end]
            if _LETTER.search(part):
                yield part
                if has_space:
                    yield f" {part}"


def _greedy(words: dict[str, int], candidates: dict[str, int], lengths: _Lengths, *, count: int) -> list[Choice]:
    """Take the best candidate, measured anew when it comes to the top, until none saves anything."""
    holders = _holders(words, candidates)
    numbers = list(words.values())
    state = _Words(list(words), lengths)
    heap = [_Bound(-bound, text) for text, bound in candidates.items()]
    heapq.heapify(heap)
    chosen: list[Choice] = []
    while heap and len(chosen) < count:
        text = heapq.heappop(heap).text
        saved = {place: state.saving(place, text) for place in holders[text]}
        saving = sum(numbers[place] * each for place, each in saved.items())
        if saving <= 0:
            continue
        measured = _Bound(-saving, text)
        if heap and heap[0] < measured:
            heapq.heappush(heap, measured)
            continue
        state.take(text, holders[text])
        occurrences = sum(numbers[place] * state.occurrences(place, text) for place in holders[text])
        chosen.append(Choice(text, occurrences, saving, lengths.pieces(text)))
    return chosen


def _holders(words: dict[str, int], candidates: dict[str, int]) -> dict[str, list[int]]:
    """Candidate -> places of the words that it stands in, anywhere."""
    holders: dict[str, list[int]] = defaultdict(list)
    longest = max((len(text) for text in candidates), default=0)
    for place, word in enumerate(words):
        parts = {
            word[start:end]
            for start in range(len(word) - 1)
            for end in range(start + 2, min(len(word), start + longest) + 1)
        }
        for part in parts & candidates.keys():
            holders[part].append(place)
    return holders


class _Lengths:
    """How many tokens a stretch of text is to the tokenizer alone; kept, for stretches come back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, int] = {"": 0}

    def __getitem__(self, text: str) -> int:
        if (found := self._known.get(text)) is None:
            found = self._known[text] = len(self._tokenizer.encode(text, add_special_tokens=False))
        return found

    def known(self, texts: list[str]) -> list[str]:
        """`texts`, all measured at once."""
        for start in range(0, len(texts), 10_000):
            part = texts[start : start + 10_000]
            encodings = self._tokenizer.encode_batch_fast(part, add_special_tokens=False)
            self._known.update({text: len(encoding) for text, encoding in zip(part, encodings, strict=True)})
        return texts

    def pieces(self, text: str) -> tuple[str, ...]:
        """The text of each token that it was."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return tuple(encoding.tokens)


class _Words:
    """The words, and how each is cut by the tokens that were chosen so far."""

    def __init__(self, words: list[str], lengths: _Lengths) -> None:
        self._words = words
        self._lengths = lengths
        lengths.known(words)
        self._costs = [lengths[word] for word in words]
        self._tokens: dict[int, frozenset[str]] = {}

    def saving(self, place: int, text: str) -> int:
        """Tokens that the word of `place` needs less with `text` among the tokens; negative where it needs more."""
        tokens = self._tokens.get(place, frozenset()) | {text}
        return self._costs[place] - self._cost(self._words[place], tokens)

    def take(self, text: str, places: list[int]) -> None:
        for place in places:
            tokens = self._tokens[place] = self._tokens.get(place, frozenset()) | {text}
            self._costs[place] = self._cost(self._words[place], tokens)

    def occurrences(self, place: int, text: str) -> int:
        pattern = _alternatives(self._tokens[place])
        return sum(match.group() == text for match in pattern.finditer(self._words[place]))

    def _cost(self, word: str, tokens: frozenset[str]) -> int:
        parts = _alternatives(tokens).split(word)
        return len(parts) - 1 + sum(self._lengths[part] for part in parts)


@functools.lru_cache(maxsize=1 << 15)
def _alternatives(tokens: frozenset[str]) -> re.Pattern[str]:
    # The leftmost match, and of those the longest: as the tokenizers library cuts at added tokens.
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=lambda token: (-len(token), token))))
