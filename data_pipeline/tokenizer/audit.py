"""What tokenizers do to a corpus and to the words of a field, side by side, and what to do about the first of them.

Measures and judges; the result is one tree of plain values. How it is shown is not known here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline import disk
from data_pipeline.stage import MANIFEST_NAME, StageError
from data_pipeline.tokenizer.audit_cost import Body, cost_tree, relative
from data_pipeline.tokenizer.audit_figures import figures_of, vocabulary_tree
from data_pipeline.tokenizer.audit_sample import Sample, read_sample
from data_pipeline.tokenizer.audit_terms import Terms, break_terms, count_terms, read_terms, summary
from data_pipeline.tokenizer.audit_verdict import MAX_TERM_PIECES, judge
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.fingerprint import read_tokenizer_json, tokenizer_file
from data_pipeline.tokenizer.spelling import Spelling

FORMAT_VERSION = 1

Tree = dict[str, Any]


@dataclass(frozen=True)
class AuditInputs:
    """What is audited: `tokenizers[0]` beside the others, over the texts and the terms."""

    tokenizers: tuple[Path, ...]
    corpus: Path
    terms: Path | None = None
    max_bytes: int = 16 << 20
    text_column: str = "text"
    term_column: str = "term"
    body: Body = field(default_factory=Body)


def audit(inputs: AuditInputs) -> Tree:
    """The whole audit as plain values; equal inputs give equal values, but for `speed`.

    Raises:
        StageError: a folder that is no tokenizer, two that are the same, no text, or no terms.
    """
    encoders = _open(inputs.tokenizers)
    terms = read_terms(inputs.terms, column=inputs.term_column) if inputs.terms is not None else None
    sample = read_sample(inputs.corpus, max_bytes=inputs.max_bytes, text_column=inputs.text_column)
    names = _names([encoder.folder for encoder in encoders])
    texts = {source: [unicodedata.normalize("NFC", text) for text in its] for source, its in sample.by_source().items()}
    counts = count_terms(terms.terms, (text for its in texts.values() for text in its)) if terms else []
    audited = [
        _audit_one(name, encoder, texts, terms, counts, inputs=inputs, sample=sample)
        for name, encoder in zip(names, encoders, strict=True)
    ]
    for one in audited:
        one["relative"] = relative(one["cost"], audited[0]["cost"])
        one["verdict"] = judge(one, [other for other in audited if other is not one])
    return {
        "format_version": FORMAT_VERSION,
        "corpus": {"path": str(inputs.corpus), **sample.to_tree()},
        "terms": None if terms is None else terms.to_tree() | {"path": str(inputs.terms), "rows": _rows(terms, counts)},
        "body": inputs.body.to_tree(),
        "max_term_pieces": MAX_TERM_PIECES,
        "tokenizers": audited,
    }


def _rows(terms: Terms, counts: Sequence[int]) -> list[Tree]:
    return [{"term": term, "count": count} for term, count in zip(terms.terms, counts, strict=True)]


def _open(folders: Sequence[Path]) -> list[Encoder]:
    encoders: dict[str, Encoder] = {}
    for folder in folders:
        encoder = Encoder(folder, needs_eos=False)
        if encoder.fingerprint in encoders:
            first = encoders[encoder.fingerprint].folder
            raise StageError(f"{folder}: the same tokenizer as {first} ({encoder.fingerprint[:12]}…); give another one")
        encoders[encoder.fingerprint] = encoder
    return list(encoders.values())


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the tokenizers apart; of a folder `tokenizer` with its parent."""
    paths = [(path.parent if path.is_file() else path).resolve() for path in folders]
    names = []
    for path in paths:
        depth = 2 if path.name == "tokenizer" else 1
        while depth < len(path.parts) and sum(other.parts[-depth:] == path.parts[-depth:] for other in paths) > 1:
            depth += 1
        names.append("/".join(path.parts[-depth:]))
    return names


def _audit_one(
    name: str,
    encoder: Encoder,
    texts: dict[str, list[str]],
    terms: Terms | None,
    counts: Sequence[int],
    *,
    inputs: AuditInputs,
    sample: Sample,
) -> Tree:
    spelling = Spelling(encoder)
    figures = figures_of(encoder, texts)
    total = figures.total
    broken = break_terms(encoder, spelling, terms.terms) if terms else []
    seen_bytes = sum(counts["num_bytes"] for counts in sample.seen.values())
    return {
        "name": name,
        "path": str(encoder.folder),
        "fingerprint": encoder.fingerprint,
        "model": _model_of(encoder.folder),
        "total": total.to_tree(),
        "sources": {source: its.to_tree() for source, its in figures.sources.items()},
        "vocabulary": vocabulary_tree(spelling, figures.uses),
        "terms": summary(broken, counts, max_pieces=MAX_TERM_PIECES) if terms else None,
        "term_pieces": broken,
        "cost": cost_tree(
            inputs.body,
            vocab_size=encoder.vocab_size,
            num_tokens=total.measure.num_tokens,
            num_bytes=total.measure.num_bytes,
            corpus_bytes=seen_bytes,
            lengths=total.lengths,
        ),
        "speed": {
            "megabytes_per_cpu_second": total.measure.num_bytes / 1e6 / max(figures.cpu_seconds, 1e-9),
            "library": encoder.backend,
        },
    }


def _model_of(folder: Path) -> str:
    """What kind of tokenizer it is: by its own manifest, else by the model in its file."""
    file = tokenizer_file(folder)
    manifest = disk.read_object(file.parent / MANIFEST_NAME)
    if (kind := manifest.get("tokenizer_kind")) is None:
        return str(read_tokenizer_json(file)["model"].get("type", "unknown"))
    morphemes = manifest.get("config", {}).get("morphemes", "none")
    return str(kind) if morphemes == "none" else f"{kind}, {morphemes}"
