"""Where Kiwi sees morphemes inside words: for training only, so that a `tokenizer.json` stands alone everywhere.

A vocabulary is trained on text that is cut at morphemes, so that no token is learned across two of them; encoding needs
no Kiwi. Kiwi's own forms (했 → 하 + 었) are never used: only the borders that fall between two characters of the text,
so that the pieces of a text are the text. A run of letters is analysed by itself: its borders depend on nothing around
it, which makes them the same for any number of threads and any order, and a cache of runs exact. On ../shared/data that
gives 97 % of the borders that whole sentences give, and 98 % of its borders are among those.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any

from tokenizers import Tokenizer
from tqdm import tqdm

from data_pipeline.stage import StageError

MAX_RUN_CHARS = 64  # a longer run of letters is no word; Kiwi's time grows with its length
MAX_CACHED_RUNS = 1 << 20  # some 200 MB
MAX_THREADS = 16

_RUN = re.compile(r"[^\W\d_]{2,}")
_HANGUL = re.compile(r"[가-힣]")

Borders = tuple[int, ...]


class Morphemes:
    """Kiwi's borders inside runs of letters.

    Raises:
        StageError: kiwipiepy is not installed.
    """

    def __init__(self, *, num_threads: int | None = None) -> None:
        self._kiwi = _load_kiwi(num_threads or _num_threads())
        self._cache: dict[str, Borders] = {}

    def split(self, texts: Sequence[str], *, bar: tqdm | None = None) -> list[list[str]]:
        """Each text in pieces, cut at every border; the pieces of a text are the text."""
        self._look_up({run for text in texts for run in _RUN.findall(text) if _is_analysed(run)}, bar)
        return [list(self._pieces(text)) for text in texts]

    def borders(self, text: str) -> list[int]:
        """The places in `text` where a morpheme begins inside a run of letters."""
        self._look_up({run for run in _RUN.findall(text) if _is_analysed(run)}, None)
        return list(self._borders(text))

    def _borders(self, text: str) -> Iterable[int]:
        for run in _RUN.finditer(text):
            yield from (run.start() + border for border in self._cache.get(run.group(), ()))

    def _pieces(self, text: str) -> Iterable[str]:
        start = 0
        for border in self._borders(text):
            yield text[start:border]
            start = border
        if start < len(text) or not text:
            yield text[start:]

    def _look_up(self, runs: set[str], bar: tqdm | None) -> None:
        if len(self._cache) + len(runs) > MAX_CACHED_RUNS:
            self._cache = {run: self._cache[run] for run in runs if run in self._cache}
        new = sorted(runs - self._cache.keys())
        for run, tokens in zip(new, self._kiwi.tokenize(new), strict=True):
            self._cache[run] = _inner_borders(tokens, len(run))
        if bar is not None:
            bar.update(len(new))


@lru_cache(maxsize=1)
def shared_morphemes() -> Morphemes:
    """One for the whole process: what training has analysed need not be analysed again to measure."""
    return Morphemes()


@dataclass(frozen=True)
class Agreement:
    """How the borders of morphemes and those of tokens meet, inside runs of letters with Hangul."""

    num_borders: int  # of morphemes
    num_cuts: int  # of tokens
    num_shared: int

    def tree(self) -> dict[str, Any]:
        """`kept_share`: of the morphemes' borders, how many tokens keep; `cut_share`: of the tokens' cuts, how many are
        borders of morphemes."""
        shares = {
            "kept_share": self.num_shared / max(self.num_borders, 1),
            "cut_share": self.num_shared / max(self.num_cuts, 1),
        }
        return asdict(self) | shares


def agreement(tokenizer: Tokenizer, texts: Iterable[Sequence[str]], morphemes: Morphemes) -> Agreement:
    """What a tokenizer does to the borders of morphemes in batches of `texts`, each as its normaliser leaves it."""
    num_borders = num_cuts = num_shared = 0
    for batch in texts:
        normalizer = tokenizer.normalizer
        batch = [normalizer.normalize_str(text) if normalizer is not None else text for text in batch]
        morphemes.split(batch)  # analyses all of the batch at once
        for text, encoding in zip(batch, tokenizer.encode_batch(batch, add_special_tokens=False), strict=True):
            borders = set(morphemes.borders(text))
            cuts = _cuts(text, encoding.offsets)
            num_borders += len(borders)
            num_cuts += len(cuts)
            num_shared += len(borders & cuts)
    return Agreement(num_borders, num_cuts, num_shared)


def version() -> str:
    """What decides the borders: the versions of Kiwi and of its model; raises StageError where there is none."""
    try:
        return ", ".join(f"{name} {metadata.version(name)}" for name in ("kiwipiepy", "kiwipiepy_model"))
    except metadata.PackageNotFoundError as error:
        raise _missing(error) from None


def _cuts(text: str, offsets: Sequence[tuple[int, int]]) -> set[int]:
    """Where a token begins inside a run that Kiwi sees; one that begins inside a character does not count."""
    runs = (run for run in _RUN.finditer(text) if _is_analysed(run.group()))
    inner = {place for run in runs for place in range(run.start() + 1, run.end())}
    return inner & {after[0] for before, after in zip(offsets, offsets[1:], strict=False) if before[1] <= after[0]}


def _inner_borders(tokens: Sequence[Any], num_chars: int) -> Borders:
    """Places between two characters at which a morpheme begins or ends and which none covers: 했 has none inside."""
    ends = {place for token in tokens for place in (token.start, token.start + token.len)}
    covered = {place for token in tokens for place in range(token.start + 1, token.start + token.len)}
    return tuple(sorted(place for place in ends - covered if 0 < place < num_chars))


def _is_analysed(run: str) -> bool:
    return len(run) <= MAX_RUN_CHARS and _HANGUL.search(run) is not None


@lru_cache(maxsize=1)
def _load_kiwi(num_threads: int) -> Any:
    try:
        from kiwipiepy import Kiwi
    except ImportError as error:
        raise _missing(error) from None
    # All spelled, so that another version's defaults do not change the borders.
    return Kiwi(
        num_workers=num_threads,
        model_type="cong",
        integrate_allomorph=True,
        load_default_dict=True,
        load_typo_dict=True,
        load_multi_dict=True,
    )


def _missing(error: Exception) -> StageError:
    return StageError(
        f"morphemes: 'kiwi' needs the package kiwipiepy, which is not installed ({error}); "
        "pip install 'dure[morphemes]' (or kiwipiepy), or set morphemes: none"
    )


def _num_threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)
