"""`dure tokenizer extend --model`: a model folder with rows for new tokens, and the tokenizer, for use anywhere.

Any model of transformers that has an embedding: BERT's kind, whose head is tied and has a bias, as well as causal ones.
Old texts must give what they gave: every output is compared before anything is written (law 11).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipeline import disk
from data_pipeline.disk import PARTIAL_SUFFIX
from data_pipeline.stage import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from data_pipeline.tokenizer.extend import Plan
from data_pipeline.tokenizer.extend_write import file_record, write_tokenizer_folder
from data_pipeline.tokenizer.fingerprint import tokenizer_fingerprint
from trainer.base import identify, model_tokenizer
from trainer.errors import RunError
from trainer.export import made_beside
from trainer.model import check_source
from trainer.model_config import ModelConfig
from trainer.new_rows import RowsPlan, Values, base_rows, plan_rows, resize
from trainer.new_rows_compare import check_difference, compare, outputs
from trainer.new_rows_config import checked_start
from trainer.new_rows_init import starting_values
from trainer.new_rows_proof import ROW_LENGTH, probe_rows
from trainer.new_rows_setup import old_token_id
from trainer.output_lock import only_writer
from trainer.quiet import quiet_prints

MULTIPLE = 64


@dataclass(frozen=True)
class ModelInputs:
    """What decides the model beside its tokenizer. `sha256`: of the old model, see `base.identify`."""

    source: str
    sha256: str
    init: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def model_inputs(source: str, *, init: str | None) -> ModelInputs:
    """Raises RunError where the model is not there, or `init` is no way to begin."""
    try:
        start = checked_start(init or "mean_of_subtokens")
    except ValueError as error:
        raise RunError(f"--init: {error}") from None
    check_source(source)
    with _named(source):
        return ModelInputs(source, identify(ModelConfig.model_validate({"from": source})).sha256, start)


def is_model_done(output: Path, inputs: ModelInputs) -> bool:
    """Whether the finished tokenizer in `output` has this model beside it; raises RunError where it has another."""
    told = read_manifest(output, kind="tokenizer").get("model")
    if told is None:
        return False
    for key in ("sha256", "init"):
        if told.get(key) != (ours := inputs.as_dict()[key]):
            raise RunError(
                f"{output}: holds a model of {told.get('source')} with {key} {told.get(key)!r}, now it is {ours!r}; "
                "give another --output, or remove this one"
            )
    return True


def write_extended_model(plan: Plan, *, inputs: ModelInputs, output: Path, accepts_rounding: bool = False) -> list[str]:
    """Write the folder `output`, or the model into it where the tokenizer stands there; returns what to tell of it.

    Raises:
        RunError: the model is of another tokenizer, can't be loaded, or would say other things of old texts.
    """
    _check_tokenizer(plan, inputs.source)
    model = _load(inputs.source)
    with only_beside(output) if output.exists() else made_beside(output) as folder:
        manifest = write_tokenizer_folder(plan, folder)
        rows = probe_rows(folder, first=plan.tokens[0].id, length=_row_length(model))
        before, num_rows = outputs(model, rows), base_rows(model)
        places = extend_in_place(model, plan, tokenizer=folder, init=inputs.init)
        found = compare(before, model, rows, places, num_rows=num_rows)
        check_difference(found, source=inputs.source, accepts_rounding=accepts_rounding)
        with quiet_prints():
            model.save_pretrained(folder)
        _tell_model(folder, manifest, inputs)
    return [
        f"rows {places.first:,} to {places.first + places.num_tokens - 1:,} begin as {inputs.init}; the embedding has "
        f"{places.total:,} rows",
        f"{len(rows):,} texts without new tokens: outputs equal {found}",
    ]


def _tell_model(folder: Path, manifest: Manifest, inputs: ModelInputs) -> None:
    """The tokenizer's manifest, with the model and its files."""
    known = {entry["name"] for entry in manifest["files"]}
    names = sorted(path.name for path in folder.iterdir() if path.name not in {*known, MANIFEST_NAME})
    files = [*manifest["files"], *(asdict(file_record(folder, name)) for name in names)]
    write_manifest(folder, manifest | {"files": files, "model": inputs.as_dict()})


@contextmanager
def only_beside(output: Path) -> Iterator[Path]:
    """A hidden folder to fill, whose files then go into `output` beside those that are there, the manifest last.

    Raises:
        RunError: another process writes there, or `output` holds another tokenizer by now.
    """
    partial = output.with_name(f".{output.name}{PARTIAL_SUFFIX}")
    with only_writer(output):
        shutil.rmtree(partial, ignore_errors=True)  # what a kill left
        partial.mkdir()
        try:
            yield partial
            before, now = tokenizer_fingerprint(output), tokenizer_fingerprint(partial)
            if before != now:
                raise RunError(f"{output}: its tokenizer is {before[:16]}…, now {now[:16]}…; give another --output")
            names = sorted(path.name for path in partial.iterdir() if path.name != MANIFEST_NAME)
            for name in [*names, MANIFEST_NAME]:
                disk.rename(partial / name, output / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _check_tokenizer(plan: Plan, source: str) -> None:
    with _named(source):
        file = model_tokenizer(ModelConfig.model_validate({"from": source}))
    if file is None:
        print(
            f"--model: {source} brings no tokenizer.json, so that nothing shows whether {plan.config.tokenizer} is its"
        )
    elif (found := tokenizer_fingerprint(file)) != plan.base_fingerprint:
        raise RunError(
            f"--model: {source} has tokenizer {found[:16]}…, but {plan.config.tokenizer} is "
            f"{plan.base_fingerprint[:16]}…; extend the model's own tokenizer"
        )


def _load(source: str) -> Any:
    """The model as the class that saved it, in the type of its weights."""
    import transformers

    with _named(source):
        config = transformers.AutoConfig.from_pretrained(source)
        name = (getattr(config, "architectures", None) or ["AutoModel"])[0]
        kind = getattr(transformers, name, None)
        if kind is None:
            raise RunError(f"--model: {source} is a {name}, which transformers {transformers.__version__} has not")
        with quiet_prints():
            return kind.from_pretrained(source, dtype="auto").eval()


@contextmanager
def _named(source: str) -> Iterator[None]:
    """What can't be read of the model is told by its name."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise RunError(f"--model: {source}: {str(error).strip().splitlines()[0]}; check the path or the name") from None


@torch.no_grad()
def extend_in_place(model: Any, plan: Plan, *, tokenizer: Path, init: str) -> RowsPlan:
    """Resize the embedding and the head of `model` and fill the new rows; `tokenizer` is the extended one."""
    first = plan.tokens[0].id
    places = plan_rows(
        first=first, num_tokens=len(plan.tokens), base_rows=base_rows(model), multiple=MULTIPLE, needs_pad=False
    )
    token_id = old_token_id(tokenizer, first=first)
    values = starting_values(model, places, plan.tokens, init=init, output_init=init, token_id=token_id, seed=1)
    resize(model, places)
    fill(model, places, values)
    return places


def fill(model: Any, places: RowsPlan, values: Values) -> None:
    """Write rows into a resized embedding and head."""
    place = slice(places.first, places.first + places.num_rows)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding.weight[place] = values.input.to(embedding.weight)
    if values.output is not None:
        head.weight[place] = values.output.to(head.weight)
    if values.bias is not None:
        head.bias[place] = values.bias.to(head.bias)


def _row_length(model: Any) -> int:
    """BERT's positions end somewhere, and RoBERTa's begin at 2."""
    return min(ROW_LENGTH, int(getattr(model.config, "max_position_embeddings", ROW_LENGTH) or ROW_LENGTH) - 2)
