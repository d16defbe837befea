"""TrainConfig, the root of a run. Each part's class stands beside the part; here they are only composed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from data_pipeline.config import Config
from data_pipeline.raw_config import RawDataConfig
from data_pipeline.shards.format import FRAMED
from trainer.adapter import AdapterConfig
from trainer.answers import AnswersConfig
from trainer.checkpoint import CheckpointConfig
from trainer.debug_config import DebugConfig
from trainer.engine_config import EngineConfig
from trainer.gate_checks import GateConfig
from trainer.metrics import LoggingConfig
from trainer.model_config import ModelConfig
from trainer.new_rows_config import NewRowsConfig
from trainer.policy_config import GrpoConfig, PpoConfig, answers_each, online_faults, online_unread
from trainer.preference_config import UNREAD, CpoConfig, DpoConfig, KtoConfig, OrpoConfig, RewardConfig
from trainer.resilience import StepPolicyConfig
from trainer.schedule import OptimizerConfig, ScheduleConfig
from trainer.stage_configs import LOSS_KEYS, STAGE_CONFIGS, ClassifyConfig, EmbedConfig, MlmConfig
from trainer.stages import STAGES, Stage
from trainer.watchdog_config import WatchdogConfig


class RunConfig(Config):
    """Where the run lives: `folder`/`name`. The same folder and the same config resume."""

    name: str = Field(pattern=r"^([^/\x00\n.]|\.+[^/\x00\n.])[^/\x00\n]*$")
    folder: str = "runs"
    expected_ranks: int | None = Field(default=None, ge=1)


class DataConfig(Config):
    """Rows of `seq_len` inputs from a finished shards folder, or from the files of `raw`, which are made into one."""

    shards: str = ""
    raw: RawDataConfig | None = None
    seq_len: int = Field(ge=8)
    packing: Literal["concatenated", "best_fit"] = "best_fit"
    too_long: Literal["refuse", "drop"] = "refuse"
    """What becomes of instruction rows and examples longer than `seq_len`, which are never cut; documents are cut."""
    group_by_length: bool = True
    """Of examples: those of a step are about equally long, so that little is padded (see stream/grouping.py)."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if not self.shards and self.raw is None:
            raise ValueError("shards: missing; give a folder that `dure shards build` wrote, or files by raw.inputs")
        return self


class StepsConfig(Config):
    """What a step is and how many there are. A step is `global_batch_sequences` rows, whatever the ranks."""

    max_steps: int | None = Field(default=None, ge=1)
    num_epochs: float | None = Field(default=None, gt=0)
    """In place of max_steps, which is then counted from the rows at the start."""
    global_batch_sequences: int = Field(ge=1)
    micro_batch_sequences: int = Field(ge=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    gradient_checkpointing: bool = False
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()

    @model_validator(mode="after")
    def _one_length(self) -> StepsConfig:
        if (self.max_steps is None) == (self.num_epochs is None):
            both = f"max_steps {self.max_steps}, num_epochs {self.num_epochs}"
            raise ValueError(f"{both}: a run has one length; set max_steps or num_epochs")
        return self

    @property
    def last_step(self) -> int:
        """max_steps of a run that has begun."""
        assert self.max_steps is not None, "num_epochs is counted in steps when the rows are open"
        return self.max_steps


class EvaluationConfig(Config):
    """The loss over held-out rows with the stage's figures, every `every_steps` steps and at the end.

    A stage of labels or pairs is evaluated at each epoch's end where neither cadence is set, and on all held-out rows;
    what was resolved stands in the run's config.yaml.
    """

    every_steps: int = Field(default=500, ge=0)
    """0: not by steps, as where `every_epoch` is set alone."""
    every_epoch: bool = False
    """Also after the step that ends an epoch: each row was learnt from once more."""
    best_by: str = ""
    """The figure of the best checkpoint; "": the loss, and accuracy of `stage: classify`."""
    at_start: bool = False
    """Also before the first step: what the model knew before."""
    max_documents: int | None = Field(default=2000, ge=1)
    """So many held-out documents or rows, chosen evenly; None: all of them."""
    micro_batch_sequences: int | None = Field(default=None, ge=1)
    """None: as train.micro_batch_sequences, filled in when the config is resolved."""
    answers: AnswersConfig = AnswersConfig()


class TrainConfig(Config):
    """One run of one stage, as `runs/<name>/config.yaml` keeps it."""

    run: RunConfig
    stage: Stage = "pretrain"
    seed: int = Field(default=1, ge=0)
    model: ModelConfig
    adapter: AdapterConfig | None = None
    """None: every weight is trained."""
    new_rows: NewRowsConfig | None = None
    """For shards of an extended tokenizer: rows for its new tokens."""
    mlm: MlmConfig | None = None
    classify: ClassifyConfig | None = None
    embed: EmbedConfig | None = None
    dpo: DpoConfig | None = None
    orpo: OrpoConfig | None = None
    cpo: CpoConfig | None = None
    kto: KtoConfig | None = None
    reward: RewardConfig | None = None
    ppo: PpoConfig | None = None
    grpo: GrpoConfig | None = None
    """Of the stages of these names; the run's own is filled in when the config is resolved."""
    data: DataConfig
    train: StepsConfig
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    policy: StepPolicyConfig = StepPolicyConfig()
    gate: GateConfig = GateConfig()
    logging: LoggingConfig = LoggingConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    debug: DebugConfig = DebugConfig()
    """Read by `dure train --debug` only."""

    @property
    def best_by(self) -> str:
        """The figure of the best checkpoint."""
        return self.evaluation.best_by or STAGES[self.stage].best

    @model_validator(mode="after")
    def _parts_agree(self) -> TrainConfig:
        if faults := [*self._step_faults(), *self._tuning_faults(), *online_faults(self)]:
            raise ValueError("; ".join(faults))
        if self.stage in STAGE_CONFIGS and getattr(self, self.stage) is None:
            object.__setattr__(self, self.stage, STAGE_CONFIGS[self.stage]())
        object.__setattr__(self, "evaluation", self.evaluation.model_copy(update=self._resolved_evaluation()))
        return self

    def _resolved_evaluation(self) -> dict[str, Any]:
        """What of `evaluation` depends on the other parts."""
        ours = self.evaluation
        resolved: dict[str, Any] = {}
        if ours.micro_batch_sequences is None:
            resolved["micro_batch_sequences"] = self.train.micro_batch_sequences
        is_framed, is_set = STAGES[self.stage].record in FRAMED, ours.model_fields_set
        if is_framed and "max_documents" not in is_set:
            resolved["max_documents"] = None
        if is_framed and not {"every_steps", "every_epoch"} & is_set:
            resolved["every_epoch"] = True
        if resolved.get("every_epoch", ours.every_epoch) and "every_steps" not in is_set:
            resolved["every_steps"] = 0
        return resolved

    def _step_faults(self) -> Iterator[str]:
        """Where the sizes of a step, a row and the schedule contradict each other."""
        steps = self.train
        of_step = steps.global_batch_sequences * answers_each(self)
        if steps.micro_batch_sequences > of_step:
            yield (
                f"train.micro_batch_sequences is {steps.micro_batch_sequences}, but a whole step has "
                f"train.global_batch_sequences {of_step}; make it no larger"
            )
        needs_others = self.stage == "embed" and (self.embed or EmbedConfig()).loss == "in_batch"
        if needs_others and steps.global_batch_sequences < 2:
            yield (
                "train.global_batch_sequences is 1, but embed.loss 'in_batch' takes the other rows of a step as "
                "negatives; make it larger, such as 64"
            )
        if self.model.source is None and self.data.seq_len > self.model.max_positions:
            yield (
                f"data.seq_len is {self.data.seq_len}, but model.max_positions only {self.model.max_positions}; "
                "make rows shorter, or the model's positions more"
            )
        schedule = steps.schedule
        if steps.max_steps and schedule.kind == "wsd" and schedule.num_fixed_steps > steps.max_steps:
            yield (
                f"train.schedule: warmup_steps {schedule.warmup_steps} + decay_steps {schedule.decay_steps} exceed "
                f"train.max_steps {steps.max_steps}; shorten them"
            )

    def _tuning_faults(self) -> Iterator[str]:
        """What an adapter, a 4-bit base and instruction rows ask of the other parts."""
        if self.new_rows is not None:
            yield from self._new_row_faults(self.new_rows)
        if self.adapter is not None and self.model.source is None:
            yield (
                "adapter: it tunes a model that exists, but model.from is not set; name the base there, or leave the "
                "adapter out to train every weight of a new model"
            )
        if self.model.quantization is not None and self.adapter is None:
            yield (
                f"model.quantization: {self.model.quantization.kind} weights can't be trained, and there is no adapter "
                "beside them; set adapter (adapter: {}), or leave the quantization out"
            )
        is_sliced = self.engine.kind == "deepspeed" and self.engine.zero_stage == 3
        is_packed = self.model.quantization is not None
        if self.adapter is not None and self.adapter.weight_decomposed and is_packed and is_sliced:
            yield (
                "adapter.weight_decomposed: over a 4-bit base peft's DoRA replaces the packed weight at each forward "
                "pass on a CPU, so that engine.zero_stage 3 loses its slices ('Params4bit' has no ds_id); on GPUs this "
                "is untried: set zero_stage to 2, leave model.quantization out, or train plain LoRA"
            )
        if self.new_rows is not None and STAGES[self.stage].record not in ("document", "instruction"):
            yield (
                f"new_rows: stage {self.stage!r} begins on a model that knows its tokens; train their rows by "
                "pretraining or tuning first, and name that run in model.from"
            )
        if self.model.source is None and STAGES[self.stage].record in ("preference", "feedback"):
            yield (
                f"model.from: stage {self.stage!r} tunes a model that can answer, and there is none; name the run or "
                "the model of the instruction tuning"
            )
        if self.stage == "sft" and self.data.packing != "best_fit":
            yield f"data.packing: {self.data.packing!r} cuts rows, which stage 'sft' never does; set it to 'best_fit'"
        is_causal = self.model.architecture in ("llama", "gpt_neox")
        head = STAGES[self.stage].head
        if self.model.source is None and is_causal != (head == "causal_lm") and head != "classifier":
            yield (
                f"model.architecture: stage {self.stage!r} trains a {head.replace('_', ' ')}, but "
                f"{self.model.architecture} reads {'from left to right' if is_causal else 'both ways'}; set it to "
                f"{'bert or roberta' if is_causal else 'llama or gpt_neox'}"
            )
        named, figures = self.evaluation.best_by, STAGES[self.stage].figures
        if named and named not in figures:
            yield (
                f"evaluation.best_by: {named!r} is no figure of stage {self.stage!r}; choose among {', '.join(figures)}"
            )
        kind = self.train.optimizer.kind
        if kind != "adamw" and self.engine.offload_optimizer:
            yield (
                f"train.optimizer.kind: {kind} keeps its state on the GPU (paged: moved by the driver), but "
                "engine.offload_optimizer moves it to the host; choose one of them"
            )

    def _new_row_faults(self, new_rows: NewRowsConfig) -> Iterator[str]:
        """What rows for new tokens ask of the other parts."""
        steps = self.train
        if self.model.source is None:
            yield "new_rows: a new model has a row for every token; name the model to extend in model.from"
        if new_rows.phases and steps.max_steps is None:
            yield "new_rows.phases: count steps, but the run's length is train.num_epochs; set train.max_steps"
        elif steps.max_steps is not None:
            has_adapter = self.adapter is not None
            yield from new_rows.faults(max_steps=steps.max_steps, schedule=steps.schedule, has_adapter=has_adapter)


# Keys that describe a new model; an existing one brings its own.
_SIZES = (
    "architecture",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_positions",
    "rope_theta",
    "tie_embeddings",
    "dropout",
    "initializer_range",
    "pad_vocab_to_multiple",
)
_SPIKES = ("spike_window", "spike_warmup_steps", "spike_grad_norm_factor", "spike_loss_factor")


def unread_keys(config: TrainConfig) -> list[str]:
    """A line for each key that the config sets though nothing reads it, given what else it says."""
    model, engine, schedule = config.model, config.engine, config.train.schedule
    lines: list[str] = []
    if model.source is not None:
        lines += _set_keys("model", model, _SIZES, reason=f"model.from {model.source!r} brings its own")
    else:
        lines += _set_keys("model", model, ("revision", "trust_remote_code"), reason="there is no model.from")
    if engine.kind == "none":
        keys = ("zero_stage", "offload_optimizer", "bucket_mb")
        lines += _set_keys("engine", engine, keys, reason="engine.kind is 'none', which has no ZeRO")
    if schedule.kind != "wsd":
        reason = f"train.schedule.kind is {schedule.kind!r}, only 'wsd' reads it"
        lines += _set_keys("train.schedule", schedule, ("decay_steps",), reason=reason)
    if not config.policy.refuse_spikes:
        lines += _set_keys("policy", config.policy, _SPIKES, reason="policy.refuse_spikes is false")
    for name in STAGE_CONFIGS:
        if config.stage != name and getattr(config, name) is not None:
            lines.append(f"{name}: is not read: stage is {config.stage!r}")
    if config.stage == "embed" and config.embed is not None:
        reason = f"embed.loss is {config.embed.loss!r}"
        unread = tuple(key for loss, key in LOSS_KEYS.items() if loss != config.embed.loss)
        lines += _set_keys("embed", config.embed, unread, reason=reason)
    chosen = getattr(getattr(config, config.stage, None), "loss", "")
    if (config.stage, chosen) in UNREAD:
        reason = f"{config.stage}.loss is {chosen!r}"
        choices: Config = getattr(config, config.stage)
        lines += _set_keys(config.stage, choices, UNREAD[config.stage, chosen], reason=reason)
    lines += online_unread(config)
    if STAGES[config.stage].rows == "framed":
        reason = f"stage {config.stage!r} always packs best-fit"
        lines += _set_keys("data", config.data, ("packing",), reason=reason)
    if STAGES[config.stage].rows != "examples":
        reason = f"stage {config.stage!r} packs its rows"
        lines += _set_keys("data", config.data, ("group_by_length",), reason=reason)
    else:
        reason = f"stage {config.stage!r} pads its examples"
        lines += _set_keys("data", config.data, ("packing",), reason=reason)
    if config.stage != "sft":
        reason = f"stage {config.stage!r} has no questions and answers"
        if STAGES[config.stage].rows != "examples":
            lines += _set_keys("data", config.data, ("too_long",), reason=reason)
        lines += _set_keys("evaluation", config.evaluation, ("answers",), reason=reason)
        lines += _set_keys("gate", config.gate, ("min_target_share", "max_target_share"), reason=reason)
    return lines


def _set_keys(where: str, config: Config, keys: tuple[str, ...], *, reason: str) -> Iterator[str]:
    """A line for each of `keys` that was set to something else than its default."""
    for key in keys:
        value = getattr(config, key)
        if key in config.model_fields_set and value != type(config).model_fields[key].default:
            yield f"{where}.{key}: {value!r} is not read: {reason}"
