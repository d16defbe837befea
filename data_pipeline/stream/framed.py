"""Rows of a masked language model: pieces of documents, each between CLS and SEP, packed best-fit.

The shards are those of pretraining. A document's EOS is left out: SEP ends a piece. A document of more than
`seq_len - 2` ids is cut into windows of so many, and counted. Positions restart at each piece, and what pads a row is a
segment of its own. Which ids are asked for is the objective's business: here the label of each id of a text is itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_pipeline.shards.format import RecordKind, ShardSet, read_shards, tokenizer_folder
from data_pipeline.shards.reader import document_lengths
from data_pipeline.stage import NothingToScoreError, StageError
from data_pipeline.stream.batch import Batch, RowBuffers, padding_batch
from data_pipeline.stream.maps import ShardMaps
from data_pipeline.stream.order import RowOrder
from data_pipeline.stream.packing import WINDOW_DOCUMENTS, frame_pieces, pack_best_fit
from data_pipeline.stream.rows import TableRows
from data_pipeline.stream.split import rank_slices
from data_pipeline.stream.table import RowTable, open_table
from data_pipeline.tokenizer.encode import special_tokens
from data_pipeline.tokenizer.fingerprint import TOKENIZER_FILE

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class FrameTokens:
    """Ids by the tokenizer's roles: what stands before and behind each piece, and in place of what is hidden."""

    cls_id: int
    sep_id: int
    mask_id: int

    @property
    def frame(self) -> tuple[int, int]:
        return self.cls_id, self.sep_id


def frame_tokens(shards: Path) -> FrameTokens:
    """Of the tokenizer that made a finished shards folder.

    Raises:
        StageError: it names no token for one of the roles.
    """
    folder = tokenizer_folder(shards)
    roles = special_tokens(folder)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    ids = {role: tokenizer.token_to_id(roles.get(role, "")) for role in ("cls_token", "sep_token", "mask_token")}
    found = {role: token_id for role, token_id in ids.items() if token_id is not None}
    if missing := [role for role in ids if role not in found]:
        raise StageError(
            f"{folder}: names no {', '.join(missing)} in its vocabulary, which a masked language model needs (마스크 "
            "토큰 없음); build the shards with a tokenizer that has them, as `dure tokenizer train`'s and BERT's do"
        )
    return FrameTokens(found["cls_token"], found["sep_token"], found["mask_token"])


def open_framed_rows(shards: Path, *, split: str, seq_len: int, build: bool) -> FramedRows:
    """The framed rows of one split of document shards. Builds and commits their table if it is missing.

    Raises:
        StageError: the folder is no finished shards folder, its tokenizer lacks a role, no document has a token beside
            its EOS, or the table is missing and `build` is false.
    """
    found = read_shards(Path(shards), split=split)
    tokens = frame_tokens(Path(shards))
    if found.num_pairs == 0:
        raise StageError(
            f"{shards}: the {found.num_documents:,} documents of split {split!r} hold no token beside their EOS, so "
            "there is nothing to learn; look at the corpus and the tokenizer with `dure shards inspect`"
        )
    table = open_table(found, packing="framed", seq_len=seq_len, build=build, frame=tokens.frame)
    return FramedRows(found, table, tokens, seq_len=seq_len)


class FramedRows(TableRows):
    """Rows of `seq_len` places. Of a Batch of these, `labels` are the ids of texts themselves and -100 at CLS, SEP and
    padding."""

    def __init__(self, shards: ShardSet, table: RowTable, tokens: FrameTokens, *, seq_len: int) -> None:
        super().__init__(shards, table, seq_len=seq_len)
        self.tokens = tokens

    def gather(self, row_numbers: IntArray) -> Batch:
        """The rows of those numbers, in that order, in new memory.

        Raises IndexError if a number is not in [0, num_rows), StageError if a shard is damaged.
        """
        numbers = np.ascontiguousarray(row_numbers, np.int64)
        return _gather(self._maps, numbers, self._table, seq_len=self.seq_len, frame=self.tokens.frame)


class FramedSet:
    """Framed rows of whole documents of one split for evaluation, the same on every rank; each id stands in one row.

    `num_documents`, `num_bytes`: of the documents that are taken: at most `max_documents`, chosen evenly by the keyed
    order of the shards, as for bits per byte; or those of `documents`, ascending numbers.
    """

    num_documents_too_long = 0  # none is left out

    def __init__(
        self,
        shards: Path,
        split: str,
        seq_len: int,
        max_documents: int | None = None,
        documents: IntArray | None = None,
    ) -> None:
        self.seq_len = seq_len
        self._shards = read_shards(Path(shards), split=split)
        self._tokens = frame_tokens(Path(shards))
        self._maps = ShardMaps(self._shards)
        starts, lengths, num_bytes = _chosen_documents(self._maps, max_documents, documents)
        self.num_documents, self.num_bytes = len(starts), int(num_bytes.sum())
        if not lengths.any():
            raise NothingToScoreError(
                f"{shards}: the {self.num_documents:,} documents of split {split!r} chosen for evaluation hold no "
                "token beside their EOS; take more documents, or build the shards again with more held-out text"
            )
        self._rows = _packed(starts, lengths, seq_len=seq_len)

    @property
    def record(self) -> RecordKind:
        """Of the shards: "document"."""
        return self._shards.record

    @property
    def num_rows(self) -> int:
        return len(self._rows.row_ends)

    def pad_with(self, pad_id: int) -> None:
        """Fill rows with `pad_id` from now on."""
        self._maps.pad_id = pad_id

    def batches(self, *, dp_rank: int, dp_world_size: int, micro_batch_sequences: int) -> Iterator[Batch]:
        """This rank's batches; every rank gets the same number. `row_ids` number the rows of this set.

        They stand in no epoch: what is asked of a row is the same at every evaluation.
        """
        for start, end in rank_slices(
            self.num_rows,
            dp_rank=dp_rank,
            dp_world_size=dp_world_size,
            micro_batch_sequences=micro_batch_sequences,
        ):
            if start == end:
                yield padding_batch(seq_len=self.seq_len, pad_id=self._maps.pad_id)
                continue
            numbers = np.arange(start, end)
            yield _gather(self._maps, numbers, self._rows, seq_len=self.seq_len, frame=self._tokens.frame)


@dataclass(frozen=True)
class _PackedPieces:
    """Row r is pieces `row_ends[r - 1]`.. `row_ends[r]`."""

    row_ends: IntArray
    starts: IntArray
    lengths: NDArray[np.int32]


def _gather(
    maps: ShardMaps, numbers: IntArray, rows: RowTable | _PackedPieces, *, seq_len: int, frame: tuple[int, int]
) -> Batch:
    buffers = RowBuffers.empty(len(numbers), seq_len)
    num_targets = maps.write_framed(numbers, rows.row_ends, rows.starts, rows.lengths, buffers, frame=frame)
    return Batch(
        input_ids=buffers.input_ids,
        labels=buffers.labels,
        position_ids=buffers.position_ids,
        row_ids=numbers,
        num_targets=num_targets,
    )


def _chosen_documents(
    maps: ShardMaps, max_documents: int | None, documents: IntArray | None
) -> tuple[IntArray, IntArray, IntArray]:
    """(first token, ids without EOS, bytes of text) of the chosen documents of a split, in shard order."""
    shards = maps.shards
    starts, lengths, num_bytes = ([np.empty(0, np.int64)] for _ in range(3))
    first_token = 0
    for number, file in enumerate(shards.files):
        for batch in maps.open(number):
            tokens = document_lengths(batch)
            starts.append(first_token + np.cumsum(tokens) - tokens)
            lengths.append(tokens - 1)
            num_bytes.append(batch.column("num_bytes").to_numpy())
            first_token += int(tokens.sum())
        assert first_token <= shards.num_tokens, file.path
    columns = (np.concatenate(column) for column in (starts, lengths, num_bytes))
    chosen = documents
    if documents is None and max_documents is not None and max_documents < shards.num_documents:
        order = RowOrder(shards.content_sha256, seed=0, epoch=0, num_rows=shards.num_documents)
        chosen = np.sort(order.rows_at(np.arange(max_documents)))
    first, second, third = columns if chosen is None else (column[chosen] for column in columns)
    return first, second, third


def _packed(starts: IntArray, lengths: IntArray, *, seq_len: int) -> _PackedPieces:
    """Rows of WINDOW_DOCUMENTS documents at a time, as the row table packs them."""
    row_ends, pieces, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    num_pieces = 0
    for first in range(0, len(starts), WINDOW_DOCUMENTS):
        window = slice(first, first + WINDOW_DOCUMENTS)
        packed = pack_best_fit(*frame_pieces(starts[window], lengths[window], seq_len=seq_len), seq_len=seq_len)
        row_ends.append(packed.row_ends + num_pieces)
        pieces.append(packed.starts)
        places.append(packed.lengths)
        num_pieces += len(packed.starts)
    return _PackedPieces(np.concatenate(row_ends), np.concatenate(pieces), np.concatenate(places))
