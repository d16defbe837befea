"""`dure evaluate RUN|MODEL`: the loss and the stage's figures over held-out rows, printed and kept beside the run."""

from __future__ import annotations

import argparse
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.config import TrainConfig
    from trainer.objectives.objective import Objective
    from trainer.ranks import Ranks
    from trainer.saved import Dtype, OpenModel, Saved

EVALUATION_NAME = "evaluation.json"
MAX_SEQ_LEN = 2048  # inputs a row, of a model folder, which names none
ALL_ROWS = 1 << 62
GROUP = 64  # examples among which a folder's embeddings have a loss, where no run tells the size of its steps


def evaluate(arguments: argparse.Namespace) -> int:
    """Score a saved model over the held-out rows of its run's shards, or of --shards, by its stage's figures."""
    result = evaluate_saved(arguments.path, shards=arguments.shards, dtype=arguments.dtype)
    print(f"{result['model']}: held-out (검증) {result['shards']}")
    held = f", base held in {result['quantization']}" if result["quantization"] else ""
    for name, value in result.items():
        if isinstance(value, float):
            print(f"  {name:<14} {value:,.4f} (in {result['dtype']}{held})")
    for name, value in result.items():
        if name.startswith("num_"):
            print(f"  {name:<14} {value:,}")
    for line in confusion_lines(result.get("labels", []), result.get("confusion", [])):
        print(f"  {line}")
    if result["written"]:
        print(f"written: {result['written']}")
    return 0


def confusion_lines(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> Iterator[str]:
    """The table of a classifier: rows are the true classes, columns the predicted ones."""
    if not confusion:
        return
    width = max(8, *(len(f"{count:,}") + 1 for row in confusion for count in row), *(_width(label) for label in labels))
    yield "참 \\ 예측 · true \\ predicted"
    yield " " * width + "".join(_right(label, width + 1) for label in labels)
    for label, row in zip(labels, confusion, strict=True):
        yield _right(label, width) + "".join(f"{count:>{width + 1},}" for count in row)


def _width(text: str) -> int:
    """Columns of a terminal: a Korean character takes two."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)


def _right(text: str, width: int) -> str:
    return " " * (width - _width(text)) + text


def evaluate_saved(name: str, *, shards: str | None = None, dtype: Dtype | None = None) -> dict[str, Any]:
    """The figures of a run's newest checkpoint, a checkpoint, or a model folder over all held-out rows.

    Args:
        dtype: of the weights and the products, which the figures depend on a little; `usual_dtype` if None.

    Raises:
        RunError: nothing saved under that name, a model folder without --shards, or shards of other records or classes.
    """
    import torch
    from tqdm import tqdm

    from data_pipeline import disk
    from data_pipeline.shards.format import check_tokenizer
    from trainer.errors import RunError
    from trainer.evaluate import evaluate as evaluate_rows
    from trainer.quiet import quieten_libraries
    from trainer.ranks import Ranks
    from trainer.saved import (
        DTYPES,
        find_saved,
        open_model,
        open_tokenizer,
        quantization_of,
        usual_dtype,
        vocabulary_of,
    )
    from trainer.sources import open_heldout

    quieten_libraries(use_gpu=torch.cuda.is_available())
    saved = find_saved(name)
    folder = Path(shards) if shards else Path(saved.config.data.shards) if saved.config else None
    if folder is None:
        raise RunError(f"{name}: a model folder does not say which documents to score; give --shards DIR")
    check_tokenizer(folder, open_tokenizer(saved).fingerprint)
    chosen = dtype or usual_dtype(saved)
    quantization = quantization_of(saved)
    opened = open_model(saved, shards=folder, dtype=DTYPES[chosen])
    config = _config_for(saved, opened.model, folder)
    rows = open_heldout(config)
    rows.pad_with(vocabulary_of(saved).in_model(opened.model).pad_id)
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device(opened.device))
    objective = _objective_for(config, opened, ranks)
    with tqdm(desc="evaluate", unit="batch", disable=None) as bar:
        result = evaluate_rows(
            opened.model,
            rows,
            objective=objective,
            ranks=ranks,
            micro_batch_sequences=max(1, 8192 // config.data.seq_len),
            on_batch=lambda: bar.update(1),
        )
    assert result is not None, "nobody asked to stop"
    tree: dict[str, Any] = {"model": str(saved.checkpoint or saved.path), "step": saved.step, "shards": str(folder)}
    tree |= {"dtype": chosen, "quantization": quantization.kind if quantization else None}
    tree |= result.as_dict()
    tree["written"] = str(saved.run_folder / EVALUATION_NAME) if saved.run_folder else None
    if saved.run_folder:
        disk.write_json(saved.run_folder / EVALUATION_NAME, tree)
    return tree


def _objective_for(config: TrainConfig, opened: OpenModel, ranks: Ranks) -> Objective:
    """That of the config's stage; to score packed documents no row of training is looked at."""
    from trainer.objectives.causal_lm import CausalLM
    from trainer.objectives.choose import make_objective
    from trainer.sources import open_source
    from trainer.stages import STAGES

    if STAGES[config.stage].head == "causal_lm":
        return CausalLM(kernel=opened.kernel, device=opened.device)
    source = open_source(config, build=True)
    return make_objective(config, ranks, source=source, model=opened.model, kernel=opened.kernel)


def _config_for(saved: Saved, model: Any, shards: Path) -> TrainConfig:
    """What decides the rows, the loss and the figures: the run's own config, or of a folder what it says of itself.

    Raises:
        RunError: the shards hold other records than the model is for, or other classes.
    """
    from data_pipeline.shards.format import read_shards
    from trainer.config import TrainConfig
    from trainer.errors import RunError
    from trainer.heads import positions_of
    from trainer.saved_head import saved_head
    from trainer.sources import check_stage
    from trainer.stages import STAGES

    told = saved_head(saved)
    found = read_shards(shards, split="heldout")
    # Documents and instruction rows are scored alike by whatever writes text.
    stage = next(
        (name for name, kind in STAGES.items() if kind.head == told.head and kind.record == found.record),
        next(name for name, kind in STAGES.items() if kind.head == told.head),
    )
    check_stage(stage, shards)
    if told.head == "classifier" and found.labels != told.labels:
        raise RunError(
            f"--shards: {shards} has the classes {', '.join(found.labels)}, but the model {', '.join(told.labels)}, in "
            "these orders; build the shards with labels in the model's order"
        )
    seq_len = told.seq_len or min(MAX_SEQ_LEN, positions_of(model) or MAX_SEQ_LEN)
    data, evaluation = {"shards": str(shards)}, {"max_documents": ALL_ROWS}
    embed = _embedding_for(saved, shards) if stage == "embed" else {}
    if saved.config is not None:
        ours = saved.config
        return ours.model_copy(
            update={
                "stage": stage,
                **embed,
                "data": ours.data.model_copy(update={**data, "too_long": "drop"}),
                "evaluation": ours.evaluation.model_copy(update=evaluation),
            }
        )
    return TrainConfig.model_validate(
        {
            "run": {"name": "evaluation"},
            "stage": stage,
            "model": {"from": str(saved.path)},
            "data": {**data, "seq_len": seq_len, "too_long": "drop"},
            "train": {"max_steps": 1, "global_batch_sequences": GROUP if embed else 1, "micro_batch_sequences": 1},
            "evaluation": evaluation,
            **embed,
        }
    )


def _embedding_for(saved: Saved, shards: Path) -> dict[str, Any]:
    """How sentence embeddings are made, and scored over these shards."""
    from trainer.objectives.embedding_rows import for_shards
    from trainer.pooling import needed_form
    from trainer.stage_configs import EmbedConfig

    form = needed_form(saved)
    known = saved.config.embed if saved.config is not None else None
    return {"embed": for_shards(known or EmbedConfig(pooling=form.pooling, normalize=form.normalize), shards)}
