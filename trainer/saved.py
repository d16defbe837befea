"""A model that stands on disk: a run, one of its checkpoints, or a model folder; opened without an optimizer.

What was trained as an adapter opens as an adapter on its base. The tokenizer and the template of a run lie in its
folder, so that no shards are needed to talk to it.
"""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from data_pipeline import disk
from data_pipeline.config import load
from data_pipeline.shards.format import FRAMED
from data_pipeline.stage import MANIFEST_NAME, fingerprint
from trainer import checkpoint
from trainer.adapter import add_adapter
from trainer.base import check_base, identify, pinned_source, restore_base, with_source
from trainer.checkpoint_marker import read_marker
from trainer.config import TrainConfig
from trainer.engine import load_weights
from trainer.errors import RunError
from trainer.heads import own_parts
from trainer.locate import ADAPTER_CONFIG_NAME, BEST, DEFAULT_ROOT, LAST, Choice, choose_checkpoint, locate
from trainer.merge import merge_in_place, unpack
from trainer.model import Kernel, Vocabulary, choose_attention, make_model, read_vocabulary
from trainer.model_config import ModelConfig
from trainer.new_rows import RowsPlan, fold, install, plan_of, zeros
from trainer.new_rows_export import install_peft_rows
from trainer.quantize import QuantizationConfig, is_packed
from trainer.quiet import bars_on_terminals_only
from trainer.run_folder import CONFIG_NAME, EVALUATIONS_NAME, read_lines
from trainer.saved_head import head_of_saved, saved_head
from trainer.stages import STAGES

if TYPE_CHECKING:
    from data_pipeline.templates import Template
    from data_pipeline.tokenizer.encode import Encoder

TOKENIZER_NAME = "tokenizer"
TEMPLATE_NAME = "template.yaml"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."  # peft's names of the modules of a model that it wraps

Quantize = Literal["nf4", "none"]
Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Saved:
    """Where a model lies. `config` and `step` are None for a plain model folder.

    `told`: which checkpoint of a run it is, and why, for a person; "" where there was none to choose.
    """

    path: Path
    config: TrainConfig | None
    checkpoint: Path | None
    run_folder: Path | None
    told: str = ""

    @property
    def step(self) -> int | None:
        return None if self.checkpoint is None else checkpoint.step_of(self.checkpoint)

    @property
    def shards(self) -> Path | None:
        """The shards that the run was trained on, where they are still there."""
        folder = Path(self.config.data.shards) if self.config else None
        return folder if folder is not None and folder.is_dir() else None


def find_saved(name: str | Path, *, checkpoint: str | None = LAST) -> Saved:
    """What `name` means: a run folder, its name under runs/, a checkpoint folder, or a model or adapter folder.

    Args:
        checkpoint: which one of a run: "last", "best" or a step. None, for what people ask of a finished model: the
            best of what learnt from labels or pairs, the last of others.

    Raises:
        RunError: none of these, or a run without that checkpoint.
    """
    place = locate(name)
    if place is None:
        raise RunError(
            f"{name}: not a run folder (config.yaml), nor a run under {DEFAULT_ROOT}/, nor a checkpoint (COMPLETE), "
            "nor a model folder (config.json, adapter_config.json); check the path"
        )
    if place.kind != "run":
        choose_checkpoint(place, checkpoint)
        config = _config_in(place.path) if place.kind == "checkpoint" else None
        return Saved(place.path, config, place.checkpoint, place.run_folder)
    if place.checkpoint is None:
        raise RunError(f"{place.path}: no complete checkpoint yet; train it first, or name a model folder")
    config = _config_in(place.path)
    prefers_best = STAGES[config.stage].record in FRAMED
    chosen = choose_checkpoint(place, checkpoint, prefers_best=prefers_best)
    assert chosen is not None, "it has a checkpoint"
    told = _told(chosen, config, place.path) if prefers_best or checkpoint not in (None, LAST) else ""
    return Saved(place.path, config, chosen.path, place.run_folder, told)


def _told(chosen: Choice, config: TrainConfig, run: Path) -> str:
    """Which step it is, its figure, and what else there is to take."""
    figures = next((line for line in read_lines(run / EVALUATIONS_NAME) if line["step"] == chosen.step), {})
    value = figures.get(config.best_by)
    figure = f", {config.best_by} {value:.4f}" if isinstance(value, float) else ""
    is_last = chosen.step == chosen.last_step
    if chosen.step == chosen.best_step:
        newest = "it is the newest too" if is_last else f"the newest is step {chosen.last_step:,} (--checkpoint {LAST})"
        return f"{run}: step {chosen.step:,}, the best by {config.best_by} (최고){figure}; {newest}"
    best = "no evaluation tells yet which is the best"
    if chosen.best_step >= 0:
        kept = f"(--checkpoint {BEST})" if chosen.has_best else "and is not kept (checkpoint.keep_best)"
        best = f"the best by {config.best_by} is step {chosen.best_step:,} {kept}"
    return f"{run}: step {chosen.step:,}{', the newest (최신)' if is_last else ''}{figure}; {best}"


def _config_in(folder: Path) -> TrainConfig:
    """The config there, its `model.from` as it was pinned at the first start."""
    config = load(folder / CONFIG_NAME, [], TrainConfig)
    source = pinned_source(config, folder)
    return config if source is None else with_source(config, source)


def weights_sha256(saved: Saved) -> str:
    """What tells these weights from others: COMPLETE's hash of itself, or of a model folder what `identify` makes.

    An adapter folder is told apart by its base too; a checkpoint's state holds that.

    Raises:
        CheckpointError: COMPLETE is damaged.
    """
    if saved.checkpoint is not None:
        marker, fault = read_marker(saved.checkpoint)
        if fault:
            raise checkpoint.CheckpointError(f"{fault}; name an older checkpoint")
        return str(marker["sha256"])
    base = identify(_from_folder(saved)).sha256
    if not is_adapter(saved):
        return base
    names = (ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME)
    return fingerprint([base, *(disk.sha256_of(saved.path / name) for name in names)])


def usual_dtype(saved: Saved) -> Dtype:
    """In which a saved model is held and computed here: on a GPU the run's precision, bf16 of a folder; else float32.

    What is held in 4 bits stays so.
    """
    if not torch.cuda.is_available():
        return "fp32"
    return saved.config.train.precision if saved.config is not None else "bf16"


def tokenizer_folder(saved: Saved) -> Path:
    """The folder that holds the model's tokenizer: the run's own, the model's, or that of the run's shards."""
    candidates = [saved.path]
    if saved.run_folder is not None:
        candidates.insert(0, saved.run_folder / TOKENIZER_NAME)
    if saved.shards is not None:
        candidates.append(saved.shards / TOKENIZER_NAME)
    for folder in candidates:
        if (folder / "tokenizer.json").is_file():
            return folder
    looked = ", ".join(str(folder) for folder in candidates)
    raise RunError(
        f"{saved.path}: no tokenizer.json in {looked}; copy the folder of the tokenizer that it was trained with to "
        f"{(saved.run_folder or saved.path) / (TOKENIZER_NAME if saved.run_folder else '')}"
    )


def open_tokenizer(saved: Saved) -> Encoder:
    """The tokenizer that the model was trained with."""
    from data_pipeline.tokenizer.encode import Encoder

    return Encoder(tokenizer_folder(saved))


def open_template(saved: Saved, *, name: str | None = None) -> Template | None:
    """The template that the model was tuned with, or the one of `name`; None where it was tuned with none."""
    from data_pipeline.templates import load_template

    if name is None:
        folders = [saved.run_folder or saved.path, *([saved.shards] if saved.shards else [])]
        files = [folder / TEMPLATE_NAME for folder in folders if (folder / TEMPLATE_NAME).is_file()]
        if not files:
            return None
        name = str(files[0])
    return load_template(name, tokenizer=tokenizer_folder(saved))


@dataclass(frozen=True)
class OpenModel:
    """A model in evaluation mode, and the kernel that its inputs are made for."""

    model: nn.Module
    kernel: Kernel
    device: torch.device


def open_model(
    saved: Saved,
    *,
    shards: Path | None = None,
    quantize: Quantize | None = None,
    dtype: torch.dtype = torch.float32,
) -> OpenModel:
    """Load the weights on this machine's device; every file of a checkpoint is verified before.

    An adapter stands beside its base. Whatever is not held in 4 bits is held, and all is computed, in `dtype`.

    Args:
        shards: where the vocabulary's figures come from; the model's own tokenizer if None.
        quantize: "nf4" holds the linear layers in 4 bits, "none" does not; None is as it was trained.

    Raises:
        CheckpointError, RunError: a damaged checkpoint, a changed base, or a model that the shards do not fit.
    """
    return _open(saved, shards=shards, quantize=quantize, dtype=dtype, is_merged=False)


def open_merged(saved: Saved, *, shards: Path | None = None) -> OpenModel:
    """An adapter and its base as one float32 model without either: the base as its 4 bits stand for it, then merged.

    Merged into the packed base, the sum would be packed anew, with an error some thirty times as large.
    """
    return _open(saved, shards=shards, quantize=None, dtype=torch.float32, is_merged=True)


def _open(
    saved: Saved, *, shards: Path | None, quantize: Quantize | None, dtype: torch.dtype, is_merged: bool
) -> OpenModel:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bars_on_terminals_only()
    if saved.checkpoint is not None and (faults := checkpoint.verify(saved.checkpoint)):
        raise checkpoint.CheckpointError("\n".join(faults) + f"\n{saved.checkpoint}: damaged; name an older one")
    if saved.config is not None:
        restore_base(saved.path)
    described = _described(saved, quantize=quantize)
    precision = "fp32" if dtype == torch.float32 else "bf16"
    kernel = choose_attention(described, device=device, precision=precision).kernel
    vocabulary = vocabulary_of(saved) if shards is None else read_vocabulary(shards)
    if (rows := new_rows_of(saved)) is not None:  # the base has none for them
        vocabulary = replace(vocabulary, size=rows.first)
    head = head_of_saved(saved)
    # A head that the base does not bring is told as new where it is trained; here it is filled below.
    told = contextlib.redirect_stdout(io.StringIO()) if is_adapter(saved) else contextlib.nullcontext()
    with told:
        model = make_model(
            described,
            vocabulary=vocabulary,
            kernel=kernel,
            head=head,
            labels=saved_head(saved).labels if head == "classifier" else (),
            # What is packed, is packed from the type that training packed it from.
            dtype=base_dtype(saved) if is_adapter(saved) else dtype,
            seed=saved.config.seed if saved.config else 0,
            device=device,
        )
    if is_merged:
        unpack(model)
        device = torch.device("cpu")
    _cast(model, dtype)
    if is_adapter(saved):
        _load_adapter(model, saved, dtype=dtype)
    elif saved.checkpoint is not None:
        if rows is not None:
            install(model, rows, zeros(model, rows), dtype=dtype)
        load_weights(model, saved.checkpoint)
    if is_merged:
        merge_in_place(model)
    if (held := plan_of(model)) is not None and (is_merged or not is_adapter(saved)):
        fold(model, held)
    if not any(is_packed(parameter) for parameter in model.parameters()):
        model = model.to(device)
    return OpenModel(model=model.eval(), kernel=kernel, device=device)


def new_rows_of(saved: Saved) -> RowsPlan | None:
    """Which rows a checkpoint or an adapter folder has beyond its base; None where there are none.

    Of an adapter folder only `first` holds: what padded the model in training is not in it.
    """
    if saved.checkpoint is not None:
        told = checkpoint.read_state(saved.checkpoint).get("new_rows")
    else:
        told = read_json(saved.path / MANIFEST_NAME).get("new_rows") if is_adapter(saved) else None
    return RowsPlan(**told) if told else None


def is_adapter(saved: Saved) -> bool:
    """Whether only an adapter was trained, or an adapter folder was named."""
    if saved.config is not None:
        return saved.config.adapter is not None
    return (saved.path / ADAPTER_CONFIG_NAME).is_file()


def quantization_of(saved: Saved) -> QuantizationConfig | None:
    """How the base of an adapter was held while it was trained."""
    if saved.config is not None:
        return saved.config.model.quantization
    told = read_json(saved.path / MANIFEST_NAME).get("quantization")
    return QuantizationConfig.model_validate(told) if told else None


def _described(saved: Saved, *, quantize: Quantize | None) -> ModelConfig:
    """The model to make, or the adapter's base."""
    # The weights know no kernel; this machine and this dtype may have another one than the run had.
    changes: dict[str, Any] = {"attention": "auto", "quantization": quantization_of(saved)}
    if quantize is not None:
        changes["quantization"] = QuantizationConfig() if quantize == "nf4" else None
    if saved.config is None:
        return _from_folder(saved).model_copy(update=changes)
    if quantize == "nf4" and not is_adapter(saved):
        raise RunError(
            f"--quantize: {saved.path} is a checkpoint with weights of its own, and only a model folder can be packed; "
            f"run `dure export {saved.path} --output DIR`, then name DIR"
        )
    return saved.config.model.model_copy(update=changes)


def _from_folder(saved: Saved) -> ModelConfig:
    """A plain model folder, or the base that an adapter folder names."""
    told = read_json(saved.path / ADAPTER_CONFIG_NAME)
    tree: dict[str, str | None] = {"from": str(saved.path)}
    if told and not (saved.path / "config.json").is_file():
        tree = {"from": told["base_model_name_or_path"], "revision": told.get("revision")}
    return ModelConfig.model_validate(tree)


def base_dtype(saved: Saved) -> torch.dtype:
    """The type in which an adapter's base was loaded for training."""
    if saved.config is not None:
        from trainer.setup import loaded_dtype

        return loaded_dtype(saved.config)
    is_short = read_json(saved.path / MANIFEST_NAME).get("base_dtype") == "bf16"
    return torch.bfloat16 if is_short else torch.float32


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold and compute in `dtype` all that is not packed. Buffers stay: a rotary frequency in bf16 is another one."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and not is_packed(parameter):
            parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if hasattr(module, "compute_type_is_set"):  # bitsandbytes' packed layers
            module.compute_dtype, module.compute_type_is_set = dtype, True  # type: ignore[assignment]


def _load_adapter(model: nn.Module, saved: Saved, *, dtype: torch.dtype) -> None:
    """Put the trained adapter beside the base, in place."""
    if saved.config is not None and saved.checkpoint is not None:
        assert saved.config.adapter is not None
        described = _described(saved, quantize=None)
        check_base(checkpoint.read_state(saved.checkpoint).get("base"), identify(described), folder=saved.checkpoint)
        head = head_of_saved(saved)
        add_adapter(model, saved.config.adapter, seed=saved.config.seed, dtype=dtype, head=head)
        if (rows := new_rows_of(saved)) is not None:
            install(model, rows, zeros(model, rows), dtype=dtype)
        load_weights(model, saved.checkpoint)
        return
    import safetensors.torch
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict

    file = saved.path / ADAPTER_WEIGHTS_NAME
    tensors = {
        name.removeprefix(PEFT_PREFIX): tensor.to(dtype) for name, tensor in safetensors.torch.load_file(file).items()
    }
    config = PeftConfig.from_pretrained(str(saved.path))
    config.modules_to_save = None  # type: ignore[attr-defined]  # a head is loaded in its place, not beside itself
    told = read_json(saved.path / MANIFEST_NAME).get("new_rows")
    if told:
        config.trainable_token_indices = None  # type: ignore[attr-defined]
    inject_adapter_in_model(config, model)
    if told:  # as rows of our own, which cost no copy of the embedding at each pass
        tensors = install_peft_rows(model, told, tensors, dtype=dtype)
    result: Any = set_peft_model_state_dict(model, tensors)
    _cast(model, dtype)
    parts = tuple(f"{part}." for part in own_parts(model)) if head_of_saved(saved) == "classifier" else ()
    missing = [name for name in result.missing_keys if ".lora_" in name or name.startswith(parts)]
    if missing or result.unexpected_keys:
        names = ", ".join([*missing, *result.unexpected_keys][:3])
        raise RunError(f"{file}: does not fit its base: {names} and others; give the base that it was trained on")


def vocabulary_of(saved: Saved) -> Vocabulary:
    """What the model must know of its tokenizer, without shards; those of the run where it has no tokenizer."""
    try:
        encoder = open_tokenizer(saved)
    except RunError:
        if saved.shards is None:
            raise
        return read_vocabulary(saved.shards)
    assert encoder.eos_id is not None, "an Encoder refuses a tokenizer without EOS"
    # As shards do it: padding is never a target and nothing attends to it.
    pad_id = encoder.eos_id if encoder.pad_id is None else encoder.pad_id
    return Vocabulary(size=encoder.vocab_size, eos_id=encoder.eos_id, pad_id=pad_id)


def told_ends(folder: Path) -> list[int]:
    """The ids that a model folder's generation_config.json ends with; chat models have several."""
    told = read_json(folder / "generation_config.json").get("eos_token_id")
    return [] if told is None else told if isinstance(told, list) else [told]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is none."""
    if not path.is_file():
        return {}
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tree
