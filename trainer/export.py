"""A trained model as a folder that other programs open: full, merged, or an adapter for peft. Whole or absent.

    config.json  model*.safetensors  generation_config.json      transformers (full, merged)
    adapter_config.json  adapter_model.safetensors               peft (adapter)
    tokenizer*.json  chat_template.jinja  template.yaml          what it was trained with
    README.md  manifest.json                                     the card; what it was made from, each file's hash

The folder is made beside its place under a hidden name and renamed. What other programs need is in docs/export.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from data_pipeline import disk
from data_pipeline.disk import PARTIAL_SUFFIX, FileRecord
from data_pipeline.shards.format import check_tokenizer
from data_pipeline.stage import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from data_pipeline.templates import Template
from trainer import merge
from trainer.base import restore_base
from trainer.card import card
from trainer.checkpoint_marker import read_marker
from trainer.errors import RunError
from trainer.export_embedding import write_sentence_form
from trainer.export_facts import last_evaluation, tokenizer_figures, training_of
from trainer.export_frame import frame_tokenizer
from trainer.heads import auto_class, note_padding, positions_of, trained_whole
from trainer.lineage import EXPORT_KIND, as_trees, base_of, base_path_of, data_of
from trainer.model import tells_texts_apart
from trainer.new_rows import plan_of
from trainer.new_rows_export import peft_rows
from trainer.output_lock import only_writer
from trainer.pooling import vector_form
from trainer.quiet import quiet_prints
from trainer.run_environment import describe_environment
from trainer.saved import (
    ADAPTER_WEIGHTS_NAME,
    DTYPES,
    PEFT_PREFIX,
    TEMPLATE_NAME,
    Dtype,
    Saved,
    base_dtype,
    find_saved,
    is_adapter,
    open_merged,
    open_model,
    open_template,
    open_tokenizer,
    quantization_of,
    read_json,
    tokenizer_folder,
    told_ends,
    vocabulary_of,
)
from trainer.saved_head import head_of_saved, saved_head
from trainer.stages import Head

KIND = EXPORT_KIND
FORMAT_VERSION = 1
README_NAME = "README.md"
CHAT_TEMPLATE_NAME = "chat_template.jinja"
MAX_FILE_SIZE = "5GB"
PACKAGES = ("dure", "torch", "transformers", "peft", "bitsandbytes", "safetensors", "tokenizers")

# All that some program reads a tokenizer from; tokenizer.json is always among them.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    CHAT_TEMPLATE_NAME,
)

What = Literal["full", "merged", "adapter"]
Facts = dict[str, Any]


@dataclass(frozen=True)
class ExportOptions:
    """`dtype` None: as it was trained. `shards`: whose held-out rows measure a merge; those of the run if None.

    `base_name`: what to call the base for others, such as its hub name.
    """

    merge: bool = False
    dtype: Dtype | None = None
    shards: Path | None = None
    accept_merge_error: bool = False
    base_name: str | None = None


def export(saved: Saved, output: Path, options: ExportOptions) -> Manifest:
    """Write the folder `output`, and return its manifest.

    Raises:
        RunError: `output` exists, or the options do not fit the model.
        MergeError: the merged model says other things than the one that was trained.
    """
    what = _what(saved, merge=options.merge)
    _check_options(saved, what, options)
    if saved.config is not None:
        restore_base(saved.path)
    with made_beside(output) as folder:
        template, encoder, base = open_template(saved), open_tokenizer(saved), base_of(saved, name=options.base_name)
        told, form = saved_head(saved), vector_form(saved)
        facts: Facts = {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "what": what,
            "dtype": "fp32" if what == "adapter" else options.dtype or _trained_dtype(saved),
            "origin": origin_of(saved),
            "tokenizer_fingerprint": encoder.fingerprint,
            "vocab_size": encoder.vocab_size,
            "tokenizer": tokenizer_figures(saved, fingerprint=encoder.fingerprint),
            "template": {"name": template.name, "sha256": template.sha256} if template else None,
            **({} if told.head == "causal_lm" else {"stage": _stage_of(saved), **told.as_dict()}),
            **({"vectors": asdict(form)} if form else {}),
            "base": asdict(base) if base else None,
            "data": as_trees(data_of(saved)),
        }
        facts |= _write_weights(saved, folder, facts, options)
        # What learnt from texts cuts them where training did.
        learnt = told.seq_len if told.head in ("classifier", "encoder") else 0
        length = learnt or facts["max_positions"]
        write_tokenizer(tokenizer_folder(saved), folder, template=template, max_positions=length)
        has_types = facts.pop("has_token_types")
        if told.frame is not None:
            frame_tokenizer(folder, told.frame, eos_id=vocabulary_of(saved).eos_id, has_token_types=has_types)
        text = card(facts, data=data_of(saved), base=base, figures=last_evaluation(saved), training=training_of(saved))
        disk.write_bytes(folder / README_NAME, text.encode())
        environment = describe_environment()
        facts["commit"] = environment["commit"]
        facts["packages"] = {name: environment["packages"][name] for name in PACKAGES}
        facts["files"] = [asdict(record) for record in _synced_files(folder)]
        return write_manifest(folder, facts)


def export_full(run: str | Path, output: Path) -> Path:
    """`output`, which holds all weights of a run's newest checkpoint in float32; an adapter is merged into its base.

    A finished export of the same checkpoint that lies there is used again.
    """
    saved = find_saved(run)
    if (output / MANIFEST_NAME).is_file():
        found, ours = read_manifest(output, kind=KIND)["origin"], origin_of(saved)
        if (found["step"], found["sha256"]) == (ours["step"], ours["sha256"]):  # a run's name may change
            return output
        raise RunError(
            f"{output}: holds {found['name']} step {found['step']} ({found['sha256'][:12]}…), but {ours['name']} step "
            f"{ours['step']} ({ours['sha256'][:12]}…) is needed; remove the folder"
        )
    export(saved, output, ExportOptions(merge=is_adapter(saved), dtype="fp32"))
    return output


@contextlib.contextmanager
def made_beside(output: Path) -> Iterator[Path]:
    """A hidden folder to fill that becomes `output` when the block ends; after an error or a kill there is no `output`.

    Raises:
        RunError: something of that name is there, or another process makes it now.
    """
    partial = output.with_name(f".{output.name}{PARTIAL_SUFFIX}")
    with only_writer(output):
        if output.exists() or output.is_symlink():
            raise RunError(f"{output}: exists already, and an export never writes over anything; give another --output")
        shutil.rmtree(partial, ignore_errors=True)  # what a kill left
        partial.mkdir()
        try:
            yield partial
            disk.sync_folder(partial)
            disk.rename(partial, output)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _stage_of(saved: Saved) -> str | None:
    """What trained it last, where that is known."""
    return saved.config.stage if saved.config is not None else read_json(saved.path / MANIFEST_NAME).get("stage")


def _what(saved: Saved, *, merge: bool) -> What:
    if is_adapter(saved):
        return "merged" if merge else "adapter"
    if merge:
        raise RunError(f"--merge: {saved.path} has no adapter to merge, all of its weights are its own; leave it out")
    return "full"


def _check_options(saved: Saved, what: What, options: ExportOptions) -> None:
    """Refuse options that would change nothing."""
    faults = []
    if what == "adapter" and options.dtype is not None:
        faults.append(f"--dtype: {options.dtype} was given, but an adapter is written in fp32, as it was trained")
    if what != "merged" and options.shards is not None:
        faults.append(f"--shards: {options.shards} was given, but only a merge is measured on held-out rows")
    if what != "merged" and options.accept_merge_error:
        faults.append("--accept-merge-error: nothing is merged, so there is no error to accept")
    if options.base_name is not None and base_path_of(saved) is None:
        faults.append(f"--base-name: {options.base_name!r} was given, but {saved.path} was trained from no base")
    if faults:
        advice = "add --merge, or leave it out" if what == "adapter" else "leave it out"
        raise RunError("\n".join(f"{fault}; {advice}" for fault in faults))


def _trained_dtype(saved: Saved) -> Dtype:
    """The run's precision; of a folder what its config or its manifest says."""
    if saved.config is not None:
        return saved.config.train.precision
    if is_adapter(saved):
        return "bf16" if base_dtype(saved) == torch.bfloat16 else "fp32"
    config = read_json(saved.path / "config.json")
    said = config.get("dtype") or config.get("torch_dtype")
    return next((name for name, dtype in DTYPES.items() if str(dtype) == f"torch.{said}"), "fp32")


def origin_of(saved: Saved) -> dict[str, Any]:
    """What was exported: equal origins have equal weights."""
    name = saved.config.run.name if saved.config else saved.path.resolve().name
    if saved.checkpoint is not None:
        return {"name": name, "step": saved.step, "sha256": read_marker(saved.checkpoint)[0]["sha256"]}
    hashes = [disk.sha256_of(file) for file in sorted(saved.path.glob("*.safetensors"))]
    return {"name": name, "step": None, "sha256": "+".join(hashes)}


def _write_weights(saved: Saved, folder: Path, facts: Facts, options: ExportOptions) -> Facts:
    """The weights and their configs; returns what the manifest must tell of them."""
    dtype = DTYPES[facts["dtype"]]
    if facts["what"] == "adapter":
        return _write_adapter(saved, folder, base_name=options.base_name)
    if facts["what"] == "merged":
        return _write_merged(saved, folder, dtype=dtype, options=options)
    model = open_model(saved, dtype=dtype).model
    return _write_model(model, saved, folder)


def _write_model(model: nn.Module, saved: Saved, folder: Path) -> Facts:
    _set_ends(model, saved)
    with quiet_prints():
        model.save_pretrained(folder, max_shard_size=MAX_FILE_SIZE)  # type: ignore[operator]
    if (form := vector_form(saved)) is not None:
        write_sentence_form(model, form, folder)
    return _sizes(model)


def _sizes(model: nn.Module) -> Facts:
    """What of a model decides how its tokenizer is written."""
    return {"max_positions": positions_of(model), "has_token_types": tells_texts_apart(model)}


def _set_ends(model: nn.Module, saved: Saved) -> None:
    """The ids that end and pad a text are those of its tokenizer, in both configs; greedy by default.

    A model that writes no text has no end.
    """
    from transformers import GenerationConfig

    vocabulary = vocabulary_of(saved).in_model(model)
    if head_of_saved(saved) != "causal_lm":
        note_padding(model, vocabulary.pad_id)
        return
    # A chat model that is exported again may end in several ways.
    ends = [vocabulary.eos_id, *(end for end in told_ends(saved.path) if end != vocabulary.eos_id)]
    ids: dict[str, Any] = {
        "eos_token_id": ends if len(ends) > 1 else vocabulary.eos_id,
        "pad_token_id": vocabulary.pad_id,
    }
    bos = getattr(model.config, "bos_token_id", None)
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.config.use_cache = True
    model.generation_config = GenerationConfig(**ids, bos_token_id=bos, do_sample=False)  # type: ignore[assignment]


def _write_adapter(saved: Saved, folder: Path, *, base_name: str | None) -> Facts:
    """The trained matrices under peft's names, in float32 as they were trained; peft finds the base by its path."""
    import safetensors.torch
    from peft import get_peft_model_state_dict

    model = open_model(saved, quantize=None).model
    config = model.peft_config["default"]  # type: ignore[index]
    found = base_path_of(saved)
    assert found is not None, "an adapter has a base"
    config.base_model_name_or_path, config.revision = (base_name, None) if base_name not in (None, found[0]) else found
    config.inference_mode = True
    config.target_modules = sorted(set(config.target_modules) - set(config.exclude_modules or ()))
    # The base's embedding is frozen; "auto" would ask the hub whether its vocabulary grew.
    state = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    indices, rows = peft_rows(model)
    config.trainable_token_indices = indices or None
    whole = trained_whole(model) if head_of_saved(saved) == "classifier" else []
    config.modules_to_save = whole or None
    own = {f"{part}.{name}": it for part in whole for name, it in model.get_submodule(part).state_dict().items()}
    state |= rows | own
    tensors = {PEFT_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    config.save_pretrained(str(folder))
    disk.write_bytes(folder / ADAPTER_WEIGHTS_NAME, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    if (form := vector_form(saved)) is not None:
        write_sentence_form(model, form, folder)
    _set_ends(model, saved)
    if head_of_saved(saved) == "causal_lm":
        model.generation_config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    quantization = quantization_of(saved)
    return {
        "base_dtype": "bf16" if base_dtype(saved) == torch.bfloat16 else "fp32",
        "quantization": quantization.model_dump() if quantization else None,
        "new_rows": plan.as_dict() if (plan := plan_of(model)) else None,
        **_sizes(model),
    }


def _write_merged(saved: Saved, folder: Path, *, dtype: torch.dtype, options: ExportOptions) -> Facts:
    """The merged weights, held against what was trained: in float32, and once more as the files give them."""
    rows = merge.heldout_rows(_measuring_shards(saved, options))
    trained = open_model(saved)
    expected = merge.logits_of(trained.model, rows, device=trained.device)
    del trained
    merge.free_memory()
    merged = open_merged(saved)
    measure = merge.measure_merge(expected, merge.logits_of(merged.model, rows, device=merged.device))
    where = f"{saved.checkpoint or saved.path}"
    is_within = merge.check_merge(measure, where=where, is_accepted=options.accept_merge_error)
    facts = _write_model(merged.model.to(dtype), saved, folder)
    del merged
    merge.free_memory()
    files = _logits_of_files(folder, rows, dtype=dtype, head=head_of_saved(saved))
    as_written = merge.measure_merge(expected, files)
    facts["merge"] = {
        "float32": measure.as_dict(),
        "as_written": as_written.as_dict(),
        "limits": {"max_logit_error": merge.MAX_LOGIT_ERROR, "top_1_agreement": merge.MIN_TOP_1_AGREEMENT},
        "is_accepted": not is_within,
    }
    return facts


def _measuring_shards(saved: Saved, options: ExportOptions) -> Path:
    shards = options.shards or saved.shards
    if shards is None:
        named = saved.config.data.shards if saved.config else "none"
        raise RunError(
            f"--merge: a merge is measured on held-out rows, but the run's shards ({named}) are not here; give --shards"
        )
    check_tokenizer(shards, open_tokenizer(saved).fingerprint)
    return shards


def _logits_of_files(folder: Path, rows: merge.Rows, *, dtype: torch.dtype, head: Head) -> list[torch.Tensor]:
    device = torch.device("cuda" if torch.cuda.is_available() and dtype != torch.float32 else "cpu")
    with quiet_prints():
        model = auto_class(head).from_pretrained(folder, dtype=dtype).to(device).eval()
    return merge.logits_of(model, rows, device=device)


def write_tokenizer(source: Path, folder: Path, *, template: Template | None, max_positions: int | None) -> None:
    """Copy a tokenizer's files, with the chat template that the model was tuned with and the model's length."""
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            disk.write_bytes(folder / name, (source / name).read_bytes())
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings.pop("name_or_path", None)  # where somebody loaded it from
    if max_positions is not None:
        settings["model_max_length"] = max_positions
    if template is not None:
        settings.pop("chat_template", None)  # the file is what counts
        disk.write_bytes(folder / CHAT_TEMPLATE_NAME, template.chat_template().encode())
        disk.write_bytes(folder / TEMPLATE_NAME, template.to_yaml().encode())
    disk.write_json(path, settings)


def _synced_files(folder: Path) -> list[FileRecord]:
    """Every file with its hash, on the disk for good; transformers and peft wrote some without asking for that."""
    records = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        path.chmod(0o644)  # safetensors writes for its owner alone
        with path.open("rb") as file:
            os.fsync(file.fileno())
        name = path.relative_to(folder).as_posix()
        assert name != MANIFEST_NAME, "it is written last"
        records.append(FileRecord(name, path.stat().st_size, disk.sha256_of(path)))
    return records
