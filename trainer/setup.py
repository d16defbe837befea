"""From a config to a run that is ready for its next step: each check before the state that it protects changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_pipeline.shards.format import check_tokenizer, read_shards, tokenizer_folder
from data_pipeline.stream.stream import Stream
from data_pipeline.tokenizer.extend_descent import NewToken
from data_pipeline.tokenizer.fingerprint import tokenizer_fingerprint
from trainer import checkpoint
from trainer.adapter import add_adapter
from trainer.base import BaseIdentity, check_base, identify, model_tokenizer
from trainer.config import TrainConfig
from trainer.deepspeed_engine import loading_in_slices
from trainer.engine import Engine, PlainEngine, make_engine
from trainer.errors import RunError
from trainer.evaluate import Evaluation, HeldOut
from trainer.model import (
    Kernel,
    KernelChoice,
    ParameterCounts,
    Vocabulary,
    check_documents_apart,
    check_source,
    choose_attention,
    count_parameters,
    flops_per_token,
    make_model,
    read_vocabulary,
    reading_of,
)
from trainer.new_rows import RowsPlan, plan_of
from trainer.new_rows_phases import Phases
from trainer.new_rows_setup import add_rows, find_new_tokens, without
from trainer.objectives.choose import make_objective
from trainer.objectives.objective import Objective
from trainer.pieces import PIECES_NAME, has_pieces
from trainer.policy_config import ONLINE
from trainer.ranks import Ranks
from trainer.resilience import StepPolicy
from trainer.sources import check_stage, open_heldout, open_stream
from trainer.stages import HIGHER_IS_BETTER, REWARD_LABELS, STAGES
from trainer.value_head import add_value_head, silence_dropout

STATE_FORMAT = 1


@dataclass
class Progress:
    """The counters of a run that are neither weights nor data order; saved in state.json.

    `step` counts refused updates too, for the stream has gone on; the schedule and `tokens`, targets that were learnt
    from, have not (law 8).
    """

    step: int = 0
    num_skipped: int = 0
    tokens: int = 0
    saved_step: int = -1
    evaluated_step: int = -1
    best_step: int = -1
    best_loss: float | None = None
    """Of the best step: the loss, or minus the figure of `evaluation.best_by` of which more is better."""

    @classmethod
    def resumed(cls, saved: Mapping[str, Any], *, best_by: str) -> Progress:
        """Of a state.json; where the best was told by another figure, which can't be compared, it is open again."""
        found = cls(**saved["progress"])
        if saved.get("best_by", best_by) != best_by:
            found.best_step, found.best_loss = -1, None
        return found

    @property
    def num_updates(self) -> int:
        """Updates that were applied: the place in the learning rate's schedule."""
        return self.step - self.num_skipped

    def note_evaluation(self, *, loss: float) -> bool:
        """Remember that `step` was evaluated; whether it is the best so far."""
        self.evaluated_step = self.step
        if not math.isfinite(loss) or (self.best_loss is not None and loss >= self.best_loss):
            return False
        self.best_step, self.best_loss = self.step, loss
        return True


@dataclass
class Run:
    """All that the loop works with. Made by `set_up`, changed by the loop only."""

    config: TrainConfig
    ranks: Ranks
    engine: Engine
    objective: Objective
    policy: StepPolicy
    stream: Stream
    heldout: HeldOut
    progress: Progress
    kernel: KernelChoice
    vocabulary: Vocabulary
    parameters: ParameterCounts
    flops_per_token: float
    new_rows: RowsPlan | None = None
    """Which rows of the model stand for tokens that it did not know."""
    phases: Phases | None = None
    """What leads the engine through the phases of `new_rows.phases`."""
    base: BaseIdentity | None = None
    """The frozen base of an adapter, which its checkpoints do not hold."""
    reshaped: str = ""
    """What is other than at the save that it goes on from: ranks, ZeRO's stage."""
    on_phase: Callable[[str], None] = lambda phase: None
    on_mark: Callable[[], None] = lambda: None
    """Called where every rank passes within a phase: that is progress (law 13)."""

    def note_evaluation(self, result: Evaluation) -> bool:
        """Remember that the current step was evaluated; whether it is the best so far."""
        return self.progress.note_evaluation(loss=badness(self.config, result.as_dict()))

    def state_dict(self) -> dict[str, Any]:
        """state.json: the stream's integer with its identities, the counters, and what must be equal at resume."""
        return {
            "format_version": STATE_FORMAT,
            "stage": self.config.stage,
            "best_by": self.config.best_by,
            "progress": vars(self.progress).copy(),
            "stream": self.stream.state_dict(),
            "policy": self.policy.state_dict(),
            "objective": self.objective.state_dict(),
            "engine": engine_identity(self.config, self.ranks),
            "base": None if self.base is None else self.base.as_dict(),
            "new_rows": None if self.new_rows is None else self.new_rows.as_dict(),
            # Randomness is a pure function of these and the step: no generator's state is needed.
            "rng": {"seed": self.config.seed, "of": "sha256(seed, step, rank)"},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue after `saved`; the engine's own part is loaded by `restore`."""
        self.objective.load_state_dict(saved.get("objective", {}))
        self.stream.load_state_dict(saved["stream"])
        self.policy.load_state_dict(saved["policy"])
        self.progress = Progress.resumed(saved, best_by=self.config.best_by)


def badness(config: TrainConfig, figures: Mapping[str, Any]) -> float:
    """What the best evaluation has least of: the loss, or the figure of `evaluation.best_by`.

    Raises:
        RunError: the stage's evaluations have no such figure.
    """
    name = config.best_by
    value = figures.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        have = ", ".join(key for key, found in figures.items() if isinstance(found, float))
        raise RunError(f"evaluation.best_by: {name!r} is no figure of stage {config.stage!r}; choose among {have}")
    return -float(value) if name in HIGHER_IS_BETTER else float(value)


def engine_identity(config: TrainConfig, ranks: Ranks) -> dict[str, Any]:
    """What wrote a checkpoint's engine files. They fit any number of ranks, and ZeRO's pieces any of its stages."""
    if config.engine.kind == "none":
        return {"kind": "none", "ranks": ranks.world_size}
    return {"kind": "deepspeed", "zero_stage": config.engine.zero_stage, "ranks": ranks.world_size}


def check_engine(saved: dict[str, Any], ours: dict[str, Any], *, folder: Path) -> None:
    """Refuse a checkpoint of another kind of engine, before anything is loaded.

    Raises:
        RunError: its optimizer's state is in a form that this engine does not read.
    """
    if saved.get("kind") != ours["kind"]:
        raise RunError(
            f"{folder}: engine.kind was {saved.get('kind')!r} at the save, this start has {ours['kind']!r}, which "
            "keeps its optimizer in another form; start with the old value"
        )
    if saved.get("kind") == "deepspeed" and not has_pieces(folder):
        raise RunError(
            f"{folder}: no {PIECES_NAME}/ in it, but DeepSpeed's own files, of an older version of this program; go on "
            "with the version that wrote them, or give the run another run.name to begin anew"
        )


def reshaping(saved: dict[str, Any], ours: dict[str, Any]) -> str:
    """What differs between the ranks and the ZeRO stage of a save and of this start; "" where nothing does."""
    changed = [key for key in ("ranks", "zero_stage") if key in saved and saved[key] != ours.get(key)]
    if not changed:
        return ""
    return f"saved by {_in_words(saved)}, goes on with {_in_words(ours)}"


def _in_words(engine: dict[str, Any]) -> str:
    ranks = f"{engine['ranks']} rank{'s' * (engine['ranks'] != 1)}"
    return ranks + (f" under ZeRO-{engine['zero_stage']}" if "zero_stage" in engine else "")


def set_up(config: TrainConfig, ranks: Ranks) -> Run:
    """Data, model and engine of a fresh run, each checked before it is used."""
    shards = Path(config.data.shards)
    ranks.on_main(lambda: check_stage(config.stage, shards))
    vocabulary = ranks.on_main(lambda: read_vocabulary(shards))
    stream = open_stream(config, ranks)
    heldout = ranks.together(lambda: open_heldout(config))
    kernel = ranks.together(
        lambda: choose_attention(config.model, device=ranks.device, precision=config.train.precision)
    )
    new = check_source_tokenizer(config, ranks)
    model = make_trainable_model(config, ranks, vocabulary=vocabulary, kernel=kernel.kernel, new=new)
    vocabulary = vocabulary.in_model(model)
    stream.rows.pad_with(vocabulary.pad_id)
    heldout.pad_with(vocabulary.pad_id)
    head_share = config.mlm.chosen_share if config.stage == "mlm" and config.mlm is not None else 1.0
    parameters = count_parameters(model)
    flops = flops_per_token(model, seq_len=config.data.seq_len, head_share=head_share)
    base = ranks.on_main(lambda: identify(config.model)) if config.adapter is not None else None
    engine = make_engine(config, model=model, ranks=ranks)
    objective = make_objective(config, ranks, source=stream.rows, model=engine.model, kernel=kernel.kernel)
    if isinstance(engine, PlainEngine) and ranks.world_size > 1:
        empty = objective.prepare([stream.rows.padding()], is_training=True)
        objective.begin_step(engine.module, empty)
        engine.settle(objective(engine.module, empty[0]))
    phases = None
    if config.new_rows is not None and config.new_rows.phases:
        phases = Phases(config.new_rows, engine, schedule=config.train.schedule)
    return Run(
        config=config,
        ranks=ranks,
        engine=engine,
        objective=objective,
        policy=StepPolicy(config.policy),
        stream=stream,
        heldout=heldout,
        progress=Progress(),
        kernel=kernel,
        vocabulary=vocabulary,
        parameters=parameters,
        flops_per_token=flops,
        base=base,
        new_rows=plan_of(engine.model),
        phases=phases,
    )


def probe_kernel(run: Run) -> None:
    """Law 4 on the real model and kernel; at a fresh start this is one of the gate's checks."""
    kernel, size = run.kernel.kernel, run.vocabulary.size
    if STAGES[run.config.stage].rows == "examples":
        return  # nothing shares a row
    check_documents_apart(run.engine.module, kernel=kernel, device=run.ranks.device, vocab_size=size)


def make_trainable_model(
    config: TrainConfig, ranks: Ranks, *, vocabulary: Vocabulary, kernel: Kernel, new: Sequence[NewToken] = ()
) -> nn.Module:
    """The model of the run in train mode, not yet wrapped by an engine; what it can't do is refused on all ranks.

    `new`: the tokens of `vocabulary` that `model.from` has no rows for.
    """
    trained, head = trained_dtype(config), STAGES[config.stage].head

    def make() -> nn.Module:
        model = make_model(
            config.model,
            vocabulary=without(vocabulary, new),
            kernel=kernel,
            dtype=loaded_dtype(config),
            seed=config.seed,
            device=ranks.device,
            storage=trained if config.engine.kind == "deepspeed" else torch.uint8,
            head=head,
            labels=head_labels(config),
        )
        if config.adapter is not None:
            add_adapter(model, config.adapter, seed=config.seed, dtype=trained, head=head)
        if config.new_rows is not None and new:
            tokenizer = tokenizer_folder(Path(config.data.shards))
            rows = {"vocabulary": vocabulary, "tokenizer": tokenizer, "dtype": trained, "seed": config.seed}
            add_rows(model, config.new_rows, new, **rows)  # type: ignore[arg-type]
        if config.stage in ONLINE:
            silence_dropout(model)
        if config.stage == "ppo":
            add_value_head(model, dtype=trained)
        return model

    with loading_in_slices(config):
        model = ranks.together(make)
    check_positions(model, config)
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    return model.train()


def head_labels(config: TrainConfig) -> tuple[str, ...]:
    """What the outputs of a classifier's head are called; () of other heads."""
    if config.stage == "reward":
        return REWARD_LABELS
    return read_shards(Path(config.data.shards), split="train").labels if config.stage == "classify" else ()


def trained_dtype(config: TrainConfig) -> torch.dtype:
    """Of what is trained: DeepSpeed keeps float32 copies of bf16 weights, the plain engine autocasts float32 ones."""
    holds_bf16 = config.train.precision == "bf16" and config.engine.kind == "deepspeed"
    return torch.bfloat16 if holds_bf16 else torch.float32


def loaded_dtype(config: TrainConfig) -> torch.dtype:
    """Of the model as it is loaded: a base that stays frozen needs no float32 copy, which would be twice as large."""
    frozen = config.adapter is not None and config.train.precision == "bf16"
    return torch.bfloat16 if frozen else trained_dtype(config)


def check_positions(model: nn.Module, config: TrainConfig) -> None:
    """A loaded model must have a position for each input of a row."""
    have = getattr(model.config, "max_position_embeddings", None)
    # RoBERTa has rows for positions that nothing ever stands at.
    if have is not None and config.data.seq_len > (have := have - reading_of(model).first_position):
        raise RunError(
            f"data.seq_len: {config.data.seq_len}, but {config.model.source} was made for {have} positions; make rows "
            "shorter"
        )


def check_source_tokenizer(config: TrainConfig, ranks: Ranks) -> list[NewToken]:
    """A model that is continued must have the tokenizer that made the shards: one fingerprint throughout.

    With `new_rows` it may be that one with tokens added, which are returned. Where the model brings no tokenizer.json,
    that can't be checked, and is said.
    """
    source = config.model.source
    return ranks.on_main(lambda: _compare_tokenizers(source, config)) if source is not None else []


def _compare_tokenizers(source: str, config: TrainConfig) -> list[NewToken]:
    check_source(source)
    try:
        file = model_tokenizer(config.model)
    except (OSError, ValueError) as error:  # no hub name by its form
        first_line = str(error).strip().splitlines()[0]
        raise RunError(
            f"model.from: {source!r} is neither a folder or run here nor a hub name: {first_line}; check the path"
        ) from None
    new = find_new_tokens(config, file)
    if file is None:
        print(
            f"model.from: {source} brings no tokenizer.json, so that nothing shows whether the shards of "
            f"{config.data.shards} were made with its tokenizer",
            flush=True,
        )
    elif not new:
        check_tokenizer(Path(config.data.shards), tokenizer_fingerprint(file))
    return new


def restore(run: Run, folder: Path) -> None:
    """Continue `run` from a checkpoint that was verified; refused before anything is loaded where it does not fit."""
    saved = checkpoint.read_state(folder)
    ours = engine_identity(run.config, run.ranks)
    check_engine(saved["engine"], ours, folder=folder)
    check_base(saved.get("base"), run.base, folder=folder)
    run.load_state_dict(saved)
    run.engine.load(folder)
    run.reshaped = reshaping(saved["engine"], ours)
