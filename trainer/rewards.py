"""What an answer is worth: a Python function that the config names, or a model that was trained to tell.

A reward that can't be used (an error, NaN, too few numbers) is one `BadRollout` that names the source and the row; the
gate refuses the run by it, and a step that meets it is refused and counted as law 8 has it.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from data_pipeline import disk
from trainer.errors import BadRollout, RunError
from trainer.generate import Ids
from trainer.model import padded_inputs
from trainer.policy_config import RewardSourceConfig
from trainer.rollout import Sample, padded_batch

if TYPE_CHECKING:
    from data_pipeline.templates import Template
    from data_pipeline.tokenizer.encode import Encoder
    from trainer.ranks import Ranks

RewardFunction = Callable[[list[str], list[str], list[str | None]], Sequence[float]]


class Texts:
    """Ids as text: prompts as the model reads them, answers without what the template adds."""

    def __init__(self, encoder: Encoder, template: Template | None) -> None:
        self._encoder, self._template = encoder, template

    @classmethod
    def of_shards(cls, shards: Path) -> Texts:
        from data_pipeline.shards.format import template_of, tokenizer_folder
        from data_pipeline.tokenizer.encode import Encoder

        return cls(Encoder(tokenizer_folder(shards)), template_of(shards))

    def prompt(self, ids: Ids) -> str:
        decoded: str = self._encoder.tokenizer.decode(list(ids), skip_special_tokens=False)
        return decoded

    def answer(self, ids: Ids) -> str:
        return self.prompt(ids) if self._template is None else self._template.answer_text(self.prompt(ids))


class Judge(Protocol):
    """Rewards of answers, one each, all finite. A pure function of each sample by itself; free of collectives.

    Raises:
        BadRollout: some reward can't be used.
    """

    def __call__(self, samples: Sequence[Sample]) -> list[float]: ...


@dataclass(frozen=True)
class FunctionJudge:
    """`name`: path/to/file.py:function, for messages; `where`: the key that names it."""

    function: RewardFunction
    texts: Texts
    name: str
    where: str

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        if not samples:
            return []
        found = self._ask(samples)
        for sample, value in zip(samples, found, strict=True):
            if not math.isfinite(value):
                answer = self.texts.answer(sample.answer.ids)
                raise BadRollout(
                    f"{self.where}: {self.name} returned {value:g} for row {sample.row:,} (answer {_short(answer)}); "
                    "return a finite number for every answer"
                )
        return found

    def _ask(self, samples: Sequence[Sample]) -> list[float]:
        prompts = [self.texts.prompt(sample.prompt) for sample in samples]
        answers = [self.texts.answer(sample.answer.ids) for sample in samples]
        references = [None if sample.reference is None else self.texts.answer(sample.reference) for sample in samples]
        try:
            found = self.function(prompts, answers, references)
        except Exception as error:  # whatever it is: it is the user's code
            raise BadRollout(self._blame(error, samples, prompts, answers, references)) from error
        try:
            values = [float(value) for value in found]
        except (TypeError, ValueError) as error:
            raise BadRollout(
                f"{self.where}: {self.name} returned {_short(repr(found))} for {self._rows(samples)}, which are not "
                f"numbers ({error}); return a list of them, one an answer"
            ) from error
        if len(values) != len(samples):
            raise BadRollout(
                f"{self.where}: {self.name} returned {len(values):,} rewards for {len(samples):,} answers "
                f"({self._rows(samples)}); return one an answer, in their order"
            )
        return values

    def _blame(
        self,
        error: Exception,
        samples: Sequence[Sample],
        prompts: list[str],
        answers: list[str],
        references: list[str | None],
    ) -> str:
        """The message for a function that raised, with the first row that does it by itself."""
        where = self._rows(samples)
        for place, sample in enumerate(samples):
            try:
                self.function([prompts[place]], [answers[place]], [references[place]])
            except Exception as alone:  # the same as above
                where, error = f"row {sample.row:,} (answer {_short(answers[place])})", alone
                break
        return (
            f"{self.where}: {self.name} raised {type(error).__name__}: {error} at {where}; mend it, or return a low "
            "reward for such an answer"
        )

    @staticmethod
    def _rows(samples: Sequence[Sample]) -> str:
        rows = sorted({sample.row for sample in samples})
        return f"rows {', '.join(map(str, rows[:4]))}{' and others' if len(rows) > 4 else ''}"


def _short(text: str, *, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[:most] + "…")


def load_function(name: str, *, where: str) -> RewardFunction:
    """The function of "path/to/file.py:name"; its file's code runs in this process.

    Raises:
        RunError: no such file or function, or the file raises.
    """
    path, _, function = name.rpartition(":")
    file = Path(path).expanduser()
    if not file.is_file():
        raise RunError(f"{where}: {name}: there is no file {file} (looked in {Path.cwd()}); check the path")
    spec = importlib.util.spec_from_file_location(f"dure_reward_{file.stem}", file)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever it is: it is the user's code
        raise RunError(f"{where}: {file} raised {type(error).__name__}: {error} when it was read; mend it") from error
    found = getattr(module, function, None)
    if not callable(found):
        have = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RunError(f"{where}: {file} has no function {function!r}; it has {', '.join(have) or 'none'}")
    asked: RewardFunction = found
    return asked


@dataclass(frozen=True)
class ModelJudge:
    """The one logit of a sequence classifier over prompt and answer, as `stage: reward` trained it."""

    model: nn.Module
    name: str
    where: str
    eos_id: int
    pad_id: int
    max_positions: int | None
    batch_size: int
    device: torch.device

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(samples), self.batch_size):
            part = samples[start : start + self.batch_size]
            batch = padded_batch(part, eos_id=self.eos_id, pad_id=self.pad_id)
            if self.max_positions is not None and batch.input_ids.shape[1] > self.max_positions:
                row = part[int(batch.lengths.argmax())].row
                raise BadRollout(
                    f"{self.where}: {self.name} reads {self.max_positions:,} ids, but row {row:,} with its answer has "
                    f"{int(batch.lengths.max()):,}; lower data.seq_len or max_new_tokens"
                )
            logits = self.model(**padded_inputs(batch, device=self.device)).logits
            found += logits.float().reshape(-1).tolist()
        for sample, value in zip(samples, found, strict=True):
            if not math.isfinite(value):
                raise BadRollout(
                    f"{self.where}: {self.name} gives row {sample.row:,} {value:g}; its weights are damaged"
                )
        return found


def identity_of(reward: RewardSourceConfig) -> str:
    """A sha256 of what judges: of the function's file, or of the model's weights."""
    if reward.function is not None:
        return disk.sha256_of(Path(reward.function.rpartition(":")[0]).expanduser())
    from trainer.saved import find_saved, weights_sha256

    return weights_sha256(find_saved(str(reward.model), checkpoint=None))


def open_judge(
    reward: RewardSourceConfig, *, where: str, shards: Path, texts: Texts, ranks: Ranks, batch_size: int
) -> Judge:
    """The judge that `reward` names; every rank opens its own. Free of collectives.

    Raises:
        RunError: nothing under that name, or a model of other tokens, another template or several labels.
    """
    if reward.function is not None:
        if ranks.is_main:
            print(f"{where}.function: code of {reward.function} runs in this process", flush=True)
        function = load_function(reward.function, where=f"{where}.function")
        return FunctionJudge(function, texts, reward.function, f"{where}.function")
    assert reward.model is not None, "the config wants one of them"
    return _open_model(reward.model, where=f"{where}.model", shards=shards, ranks=ranks, batch_size=batch_size)


def _open_model(name: str, *, where: str, shards: Path, ranks: Ranks, batch_size: int) -> ModelJudge:
    from data_pipeline.shards.format import check_tokenizer, template_of
    from trainer.deepspeed_engine import loading_whole
    from trainer.heads import positions_of
    from trainer.saved import DTYPES, find_saved, open_model, open_template, open_tokenizer, usual_dtype, vocabulary_of
    from trainer.saved_head import head_of_saved

    saved = find_saved(name, checkpoint=None)
    if (head := head_of_saved(saved)) != "classifier":
        raise RunError(f"{where}: {saved.path} is a {head.replace('_', ' ')}; name a run of stage 'reward'")
    check_tokenizer(shards, open_tokenizer(saved).fingerprint)
    ours, theirs = template_of(shards), open_template(saved)
    if ours is not None and theirs is not None and ours.sha256 != theirs.sha256:
        raise RunError(
            f"{where}: {saved.path} was trained on rows of template {theirs.name!r} ({theirs.sha256[:12]}…), {shards} "
            f"has {ours.name!r} ({ours.sha256[:12]}…); build the prompts with the reward model's template"
        )
    with loading_whole():
        opened = open_model(saved, dtype=DTYPES[usual_dtype(saved)])
    described: Any = opened.model.config
    if described.num_labels != 1:
        raise RunError(f"{where}: {saved.path} has {described.num_labels} labels, a reward is one number; name another")
    vocabulary = vocabulary_of(saved).in_model(opened.model)
    return ModelJudge(
        model=opened.model.requires_grad_(False),
        name=str(saved.path),
        where=where,
        eos_id=vocabulary.eos_id,
        pad_id=vocabulary.pad_id,
        max_positions=positions_of(opened.model),
        batch_size=batch_size,
        device=opened.device,
    )
