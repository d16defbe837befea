"""What stands around the texts of an example: chosen by the tokenizer's roles, put there a batch at a time.

Ids come from roles, never from text: a review that spells `[SEP]` has ordinary ids for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.disk import read_object
from data_pipeline.shards.format import Frame
from data_pipeline.stage import StageError
from data_pipeline.tokenizer.encode import special_tokens
from data_pipeline.tokenizer.fingerprint import read_tokenizer_json, tokenizer_file

IntArray = NDArray[np.int64]

FrameChoice = Literal["auto", "bert", "roberta", "plain"]

_ROBERTA_CLASSES = ("Roberta", "XLMRoberta", "Camembert")


@dataclass(frozen=True)
class Texts:
    """One text of each example of a batch, encoded: flat ids and where each begins.

    `is_there`: whether an example has the text at all; one that has not has no ids.
    """

    ids: NDArray[np.uint32]
    offsets: IntArray
    is_there: NDArray[np.bool_]

    @property
    def lengths(self) -> IntArray:
        return np.diff(self.offsets)


def find_frame(tokenizer: Path, *, wanted: FrameChoice = "auto") -> Frame:
    """The frame of a tokenizer's folder.

    auto: plain where the tokenizer names no cls_token or no sep_token; else roberta where its post-processor, or
    failing that its class, puts two separators between texts, and bert where not. A plain frame begins with the token
    that transformers puts before a text (Llama 3, Gemma), if there is one.

    Raises:
        StageError: a bert or roberta frame is wanted of a tokenizer without these roles, or a plain one without EOS.
    """
    file = tokenizer_file(tokenizer)
    tree, roles = read_tokenizer_json(file), special_tokens(file.parent)
    cls_id, sep_id = (_id_of(roles.get(role), tree) for role in ("cls_token", "sep_token"))
    if wanted == "plain" or (wanted == "auto" and (cls_id is None or sep_id is None)):
        if "eos_token" not in roles:
            raise StageError(
                f"{tokenizer}: frame is plain, which ends a text with EOS, but the tokenizer names no eos_token; name "
                "it in tokenizer_config.json, or cls_token and sep_token for a bert frame"
            )
        return Frame("plain", cls_id=_opening_id(tree, roles))
    if cls_id is None or sep_id is None:
        raise StageError(
            f"{tokenizer}: frame is {wanted!r}, but of its tokens cls_token is {roles.get('cls_token')!r} and "
            f"sep_token is {roles.get('sep_token')!r}; name both in tokenizer_config.json, or set frame: plain"
        )
    if wanted == "auto":
        return Frame("roberta" if _is_roberta(tree, file.parent) else "bert", cls_id, sep_id)
    return Frame(wanted, cls_id, sep_id)


def _opening_id(tree: dict[str, Any], roles: Mapping[str, str]) -> int | None:
    """The id that transformers puts before a text, BERT's CLS aside; None where it puts none.

    It goes by the post-processor of tokenizer.json (5.23); `add_bos_token` of tokenizer_config.json changes nothing.
    """
    token = next(filter(None, map(_opening_of, _processors(tree))), None)
    return None if token == roles.get("cls_token") else _id_of(token, tree)


def _opening_of(processor: Mapping[str, Any]) -> str | None:
    """The token with which a template begins a text alone."""
    pieces = processor.get("single") or [{}]
    if processor.get("type") != "TemplateProcessing" or "SpecialToken" not in pieces[0]:
        return None
    token = pieces[0]["SpecialToken"]["id"]
    ids = processor["special_tokens"][token]["tokens"]
    return str(ids[0]) if len(ids) == 1 else None


def _processors(tree: dict[str, Any]) -> list[dict[str, Any]]:
    first = tree.get("post_processor") or {}
    return [first, *(first.get("processors") or [])]


def _id_of(token: str | None, tree: dict[str, Any]) -> int | None:
    for added in tree.get("added_tokens") or []:
        if added["content"] == token:
            return int(added["id"])
    vocabulary = tree["model"].get("vocab")
    found = vocabulary.get(token) if isinstance(vocabulary, dict) else None
    return None if found is None else int(found)


def _is_roberta(tree: dict[str, Any], folder: Path) -> bool:
    for processor in _processors(tree):
        if processor.get("type") in ("RobertaProcessing", "BertProcessing"):
            return bool(processor["type"] == "RobertaProcessing")
        if processor.get("type") == "TemplateProcessing":
            kinds = "".join("S" if "Sequence" in piece else "x" for piece in processor.get("pair") or [])
            return "SxxS" in kinds
    name = read_object(folder / "tokenizer_config.json").get("tokenizer_class")
    return str(name).startswith(_ROBERTA_CLASSES)


def num_frame_ids(frame: Frame, *, num_texts: int) -> int:
    """Ids of the frame in one sequence of `num_texts` texts."""
    if frame.kind == "plain":
        return num_texts + (frame.cls_id is not None)
    return 1 + num_texts + (num_texts - 1) * (frame.kind == "roberta")


def cut_lengths(lengths: Sequence[IntArray], room: IntArray) -> list[IntArray]:
    """Of one or two texts of each sequence: how many ids of each stay, `room` of them in all.

    The longer text loses its tail first; of two that are equally long the first keeps one id more.
    """
    if len(lengths) == 1:
        return [np.minimum(lengths[0], room)]
    first, second = lengths
    larger, smaller = (room + 1) // 2, room // 2
    kept_first = np.where(second <= smaller, room - second, np.minimum(first, larger))
    kept_first = np.minimum(kept_first, first)
    return [kept_first, np.minimum(second, room - kept_first)]


@dataclass(frozen=True)
class Framed:
    """A batch of framed examples: flat ids, and `ends` (examples, sequences) of the sequences inside each of them."""

    ids: NDArray[np.uint32]
    ends: IntArray

    @property
    def lengths(self) -> IntArray:
        """Ids of each example."""
        return self.ends[:, -1]


def put_in_frame(
    sequences: Sequence[Sequence[Texts]], frame: Frame, *, kept: Sequence[Sequence[IntArray]], eos_id: int
) -> Framed:
    """Frame the first `kept` ids of each text. `sequences`: of an example, each of one text or of two.

    A second text that an example has not takes its part of the frame with it.
    """
    pieces = _Pieces(frame, eos_id)
    for texts, lengths in zip(sequences, kept, strict=True):
        pieces.add_sequence(texts, lengths)
    return pieces.gather()


class _Pieces:
    """The pieces of every example as columns: where each begins in one source of ids, and its length."""

    def __init__(self, frame: Frame, eos_id: int) -> None:
        is_plain = frame.kind == "plain"
        self._source: list[NDArray[np.uint32]] = []
        self._num_source = 0
        self._starts: list[IntArray] = []
        self._lengths: list[IntArray] = []
        self._num_columns_before: list[int] = []
        self._cls = None if frame.cls_id is None else self._put(np.array([frame.cls_id], np.uint32))
        end = np.array([eos_id if is_plain else frame.sep_id], np.uint32)
        self._end = self._put(end)
        self._between = self._end if frame.kind == "roberta" else None

    def add_sequence(self, texts: Sequence[Texts], lengths: Sequence[IntArray]) -> None:
        for number, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            before = self._cls if number == 0 else self._between
            if before is not None:
                self._add(np.full(len(length), before), text.is_there.astype(np.int64))
            self._add(self._put(text.ids) + text.offsets[:-1], length)
            self._add(np.full(len(length), self._end), text.is_there.astype(np.int64))
        self._num_columns_before.append(len(self._lengths))

    def gather(self) -> Framed:
        lengths = np.stack(self._lengths, axis=1)
        ends = np.cumsum(lengths, axis=1)[:, np.array(self._num_columns_before) - 1]
        flat = lengths.ravel()
        shift = np.stack(self._starts, axis=1).ravel() - (np.cumsum(flat) - flat)
        places = np.repeat(shift, flat) + np.arange(int(flat.sum()))
        return Framed(np.concatenate(self._source)[places], ends)

    def _put(self, ids: NDArray[np.uint32]) -> int:
        """Take ids into the source; where they begin in it."""
        start = self._num_source
        self._source.append(ids)
        self._num_source += len(ids)
        return start

    def _add(self, starts: IntArray, lengths: IntArray) -> None:
        self._starts.append(starts)
        self._lengths.append(lengths)
