"""The model as it was before the tuning, which preference and policy losses hold the tuned one against.

Beside an adapter that is the frozen base without it: no second copy of the weights is held. Where every weight is
trained, or where the config asks for it, the reference's log-probabilities of the rows that the run reads are computed
once, before step 1, and kept in the run folder (reference_table.py).

Shapes: B examples of k sequences, S = B * k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from data_pipeline.shards.format import read_shards, read_shards_manifest
from data_pipeline.stage import fingerprint
from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.examples import ExampleBatch, ExampleRows
from data_pipeline.stream.stream import AnyBatch, Stream
from trainer.errors import RunError
from trainer.objectives.log_probs import answer_log_probs
from trainer.reference_table import ReferenceTable, Values, rows_of_steps

if TYPE_CHECKING:
    from trainer.config import TrainConfig
    from trainer.objectives.choose import Setting
    from trainer.preference_config import ReferenceKind
    from trainer.ranks import Ranks

FOLDER_NAME = "reference"

Expand = Callable[[ExampleBatch, bool], ExampleBatch]


@dataclass(frozen=True)
class ReferredBatch(ExampleBatch):
    """Examples, and what the reference says of them: (B, k) float64."""

    reference: NDArray[np.float64] | None = None


@contextmanager
def without_adapter(module: nn.Module) -> Iterator[None]:
    """Within the block the LoRA layers inside `module` add nothing, no graph is made and no dropout is drawn.

    What is trainable stays as it is: engines have counted it.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    was_training = module.training
    module.eval()
    for layer in layers:
        layer._disable_adapters = True  # `enable_adapters` would freeze them as well
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
        module.train(was_training)


@dataclass(frozen=True)
class Asked:
    """Rows of one split that a reference is asked of: their numbers, sorted."""

    rows: ExampleRows
    numbers: NDArray[np.int64]

    @property
    def is_all(self) -> bool:
        return len(self.numbers) == self.rows.num_rows

    def places(self, row_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the rows of those numbers stand among them."""
        return row_ids if self.is_all else np.searchsorted(self.numbers, row_ids)


class Reference:
    """ln pi_ref of the answers of a batch, from a forward pass without the adapter or from what was computed before.

    `asked`: by whether they are trained on, the rows of a split.
    """

    def __init__(
        self, *, ranks: Ranks, head: nn.Module, asked: dict[bool, Asked], identity: str, is_precomputed: bool
    ) -> None:
        self.is_precomputed = is_precomputed
        self._ranks, self._head, self._asked, self._identity = ranks, head, asked, identity
        self._tables: dict[bool, Values] = {}

    @classmethod
    def make(cls, setting: Setting, *, kind: ReferenceKind, tag: str = "") -> Reference:
        """`tag` tells apart what is made of equal rows.

        Raises:
            RunError: on the fly, but every weight is trained.
        """
        config, has_adapter = setting.config, setting.config.adapter is not None
        if kind == "on_the_fly" and not has_adapter:
            raise RunError(
                f"{config.stage}.reference: 'on_the_fly' is the base without its adapter, but every weight is trained "
                "here and no second copy of them is held; set it to 'precomputed', or set adapter"
            )
        assert isinstance(setting.source, ExampleRows), "its stage reads examples"
        is_precomputed = kind == "precomputed" or not has_adapter
        asked: dict[bool, Asked] = {}
        if is_precomputed:
            asked[True] = Asked(setting.source, _rows_read(config, setting.source))
            if (heldout := open_heldout_rows(config)) is not None:
                asked[False] = Asked(heldout, np.arange(heldout.num_rows))
        return cls(
            ranks=setting.ranks,
            head=setting.model.get_output_embeddings(),  # type: ignore[operator]
            asked=asked,
            identity=fingerprint([_identity_of_base(setting), tag]) if is_precomputed else "",
            is_precomputed=is_precomputed,
        )

    def only_heldout(self, numbers: NDArray[np.int64]) -> None:
        """Ask of these held-out rows alone, as a try does that scores no others."""
        if False in self._asked:
            self._asked[False] = Asked(self._asked[False].rows, np.unique(numbers))

    def noted(self, batch: AnyBatch, *, is_training: bool) -> ExampleBatch:
        """`batch` with what was computed of its rows; as it is where that is done on the fly."""
        assert isinstance(batch, ExampleBatch), "examples are not packed"
        if not self.is_precomputed:
            return batch
        found = np.zeros((len(batch.row_ids), batch.num_sequences))
        is_real = batch.row_ids != NO_ROW
        if is_real.any():
            found[is_real] = self._tables[is_training][self._asked[is_training].places(batch.row_ids[is_real])]
        return ReferredBatch(**vars(batch), reference=found)

    def sums(self, module: nn.Module, batch: ExampleBatch) -> torch.Tensor:
        """(S,) ln pi_ref of each answer, without gradient."""
        if isinstance(batch, ReferredBatch) and batch.reference is not None:
            return torch.from_numpy(batch.reference).float().to(self._ranks.device).view(-1)
        with without_adapter(module):
            return self._said(module, batch)

    def _said(self, module: nn.Module, batch: ExampleBatch) -> torch.Tensor:
        return answer_log_probs(module, batch, head=self._head, device=self._ranks.device, has_entropies=False).sums

    def precompute(
        self,
        module: nn.Module,
        folder: Path,
        *,
        expand: Expand,
        micro_batch_sequences: int,
        stop_requested: Callable[[], bool] = lambda: False,
        on_batch: Callable[[], None] = lambda: None,
    ) -> bool:
        """Have the tables of both splits in `folder`/reference; every rank calls it, with the model as it begins.

        `expand(batch, is_training)` makes of a batch of rows the sequences that are asked for. Finished parts are not
        made again, and a table that is damaged is made anew. False where a rank was asked to stop meanwhile.
        """
        for is_training, asked in self._asked.items():
            table, split = self._table(folder, is_training=is_training), "train" if is_training else "heldout"
            missing = self._ranks.on_main(partial(_begin, table, split=split))
            is_quiet = None if self._ranks.is_main else True
            for number in tqdm(missing, desc=f"reference ({split})", unit="part", disable=is_quiet):
                found = self._of_rows(
                    module,
                    asked.rows,
                    asked.numbers[table.part(number)],
                    expand=partial(_expanded, expand, is_training=is_training),
                    size=micro_batch_sequences,
                    stop_requested=stop_requested,
                    on_batch=on_batch,
                )
                if found is None:
                    return False
                self._ranks.on_main(partial(table.write_part, number, found))
            self._ranks.on_main(table.finish)
        self._ranks.together(lambda: self.open(folder))
        return True

    def open(self, folder: Path, *, only_heldout: bool = False) -> None:
        """Read what `precompute` wrote, of both splits or of the held-out one.

        Raises:
            RunError: there is none of these rows and this base.
        """
        for is_training in [False] if only_heldout else self._asked:
            table = self._table(folder, is_training=is_training)
            if not table.is_finished:
                made = ", ".join(sorted(path.name for path in (folder / FOLDER_NAME).glob("*"))) or "none"
                raise RunError(
                    f"{table.folder}: what the reference says of these rows was computed before step 1 of the run; "
                    f"this table is not there (there are: {made}): score the run's own shards, over the base that it "
                    "began on"
                )
            self._tables[is_training] = table.read()

    def _table(self, folder: Path, *, is_training: bool) -> ReferenceTable:
        asked, split = self._asked[is_training], "train" if is_training else "heldout"
        which = "all" if asked.is_all else fingerprint(asked.numbers.tolist())
        identity = fingerprint([self._identity, asked.rows.identity, which])
        return ReferenceTable(folder / FOLDER_NAME / f"{split}-{identity[:16]}", num_rows=len(asked.numbers))

    def _of_rows(
        self,
        module: nn.Module,
        rows: ExampleRows,
        numbers: NDArray[np.int64],
        *,
        expand: Callable[[ExampleBatch], ExampleBatch],
        size: int,
        stop_requested: Callable[[], bool],
        on_batch: Callable[[], None],
    ) -> Values | None:
        """(rows, k) of the rows of those numbers, which the ranks share; None where a rank was asked to stop.

        Rows of like length are worked on at once, and every rank gets some of each length.
        """
        ranks = self._ranks
        by_length = np.argsort(rows.lengths[numbers], kind="stable")
        of_all = ranks.world_size * size
        places: list[NDArray[np.int64]] = []
        values: list[Values] = []
        with without_adapter(module):
            for first in range(0, len(numbers), of_all):
                ours = by_length[first : first + of_all][ranks.rank :: ranks.world_size]
                batch = expand(rows.gather(numbers[ours]) if len(ours) else rows.padding())
                said_Bk = self._said(module, batch).double().view(len(batch.row_ids), -1).cpu().numpy()
                if len(ours):
                    places.append(ours)
                    values.append(said_Bk)
                on_batch()
                if ranks.any(stop_requested()):
                    return None
        pair = (np.concatenate(places), np.concatenate(values)) if places else None
        parts = [part for part in ranks.gather_objects(pair) if part is not None]
        found = np.empty((len(numbers), parts[0][1].shape[1]))
        for its_places, its_values in parts:
            found[its_places] = its_values
        return found


def open_heldout_rows(config: TrainConfig) -> ExampleRows | None:
    """The held-out rows by the numbers that evaluations give them; None where the shards hold none."""
    folder = Path(config.data.shards)
    if not read_shards_manifest(folder)["splits"]["heldout"]["num_documents"]:
        return None
    return ExampleRows(read_shards(folder, split="heldout"), seq_len=config.data.seq_len, too_long="drop")


def _rows_read(config: TrainConfig, rows: ExampleRows) -> NDArray[np.int64]:
    """The rows that the run learns from, sorted."""
    steps = config.train
    if steps.max_steps is None:
        return np.arange(rows.num_rows)
    lengths = np.asarray(rows.lengths) if config.data.group_by_length else None
    stream = Stream(rows, seed=config.seed, global_batch_sequences=steps.global_batch_sequences, lengths=lengths)

    def of_next_step(_: int) -> NDArray[np.int64]:
        found = stream.step_row_ids()
        stream.advance()
        return found

    return rows_of_steps(
        of_next_step, num_steps=steps.max_steps, num_rows=rows.num_rows, of_step=steps.global_batch_sequences
    )


def _identity_of_base(setting: Setting) -> Any:
    """All that decides what the reference says: its weights, and what they are held and multiplied in."""
    from trainer.base import identify

    config = setting.config
    packing = config.model.quantization
    held = [config.train.precision, None if packing is None else packing.model_dump(mode="json")]
    if config.model.source is None:
        return ["new", config.seed, config.model.model_dump(mode="json"), held]
    return [setting.ranks.on_main(lambda: identify(config.model).sha256), held]


def _begin(table: ReferenceTable, *, split: str) -> list[int]:
    """The parts that are to be made; a damaged table is told and removed."""
    if fault := table.fault():
        print(f"reference: {fault} (손상됨); it is made anew", flush=True)
        table.remove()
    missing = table.missing_parts()
    if missing:
        print(f"reference: what the model says of {table.num_rows:,} rows of {split} as it begins, once", flush=True)
    return missing


def _expanded(expand: Expand, batch: ExampleBatch, *, is_training: bool) -> ExampleBatch:
    return expand(batch, is_training)
