"""The model as it was before the tuning, which preference and policy losses hold the tuned one against.

Beside an adapter that is the frozen base without it: no second copy of the weights is held. Where every weight is
trained, or where the config asks for it, the reference's log-probabilities of all rows are computed once, before
step 1, and kept in the run folder:

    reference/train-<identity>/part-00000.npy   (rows, sequences) float64: ln pi_ref of each answer
    reference/heldout-<identity>/part-00000.npy

Shapes: B examples of k sequences, S = B * k.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
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

from data_pipeline import disk
from data_pipeline.shards.format import read_shards
from data_pipeline.stage import StageError, fingerprint
from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.examples import ExampleBatch, ExampleRows
from data_pipeline.stream.split import rank_slices
from data_pipeline.stream.stream import AnyBatch
from trainer.errors import RunError
from trainer.objectives.log_probs import answer_log_probs

if TYPE_CHECKING:
    from trainer.objectives.choose import Setting
    from trainer.preference_config import ReferenceKind
    from trainer.ranks import Ranks

FOLDER_NAME = "reference"
PART_ROWS = 4096

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


class Reference:
    """ln pi_ref of the answers of a batch, from a forward pass without the adapter or from what was computed before.

    `expand(batch, is_training)` makes of a batch of rows the sequences that are asked for.
    """

    def __init__(
        self, *, ranks: Ranks, head: nn.Module, rows: dict[bool, ExampleRows], identity: str, is_precomputed: bool
    ) -> None:
        self.is_precomputed = is_precomputed
        self._ranks, self._head, self._rows, self._identity = ranks, head, rows, identity
        self._tables: dict[bool, list[NDArray[np.float64]]] = {}
        self._asked: nn.Module | None = None
        self._first_seen: dict[tuple[bool, int], NDArray[np.float64]] = {}

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
        rows = {True: setting.source}
        if (heldout := open_heldout_rows(setting)) is not None:
            rows[False] = heldout
        return cls(
            ranks=setting.ranks,
            head=setting.model.get_output_embeddings(),  # type: ignore[operator]
            rows=rows,
            identity=fingerprint([_identity_of_base(setting), tag]),
            is_precomputed=kind == "precomputed" or not has_adapter,
        )

    def noted(self, batch: AnyBatch, *, is_training: bool) -> ExampleBatch:
        """`batch` with what was computed of its rows; as it is where that is done on the fly."""
        assert isinstance(batch, ExampleBatch), "examples are not packed"
        if not self.is_precomputed:
            return batch
        found = np.zeros((len(batch.row_ids), batch.num_sequences))
        for place, values in self._known(batch, is_training=is_training).items():
            found[place] = values
        return ReferredBatch(**vars(batch), reference=found)

    def ask_at_first_sight(self, module: nn.Module) -> None:
        """Instead of a table: what `module` says of a row when it is first seen. For tries that no one resumes."""
        self._asked = module

    def _known(self, batch: ExampleBatch, *, is_training: bool) -> dict[int, NDArray[np.float64]]:
        """(k,) by the place of a row in its batch."""
        rows = {place: row for place, row in enumerate(batch.row_ids.tolist()) if row != NO_ROW}
        if self._asked is None:
            return {place: self._tables[is_training][row // PART_ROWS][row % PART_ROWS] for place, row in rows.items()}
        if any((is_training, row) not in self._first_seen for row in rows.values()):
            with without_adapter(self._asked):
                sums = answer_log_probs(self._asked, batch, head=self._head, device=self._ranks.device).sums
            sums_Bk = sums.double().view(len(batch.row_ids), -1).cpu().numpy()
            for place, row in rows.items():
                self._first_seen.setdefault((is_training, row), sums_Bk[place])
        return {place: self._first_seen[is_training, row] for place, row in rows.items()}

    def sums(self, module: nn.Module, batch: ExampleBatch) -> torch.Tensor:
        """(S,) ln pi_ref of each answer, without gradient."""
        if isinstance(batch, ReferredBatch) and batch.reference is not None:
            return torch.from_numpy(batch.reference).float().to(self._ranks.device).view(-1)
        with without_adapter(module):
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

        Parts that stand there are not made again. False where a rank was asked to stop: what is done stays.
        """
        if not self.is_precomputed:
            return True
        for is_training in self._rows:
            parts = self._parts(folder, is_training=is_training)
            missing = self._ranks.on_main(partial(_missing, parts))
            split = "train" if is_training else "heldout"
            if missing and self._ranks.is_main:
                rows = self._rows[is_training].num_rows
                print(f"reference: what the model says of {rows:,} rows of {split} as it begins, once", flush=True)
            is_quiet = None if self._ranks.is_main else True
            for number in tqdm(missing, desc=f"reference ({split})", unit="part", disable=is_quiet):
                found = self._of_part(
                    module,
                    number,
                    is_training=is_training,
                    expand=expand,
                    size=micro_batch_sequences,
                    on_batch=on_batch,
                )
                self._ranks.on_main(partial(_write, parts[number], found))
                if self._ranks.any(stop_requested()):
                    return False
        self._ranks.together(lambda: self.open(folder))
        return True

    def open(self, folder: Path, *, only_heldout: bool = False) -> None:
        """Read what `precompute` wrote, of both splits or of the held-out one.

        Raises:
            RunError: a part is missing.
        """
        for is_training in [False] if only_heldout else self._rows:
            parts = self._parts(folder, is_training=is_training)
            absent = next((path for path in parts if not path.is_file()), None)
            if absent is not None:
                raise RunError(
                    f"{absent}: what the reference says of these rows was computed before step 1 of the run, and is "
                    "not there; score the run's own shards, in its own folder"
                )
            self._tables[is_training] = [np.load(path, mmap_mode="r") for path in parts]

    def _parts(self, folder: Path, *, is_training: bool) -> list[Path]:
        rows = self._rows[is_training]
        split = "train" if is_training else "heldout"
        identity = fingerprint([self._identity, rows.identity])
        count = -(-rows.num_rows // PART_ROWS)
        return [folder / FOLDER_NAME / f"{split}-{identity[:16]}" / f"part-{number:05d}.npy" for number in range(count)]

    def _of_part(
        self,
        module: nn.Module,
        number: int,
        *,
        is_training: bool,
        expand: Expand,
        size: int,
        on_batch: Callable[[], None],
    ) -> NDArray[np.float64]:
        """(rows, k) of one part's rows, which the ranks share."""
        rows = self._rows[is_training]
        chosen = np.arange(number * PART_ROWS, min((number + 1) * PART_ROWS, rows.num_rows))
        by_length = chosen[np.argsort(rows.lengths[chosen], kind="stable")]  # so that little is padded
        ours: list[tuple[int, list[float]]] = []
        was_training = module.training
        module.eval()
        for start, end in rank_slices(
            len(chosen), dp_rank=self._ranks.rank, dp_world_size=self._ranks.world_size, micro_batch_sequences=size
        ):
            batch = expand(rows.gather(by_length[start:end]) if end > start else rows.padding(), is_training)
            with without_adapter(module):
                found = answer_log_probs(module, batch, head=self._head, device=self._ranks.device, has_entropies=False)
            sums = found.sums.double().view(len(batch.row_ids), -1).cpu().tolist()
            ours += [(row, values) for row, values in zip(batch.row_ids.tolist(), sums, strict=True) if row != NO_ROW]
            on_batch()
        module.train(was_training)
        by_row = dict(each for part in self._ranks.gather_objects(ours) for each in part)
        return np.array([by_row[row] for row in chosen.tolist()])


def open_heldout_rows(setting: Setting) -> ExampleRows | None:
    """The held-out rows by the numbers that evaluations give them; None where the shards hold none."""
    config = setting.config
    try:
        shards = read_shards(Path(config.data.shards), split="heldout")
    except StageError:
        return None
    return ExampleRows(shards, seq_len=config.data.seq_len, too_long="drop")


def _identity_of_base(setting: Setting) -> Any:
    from trainer.base import identify

    config = setting.config
    if config.model.source is None:
        return ["new", config.seed, config.model.model_dump(mode="json")]
    return setting.ranks.on_main(lambda: identify(config.model).sha256)


def _missing(parts: Sequence[Path]) -> list[int]:
    return [number for number, path in enumerate(parts) if not path.is_file()]


def _write(path: Path, values: NDArray[np.float64]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, values)
    disk.write_bytes(path, buffer.getvalue())
