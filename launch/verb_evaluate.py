"""`dure evaluate RUN|MODEL`: the loss and the stage's figures over held-out rows, printed and kept beside the run."""

from __future__ import annotations

import argparse
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipeline.stream.examples import ExampleRows
    from trainer.config import TrainConfig
    from trainer.objectives.objective import Objective
    from trainer.ranks import Ranks
    from trainer.saved import Dtype, OpenModel, Saved
    from trainer.saved_head import SavedHead
    from trainer.stage_configs import ClassifyConfig

EVALUATION_NAME = "evaluation.json"
MAX_SEQ_LEN = 2048  # inputs a row, of a model folder, which names none
GROUP = 64  # examples among which a folder's embeddings have a loss, where no run tells the size of its steps


def evaluate(arguments: argparse.Namespace) -> int:
    """Score a saved model over the held-out rows of its run's shards, or of --shards, by its stage's figures."""
    if arguments.tasks is not None:
        from launch.evaluate_tasks import evaluate_tasks

        return evaluate_tasks(arguments)
    _refuse_unread(arguments)
    result = evaluate_saved(
        arguments.path,
        shards=arguments.shards,
        dtype=arguments.dtype,
        checkpoint=arguments.checkpoint,
        output=arguments.output,
    )
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
    for line in source_lines(result["sources"]):
        print(f"  {line}")
    if result["written"]:
        print(f"written: {result['written']}")
    return 0


def _refuse_unread(arguments: argparse.Namespace) -> None:
    """A flag that would do nothing is refused."""
    from trainer.errors import RunError

    for flag in ("num_fewshot", "limit"):
        if getattr(arguments, flag) is not None:
            name = flag.replace("_", "-")
            value = getattr(arguments, flag)
            raise RunError(f"--{name}: {value} was given, but it is of --tasks; name tasks, or leave it out")


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


def source_lines(sources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The figures of each source in a table; none where all is of one."""
    if len(sources) < 2:
        return []
    told = list(sources.values())
    shown = [name for name, value in told[0].items() if isinstance(value, float)]
    shown += [name for name in ("num_documents", "num_targets") if name in told[0]]
    rows = [["출처 source", *shown]]
    for source, figures in sources.items():
        rows.append([source, *(_figure(figures.get(name)) for name in shown)])
    return aligned(rows)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}"
    return f"{value:,}" if isinstance(value, int) else "–"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines: the first column at the left, the others at the right, whatever the letters' widths."""
    widths = [max(_width(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0] + " " * (widths[0] - _width(row[0])), *map(_right, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def evaluate_saved(
    name: str,
    *,
    shards: str | None = None,
    dtype: Dtype | None = None,
    checkpoint: str | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """The figures of a run's checkpoint, or a model folder, over all held-out rows, together and by `sources`.

    Args:
        dtype: of the weights and the products, which the figures depend on a little; `usual_dtype` if None.
        checkpoint: of a run, as `find_saved` takes it.
        output: the folder that evaluation.json is written to; the run's if None, and nowhere for a model folder.

    Raises:
        RunError: nothing saved under that name, a model folder without --shards, or shards of other records or classes.
    """
    import torch
    from tqdm import tqdm

    from data_pipeline import disk
    from data_pipeline.shards.format import check_tokenizer
    from trainer.errors import RunError
    from trainer.evaluate import evaluate as evaluate_rows
    from trainer.evaluate_sources import SourcedScorer, open_sources
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

    quieten_libraries(use_gpu=torch.cuda.is_available())
    saved = find_saved(name, checkpoint=checkpoint)
    if saved.told:
        print(saved.told)
    folder = Path(shards) if shards else Path(saved.config.data.shards) if saved.config else None
    if folder is None:
        raise RunError(f"{name}: a model folder does not say which documents to score; give --shards DIR")
    check_tokenizer(folder, open_tokenizer(saved).fingerprint)
    chosen = dtype or usual_dtype(saved)
    quantization = quantization_of(saved)
    opened = open_model(saved, shards=folder, dtype=DTYPES[chosen])
    config = _config_for(saved, opened.model, folder)
    rows = open_sources(config)
    rows.pad_with(vocabulary_of(saved).in_model(opened.model).pad_id)
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device(opened.device))
    objective = _objective_for(config, opened, ranks, run=saved.run_folder or saved.path)
    with tqdm(desc="evaluate", unit="batch", disable=None) as bar:
        result = evaluate_rows(
            opened.model,
            rows,
            objective=objective,
            ranks=ranks,
            micro_batch_sequences=max(1, 8192 // config.data.seq_len),
            scorer=SourcedScorer(objective, rows),
            on_batch=lambda: bar.update(1),
        )
    assert result is not None, "nobody asked to stop"
    tree: dict[str, Any] = {"model": str(saved.checkpoint or saved.path), "step": saved.step, "shards": str(folder)}
    tree |= {"dtype": chosen, "quantization": quantization.kind if quantization else None}
    tree |= result.as_dict()
    place = Path(output) if output else saved.run_folder
    tree["written"] = str(place / EVALUATION_NAME) if place else None
    if place:
        place.mkdir(parents=True, exist_ok=True)
        disk.write_json(place / EVALUATION_NAME, tree)
    return tree


def _objective_for(config: TrainConfig, opened: OpenModel, ranks: Ranks, *, run: Path) -> Objective:
    """That of the config's stage; to score packed documents no row of training is looked at.

    What a reference said of the rows before the run's first step stands in its folder, `run`.
    """
    from data_pipeline.shards.format import FRAMED
    from trainer.objectives.causal_lm import CausalLM
    from trainer.objectives.choose import make_objective
    from trainer.reference import Reference
    from trainer.sources import open_source
    from trainer.stages import STAGES

    if STAGES[config.stage].head == "causal_lm" and STAGES[config.stage].rows == "packed":
        return CausalLM(kernel=opened.kernel, device=opened.device)
    source = _heldout_rows(config) if STAGES[config.stage].record in FRAMED else open_source(config, build=True)
    if config.stage == "embed":
        return _embedding_over(source, config, ranks)
    objective = make_objective(config, ranks, source=source, model=opened.model, kernel=opened.kernel)
    reference = getattr(objective, "reference", None)
    if isinstance(reference, Reference) and reference.is_precomputed:
        reference.open(run, only_heldout=True)
    return objective


def _heldout_rows(config: TrainConfig) -> ExampleRows:
    """Of labels and pairs no row of training is needed: a test file may be all that there is."""
    from data_pipeline.shards.format import read_shards
    from data_pipeline.stream.examples import ExampleRows

    return ExampleRows(
        read_shards(Path(config.data.shards), split="heldout"), seq_len=config.data.seq_len, too_long="drop"
    )


def _embedding_over(rows: Any, config: TrainConfig, ranks: Ranks) -> Objective:
    """The objective of sentence embeddings; of scored pairs some may lack their score."""
    from trainer.objectives.embedding import Embedding
    from trainer.objectives.embedding_rows import check_scores, check_sequences

    assert config.embed is not None, "the config resolves it"
    check_sequences(config.embed, num_sequences=rows.shards.num_sequences, folder=rows.shards.folder)
    check_scores(rows, config.embed, may_lack=True)
    return Embedding(config.embed, ranks=ranks, group_size=config.train.global_batch_sequences)


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
    # Documents and instruction rows are scored alike by whatever writes text; of stages over one kind of rows a run's
    # own comes first.
    own = [saved.config.stage] if saved.config is not None else []
    stages = [name for name in (*own, *STAGES) if STAGES[name].head == told.head]
    stage = next((name for name in stages if STAGES[name].record == found.record), stages[0])
    check_stage(stage, shards)
    if stage == "classify" and found.labels != told.labels:
        raise RunError(
            f"--shards: {shards} has the classes {', '.join(found.labels)}, but the model {', '.join(told.labels)}, in "
            f"these orders; build the shards with labels='[{', '.join(told.labels)}]'"
        )
    seq_len = told.seq_len or min(MAX_SEQ_LEN, positions_of(model) or MAX_SEQ_LEN)
    data, evaluation = {"shards": str(shards)}, {"max_documents": None}
    embed = _embedding_for(saved, shards) if stage == "embed" else {}
    classify = {"classify": _classification_for(saved, told)} if stage == "classify" else {}
    if saved.config is not None:
        ours = saved.config
        return ours.model_copy(
            update={
                "stage": stage,
                **embed,
                **classify,
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
            **classify,
        }
    )


def _classification_for(saved: Saved, told: SavedHead) -> ClassifyConfig:
    """The class weights that the model was trained with, whatever classes other shards are full of."""
    from trainer.stage_configs import ClassifyConfig

    known = saved.config.classify if saved.config is not None else None
    if told.class_weights or known is None or known.class_weights != "balanced":
        weights = told.class_weights or (known.class_weights if known is not None else "none")
        return ClassifyConfig(class_weights=weights)
    print(f"{saved.path}: does not tell its class weights, as runs did not before; the loss is without (가중치 없음)")
    return ClassifyConfig()


def _embedding_for(saved: Saved, shards: Path) -> dict[str, Any]:
    """How sentence embeddings are made, and scored over these shards."""
    from trainer.objectives.embedding_rows import for_shards
    from trainer.pooling import needed_form
    from trainer.stage_configs import EmbedConfig

    form = needed_form(saved)
    known = saved.config.embed if saved.config is not None else None
    return {"embed": for_shards(known or EmbedConfig(pooling=form.pooling, normalize=form.normalize), shards)}
