"""Texts -> ids, for every stage that needs ids: no special token is added, and none is read out of a text.

fastokens does the work (some twenty times faster) where it gives the same ids on the probe texts as the tokenizers
library, which is the reference.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer, models

from data_pipeline.stage import StageError
from data_pipeline.tokenizer.fingerprint import read_tokenizer_json, tokenizer_file, tokenizer_fingerprint
from data_pipeline.tokenizer.probes import PROBES

Ids = np.ndarray  # uint32
Offsets = np.ndarray  # int64

_SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json")


class Encoder:
    """The tokenizer in a folder, for bulk work. Picklable by its folder; any Hugging Face `tokenizer.json` will do.

    A text that spells a special token (`<|endoftext|>`) gets ordinary ids for it: a document can't end itself.
    `needs_eos`: refuse a tokenizer without an end of text; where it names none but a sep_token (BERT's), it is the end
    (`eos_is_sep`). Only what writes no texts for training may do without; `eos_id` is None then.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        backend: Literal["fastest", "tokenizers"] = "fastest",
        needs_eos: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self._wanted_backend = backend
        self._needs_eos = needs_eos
        file = tokenizer_file(self.folder)
        self.fingerprint = tokenizer_fingerprint(file)
        self.tokenizer = _load(file)
        self._special = special_tokens(file.parent)
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        # BERT's tokenizers name no end of a text: the end of a sequence stands for it.
        has_no_eos = "eos_token" not in self._special and self._special.get("sep_token") in vocabulary
        self.eos_is_sep = needs_eos and has_no_eos
        self.eos_id = self._role_id("sep_token" if self.eos_is_sep else "eos_token", vocabulary, required=needs_eos)
        pad_id = self._role_id("pad_token", vocabulary, required=False)
        # EOS as padding is no padding: the loss would never see the end of a text.
        self.pad_id = None if pad_id == self.eos_id else pad_id
        self.unk_id = self._unk_id(vocabulary, file)
        # Token -> id of what no text is ever encoded to: roles and markers, which templates put between texts.
        self.special_ids = {
            token.content: token_id
            for token_id, token in self.tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        self._fast = _fast_twin(file, self.tokenizer) if backend == "fastest" else None

    @property
    def backend(self) -> str:
        """Which library encodes: "fastokens" or "tokenizers"."""
        return "tokenizers" if self._fast is None else "fastokens"

    def encode_batch(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        """Ids of all texts in a row (uint32) and where each begins (int64, one more than texts)."""
        if self._fast is None:
            return _flat(self.tokenizer, texts)
        return _fast_flat(self._fast, texts)

    def decode_batch(self, ids: Ids, offsets: Offsets) -> list[str]:
        """The texts back, special tokens spelled out."""
        pieces = [ids[start:stop].tolist() for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]
        return self.tokenizer.decode_batch(pieces, skip_special_tokens=False)

    def id_of(self, token: str) -> int:
        """The id of a special token or marker, which templates put between texts; raises StageError if it has none."""
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise StageError(
                f"{self.folder}: no token {token!r}; train the tokenizer with it, or choose a template without"
            )
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _encoder, (self.folder, self._wanted_backend, self._needs_eos)

    def _role_id(self, role: str, vocabulary: dict[str, int], *, required: bool = True) -> int | None:
        token = self._special.get(role)
        if required and token not in vocabulary:
            raise StageError(
                f"{self.folder}: {role} is {token!r}, which is no token of its vocabulary; "
                f"name it in tokenizer_config.json (of BERT's, sep_token): a text needs an end"
            )
        return vocabulary.get(token) if token is not None else None

    def _unk_id(self, vocabulary: dict[str, int], file: Path) -> int | None:
        """The id that the model gives to what it does not know; None where nothing can be unknown."""
        if isinstance(self.tokenizer.model, models.Unigram):  # the library does not tell
            model = read_tokenizer_json(file)["model"]
            return None if model.get("byte_fallback") else model.get("unk_id")
        token = getattr(self.tokenizer.model, "unk_token", None)
        return vocabulary.get(token) if token is not None else None


def _encoder(folder: Path, backend: Literal["fastest", "tokenizers"], needs_eos: bool) -> Encoder:
    return Encoder(folder, backend=backend, needs_eos=needs_eos)


def _load(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise StageError(
            f"{file}: the tokenizers library can't load it: {error}; save it again with a newer one"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that a tokenizer folder names, by their role ("eos_token")."""
    found: dict[str, str] = {}
    for name in _SETTINGS_FILES:
        if not (folder / name).is_file():
            continue
        for role, token in json.loads((folder / name).read_text(encoding="utf-8")).items():
            content = token.get("content") if isinstance(token, dict) else token
            if role.endswith("_token") and isinstance(content, str):
                found.setdefault(role, content)
    return found


def _flat(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[Ids, Offsets]:
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    offsets = np.zeros(len(encodings) + 1, dtype=np.int64)
    np.cumsum([len(encoding) for encoding in encodings], out=offsets[1:])
    ids = np.empty(offsets[-1], dtype=np.uint32)
    for encoding, start, stop in zip(encodings, offsets[:-1], offsets[1:], strict=True):
        ids[start:stop] = encoding.ids
    return ids, offsets


def _fast_flat(fast: Any, texts: Sequence[str]) -> tuple[Ids, Offsets]:
    ids, offsets = fast.encode_batch_flat(list(texts), add_special_tokens=False, split_special_tokens=True)
    return np.frombuffer(ids, dtype="<u4"), np.frombuffer(offsets, dtype="<u8").astype(np.int64)


def _fast_twin(file: Path, reference: Tokenizer) -> Any | None:
    """fastokens' tokenizer if it can load the file and agrees on every probe, else None."""
    added = [token.content for token in reference.get_added_tokens_decoder().values() if not token.special]
    probes = [*PROBES, *(f"앞 {token}은{token} {unicodedata.normalize('NFD', token)}" for token in added)]
    probes += _literals(reference)
    try:
        import fastokens
    except ImportError:
        return None
    try:
        fast = fastokens.Tokenizer.from_file(str(file))
        if fast.truncation is not None:
            fast.no_truncation()
        ids, offsets = _fast_flat(fast, probes)
    except Exception:  # it refuses what it does not know (`##`, unigram), each in another way
        return None
    expected_ids, expected_offsets = _flat(reference, probes)
    is_twin = np.array_equal(ids, expected_ids) and np.array_equal(offsets, expected_offsets)
    return fast if is_twin else None


def _literals(tokenizer: Tokenizer) -> list[str]:
    """Texts that a normaliser's rules change, which no list of probes can know."""
    if tokenizer.normalizer is None:
        return []
    node = json.loads(tokenizer.normalizer.__getstate__())
    steps = [node, *node.get("normalizers", [])]
    olds = [step["pattern"].get("String", "") for step in steps if step.get("type") == "Replace"]
    return [text for old in olds for text in (old, f"앞{old}뒤 {old}. {old}{old}")]
