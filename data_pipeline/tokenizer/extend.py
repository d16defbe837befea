"""`dure tokenizer extend`: a tokenizer and new tokens -> both in one, proved to leave all other texts alone.

Nothing is written here; extend_write.py does that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator
from tokenizers import Tokenizer

from data_pipeline import disk, stage
from data_pipeline.config import Config, to_tree
from data_pipeline.stage import MANIFEST_NAME, StageError, read_manifest
from data_pipeline.tokenizer.extend_choose import Choice, choose_tokens
from data_pipeline.tokenizer.extend_descent import NewToken
from data_pipeline.tokenizer.extend_tokens import Added, Refused, Term, add_tokens, read_terms
from data_pipeline.tokenizer.fingerprint import (
    read_tokenizer_json,
    tokenizer_file,
    tokenizer_fingerprint,
)
from data_pipeline.tokenizer.probes import PROBES
from data_pipeline.tokenizer.sample import sample_texts

FORMAT_VERSION = 1


class ExtendConfig(Config):
    """Which tokens a tokenizer gets: those of a list, then `count` that are chosen on a corpus, or both."""

    tokenizer: Path
    output: Path
    tokens: Path | None = None
    corpus: Path | None = None
    count: int = Field(default=0, ge=0, description="how many to choose on the corpus")
    spaced: bool = Field(default=False, description="each term of the list with a space before it, too")
    min_count: int = Field(default=10, ge=1, description="a word seen less often is not chosen")
    sample_bytes: int = Field(default=64 << 20, gt=0, description="of text that words are counted in")
    measured_bytes: int = Field(default=4 << 20, gt=0, description="of text that is encoded before and after")

    @model_validator(mode="after")
    def _some_tokens(self) -> ExtendConfig:
        if self.tokens is None and self.count == 0:
            raise ValueError("no new token is named: give a list by --tokens FILE, or --corpus PATH and --count N")
        if self.count and self.corpus is None:
            raise ValueError(f"count is {self.count}, but there is no corpus to choose on; give --corpus PATH")
        return self


@dataclass
class Plan:
    """The extended tokenizer before it is written: what a person sees first."""

    config: ExtendConfig
    tree: dict[str, Any]
    tokens: list[NewToken]
    refused: list[Refused]
    choices: list[Choice]
    base_fingerprint: str
    sizes: dict[str, int] = field(default_factory=dict)
    """Over a sample of the corpus: documents, bytes, tokens before and after; and how many documents, lines of them and
    probes held no new token and kept their ids."""
    apart: list[str] = field(default_factory=list)
    """Tokens that come back with a space around them inside a word."""
    counts: dict[int, int] = field(default_factory=dict)
    """Id -> how often it stands in the sample."""


def inputs_of(config: ExtendConfig) -> dict[str, Any]:
    """What decides the extended tokenizer; equal inputs give an equal one."""
    corpus = read_manifest(config.corpus, kind="corpus")["manifest_sha256"] if config.corpus else None
    paths = ("tokenizer", "output", "tokens", "corpus")
    kept = {key: value for key, value in to_tree(config).items() if key not in paths}
    return {
        "format_version": FORMAT_VERSION,
        "tokenizer_sha256": disk.sha256_of(tokenizer_file(config.tokenizer)),
        "tokens_sha256": disk.sha256_of(config.tokens) if config.tokens and config.tokens.is_file() else None,
        "corpus_manifest_sha256": corpus,
        "config": kept,
    }


def is_done(config: ExtendConfig) -> bool:
    """Whether the output already is what this config makes; raises StageError where something else stands there."""
    output = config.output
    if not output.exists():
        return False
    ours = inputs_of(config)
    if (output / MANIFEST_NAME).is_file():
        theirs = read_manifest(output, kind="tokenizer")
        if theirs.get("inputs_sha256") == stage.fingerprint(ours):
            return True
        differing = "; ".join(stage.differences(theirs.get("inputs", {}), ours))
        raise StageError(f"{output}: holds another tokenizer: {differing}; give another --output, or remove this one")
    raise StageError(f"{output}: exists already, and is no finished tokenizer; give another --output")


def make_plan(config: ExtendConfig) -> Plan:
    """Read, choose, add, and prove; nothing is written.

    Raises:
        StageError: no token is left, or some text without a new token would get other ids.
    """
    base = read_tokenizer_json(tokenizer_file(config.tokenizer))
    terms, refused = read_terms(config.tokens, spaced=config.spaced) if config.tokens is not None else ([], [])
    listed = add_tokens(base, terms)
    choices = _choose(config, listed)
    chosen = [Term(choice.text, f"chosen as number {number}") for number, choice in enumerate(choices, start=1)]
    kept = [Term(text, "the list") for text in listed.ids]
    added = add_tokens(base, [*kept, *chosen])
    refused += [*listed.refused, *added.refused]
    if not added.ids:
        told = "\n".join(str(each) for each in refused[:10]) or f"{config.tokens or config.corpus}: names no token"
        raise StageError(f"{told}\n{config.tokenizer}: no new token is left, so there is nothing to extend it by")
    extended = loaded(added.tree)
    plan = Plan(
        config=config,
        tree=added.tree,
        tokens=_described(added, base),
        refused=refused,
        choices=[choice for choice in choices if choice.text in added.ids],
        base_fingerprint=tokenizer_fingerprint(config.tokenizer),
    )
    _prove(plan, loaded(base), extended)
    return plan


def _choose(config: ExtendConfig, listed: Added) -> list[Choice]:
    if config.corpus is None or config.count == 0:
        return []
    texts = sample_texts(config.corpus, max_bytes=config.sample_bytes, salt="extend")
    return choose_tokens(loaded(listed.tree), texts, count=config.count, min_count=config.min_count)


def _described(added: Added, base: dict[str, Any]) -> list[NewToken]:
    tokenizer = loaded(base)
    encoded = tokenizer.encode_batch(list(added.ids), add_special_tokens=False)
    return [
        NewToken(id=number, text=text, pieces=tuple(encoding.ids))
        for (text, number), encoding in zip(added.ids.items(), encoded, strict=True)
    ]


def loaded(tree: dict[str, Any]) -> Tokenizer:
    """As `Encoder` has it: a text that spells a special token gets ordinary ids for it."""
    tokenizer = Tokenizer.from_str(json.dumps(tree, ensure_ascii=False))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _prove(plan: Plan, base: Tokenizer, extended: Tokenizer) -> None:
    """Count over probes and a sample of the corpus; a text without a new token must keep its ids."""
    new = np.array([token.id for token in plan.tokens])
    sizes = dict.fromkeys(("num_texts", "num_bytes", "num_tokens_before", "num_tokens_after", "num_texts_checked"), 0)
    counts = np.zeros(len(new), dtype=np.int64)
    for batch, is_counted in _batches(plan.config):
        before = base.encode_batch_fast(batch, add_special_tokens=False)
        after = extended.encode_batch_fast(batch, add_special_tokens=False)
        for text, old, now in zip(batch, before, after, strict=True):
            found = np.array(now.ids, dtype=np.int64)
            inside = found >= new[0]  # they have the last ids
            if not inside.any() and old.ids != now.ids:
                raise StageError(
                    f"{plan.config.tokenizer}: {text[:60]!r} holds no new token, but its ids would change; this is a "
                    "fault of the tokenizers library with this tokenizer: report it"
                )
            sizes["num_texts_checked"] += int(not inside.any())
            if not is_counted:
                continue
            counts += np.bincount(found[inside] - new[0], minlength=len(new))
            sizes["num_texts"] += 1
            sizes["num_bytes"] += len(text.encode())
            sizes["num_tokens_before"] += len(old.ids)
            sizes["num_tokens_after"] += len(now.ids)
    plan.sizes = sizes
    plan.apart = _apart(plan.tokens, extended)
    plan.counts = {int(number): int(count) for number, count in zip(new, counts, strict=True)}


def _apart(tokens: list[NewToken], extended: Tokenizer) -> list[str]:
    """Tokens that come back with a space around them where none was: `KT-1은` as `KT-1 은`.

    Tokenizers that mark the beginnings of words (sentence pieces, `##`) begin a word after each added token.
    """
    texts = [f"앞{token.text}은" for token in tokens]
    encoded = extended.encode_batch(texts, add_special_tokens=False)
    written = extended.decode_batch([encoding.ids for encoding in encoded], skip_special_tokens=False)
    pairs = zip(tokens, texts, written, strict=True)
    return [token.text for token, text, back in pairs if len(back.split()) > len(text.split())]


def _batches(config: ExtendConfig) -> Iterator[tuple[list[str], bool]]:
    """Texts, and whether they count: lines of documents only prove, for whole ones mostly hold some new token."""
    yield PROBES, False
    if config.corpus is not None:
        for texts in sample_texts(config.corpus, max_bytes=config.measured_bytes, salt="measure"):
            yield texts, True
            yield [line for text in texts for line in text.splitlines() if line], False
