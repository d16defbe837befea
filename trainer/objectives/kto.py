"""Single answers that are desirable or not: the objective of `stage: kto`.

How far the model has gone from its reference (the paper's z) is estimated on answers that don't belong to their
prompts: each row's prompt with the answer of another row, which is a pure function of the seed and the row. It is one
number a step, over all micro-batches and ranks, and has no gradient.
Shapes: B rows; prepared batches hold 2 sequences a row, its own and the one with another's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from data_pipeline.stage import fingerprint
from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.examples import ExampleBatch, ExampleRows
from data_pipeline.stream.stream import AnyBatch
from trainer.objectives.choose import Setting
from trainer.objectives.log_probs import answer_log_probs
from trainer.objectives.objective import Objective, Outcome, Scorer
from trainer.objectives.preference_losses import kto_loss
from trainer.preference_config import KtoConfig
from trainer.reference import Reference, ReferredBatch, open_heldout_rows
from trainer.step import hash_to_seed

if TYPE_CHECKING:
    from trainer.ranks import Ranks


def make_kto(setting: Setting) -> Kto:
    """The objective over feedback rows."""
    config, source = setting.config, setting.source
    assert config.kto is not None, "the config resolves it"
    assert isinstance(source, ExampleRows), "its stage reads examples"
    rows = {True: source}
    if (heldout := open_heldout_rows(setting.config)) is not None:
        rows[False] = heldout
    return Kto(
        config.kto,
        ranks=setting.ranks,
        head=setting.model.get_output_embeddings(),  # type: ignore[operator]
        rows=rows,
        seed=config.seed,
        reference=Reference.make(setting, kind=config.kto.reference, tag=f"kto {config.seed}"),
    )


# Answers to one prompt stand together in a corpus; of more than so many one may meet its own prompt again.
MAX_ROWS_OF_A_PROMPT = 16


class Kto(Objective):
    """Sum of the rows' losses, in float32."""

    sum_names = (
        *("accuracy", "entropy", "length", "kl"),
        *("num_desirable", "desirable_reward", "undesirable_reward"),
    )

    def __init__(
        self,
        config: KtoConfig,
        *,
        ranks: Ranks,
        head: nn.Module,
        rows: Mapping[bool, ExampleRows],
        seed: int,
        reference: Reference,
    ) -> None:
        self.config, self.reference = config, reference
        self._ranks, self._head, self._rows, self._seed = ranks, head, rows, seed
        self._kl = 0.0
        self._mismatched: list[tuple[AnyBatch, torch.Tensor]] = []

    def prepare(self, batches: Sequence[AnyBatch], *, is_training: bool) -> list[AnyBatch]:
        found: list[AnyBatch] = []
        for batch in batches:
            assert isinstance(batch, ExampleBatch), "examples are not packed"
            found.append(self.reference.noted(self.expand(batch, is_training), is_training=is_training))
        return found

    def expand(self, batch: ExampleBatch, is_training: bool) -> ExampleBatch:
        """Each row of `batch`, then its prompt with another row's answer; at most seq_len ids of both."""
        assert batch.answers is not None, "feedback rows have answers"
        sequences: list[NDArray[np.int64]] = []
        answers: list[tuple[int, int]] = []
        for row, ids, length, (start, end) in zip(
            batch.row_ids.tolist(), batch.input_ids, batch.lengths.tolist(), batch.answers.tolist(), strict=True
        ):
            sequences.append(ids[:length])
            answers.append((start, end))
            if row == NO_ROW:
                sequences.append(ids[:length])
                answers.append((start, end))
                continue
            other_row = self.other_row(row, ids[:start], is_training=is_training)
            assert other_row.answers is not None
            other = other_row.input_ids[0, slice(*other_row.answers[0].tolist())]
            mismatched = np.concatenate([ids[:start], other])[: self._rows[is_training].seq_len]
            sequences.append(mismatched)
            answers.append((start, len(mismatched)))
        width = max(map(len, sequences))
        input_ids = np.full((len(sequences), width), self._rows[True].pad_id, np.int64)
        for place, sequence in enumerate(sequences):
            input_ids[place, : len(sequence)] = sequence
        return ExampleBatch(
            input_ids=input_ids,
            lengths=np.array([len(sequence) for sequence in sequences], np.int64),
            values=batch.values,
            row_ids=batch.row_ids,
            num_targets=batch.num_targets,
            answers=np.array(answers, np.int64),
        )

    def other_row(self, row: int, prompt: NDArray[np.int64], *, is_training: bool) -> ExampleBatch:
        """A row far away; of that one and those behind it, the first that was asked something else."""
        rows = self._rows[is_training]
        step = 1 + hash_to_seed(self._seed, rows.num_rows) % max(1, rows.num_rows - 1)
        other = rows.gather(np.array([(row + step) % rows.num_rows]))
        for further in range(1, MAX_ROWS_OF_A_PROMPT):
            assert other.answers is not None
            if not np.array_equal(other.input_ids[0, : other.answers[0, 0]], prompt):
                break
            other = rows.gather(np.array([(row + step + further) % rows.num_rows]))
        return other

    def before_training(
        self,
        module: nn.Module,
        folder: Path,
        *,
        micro_batch_sequences: int,
        stop_requested: Callable[[], bool],
        on_batch: Callable[[], None],
    ) -> bool:
        return self.reference.precompute(
            module,
            folder,
            expand=self.expand,
            micro_batch_sequences=micro_batch_sequences,
            stop_requested=stop_requested,
            on_batch=on_batch,
        )

    def begin_step(self, module: nn.Module, batches: Sequence[AnyBatch]) -> None:
        """Estimate z over all rows of the step."""
        self._mismatched = []
        sums = torch.zeros(2, dtype=torch.float64)
        was_training = module.training
        module.eval()
        for batch in batches:
            assert isinstance(batch, ExampleBatch), "examples are not packed"
            second = _sequence_of(batch, 1)
            with torch.no_grad():
                found = answer_log_probs(
                    module, second, head=self._head, device=self._ranks.device, has_entropies=False
                ).sums
            ratios = (found - self.reference.sums(module, second)).double().cpu()
            self._mismatched.append((batch, ratios))
            is_real = torch.from_numpy(batch.row_ids != NO_ROW)
            sums += torch.stack([ratios[is_real].sum(), is_real.sum().double()])
        module.train(was_training)
        total, count = self._ranks.all_sum(sums).tolist()
        self._kl = max(0.0, total / max(1.0, count))

    def outcome(self, module: nn.Module, batch: AnyBatch) -> Outcome:
        assert isinstance(batch, ExampleBatch), "examples are not packed"
        own, device = _sequence_of(batch, 0), self._ranks.device
        reference_B = self.reference.sums(module, own)
        found = answer_log_probs(module, own, head=self._head, device=device)
        is_real = torch.from_numpy(batch.row_ids != NO_ROW).to(device)
        is_desirable = torch.from_numpy(np.nan_to_num(batch.values) > 0).to(device)
        ratio = found.sums - reference_B
        config = self.config
        losses = kto_loss(
            ratio[is_real],
            is_desirable[is_real],
            kl=self._kl,
            beta=config.beta,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
        )
        loss = losses.sum() if len(losses) else found.tokens.sum() * 0
        ratios, desirable = ratio.detach().double()[is_real], is_desirable[is_real].double()
        rewards = config.beta * ratios
        sums = {
            "accuracy": ((ratios > self._kl) == desirable.bool()).double().sum(),
            "entropy": found.entropies.double().sum(),
            "length": found.counts.double().sum(),
            "kl": torch.tensor(self._kl * len(ratios), dtype=torch.float64, device=device),
            "num_desirable": desirable.sum(),
            "desirable_reward": (rewards * desirable).sum(),
            "undesirable_reward": (rewards * (1 - desirable)).sum(),
        }
        mismatched = next((each for of, each in self._mismatched if of is batch), torch.zeros(len(ratio)))
        return Outcome(loss, sums, torch.stack([ratio.detach().double().cpu(), mismatched], dim=1))

    def figures(self, sums: Mapping[str, float], *, num_targets: float) -> dict[str, float]:
        count, desirable = max(1.0, num_targets), sums["num_desirable"]
        means = (
            sums["desirable_reward"] / max(1.0, desirable),
            sums["undesirable_reward"] / max(1.0, count - desirable),
        )
        return {
            "margin": means[0] - means[1] if 0 < desirable < count else 0.0,
            "accuracy": sums["accuracy"] / count,
            "kl": sums["kl"] / count,
            "entropy": sums["entropy"] / max(1.0, sums["length"]),
            "length": sums["length"] / count,
        }

    def scorer(self, *, num_bytes: int) -> Scorer:
        return _KtoScorer(self)


def _sequence_of(batch: ExampleBatch, number: int) -> ExampleBatch:
    """One of the two sequences of each row."""
    assert batch.answers is not None
    lengths = batch.lengths[number::2]
    fields: dict[str, Any] = {
        "input_ids": batch.input_ids[number::2, : int(lengths.max())],
        "lengths": lengths,
        "values": batch.values,
        "row_ids": batch.row_ids,
        "num_targets": batch.num_targets,
        "answers": batch.answers[number::2],
    }
    if isinstance(batch, ReferredBatch) and batch.reference is not None:
        return ReferredBatch(**fields, reference=batch.reference[:, number : number + 1])
    return ExampleBatch(**fields)


class _KtoScorer(Scorer):
    """The loss with the z of all held-out rows, and how often the desirable of a prompt's answers is ahead."""

    def __init__(self, objective: Kto) -> None:
        self._objective = objective
        self._rows: list[tuple[int, str, bool, float, float, int]] = []
        self._entropy = torch.zeros((), dtype=torch.float64)

    def add(self, batch: AnyBatch, outcome: Outcome) -> None:
        assert isinstance(batch, ExampleBatch) and outcome.outputs is not None and batch.answers is not None
        self._entropy += outcome.sums["entropy"].cpu()
        for place, row in enumerate(batch.row_ids.tolist()):
            if row != NO_ROW:
                start, end = batch.answers[2 * place].tolist()
                prompt = fingerprint(batch.input_ids[2 * place, :start].tolist())
                ratio, mismatched = outcome.outputs[place].tolist()
                self._rows.append((row, prompt, bool(batch.values[place] > 0), ratio, mismatched, end - start))

    def figures(self, ranks: Ranks, *, loss_sum: float, num_targets: float) -> dict[str, Any]:
        rows = sorted(each for part in ranks.gather_objects(self._rows) for each in part)
        entropy = float(ranks.all_sum(self._entropy))
        if not rows:
            return {}
        config = self._objective.config
        is_desirable = torch.tensor([row[2] for row in rows])
        ratios, mismatched = (torch.tensor([row[place] for row in rows], dtype=torch.float64) for place in (3, 4))
        kl = float(mismatched.mean().clamp(min=0))
        losses = kto_loss(
            ratios,
            is_desirable,
            kl=kl,
            beta=config.beta,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
        )
        rewards, desirable = config.beta * ratios, is_desirable.double()
        sums = {
            "accuracy": float(((ratios > kl) == is_desirable).double().sum()),
            "entropy": entropy,
            "length": float(sum(row[5] for row in rows)),
            "kl": kl * len(rows),
            "num_desirable": float(desirable.sum()),
            "desirable_reward": float((rewards * desirable).sum()),
            "undesirable_reward": float((rewards * (1 - desirable)).sum()),
        }
        found: dict[str, Any] = {"loss": float(losses.mean()), **self._objective.figures(sums, num_targets=len(rows))}
        return found | pair_accuracy([(row[1], row[2], row[3]) for row in rows])


def pair_accuracy(rows: Sequence[tuple[str, bool, float]]) -> dict[str, Any]:
    """How often a desirable answer is ahead of an undesirable one of its prompt; {} where no prompt has both.

    `rows`: (prompt, is desirable, log ratio) of each answer.
    """
    by_prompt: dict[str, tuple[list[float], list[float]]] = {}
    for prompt, is_desirable, ratio in rows:
        by_prompt.setdefault(prompt, ([], []))[0 if is_desirable else 1].append(ratio)
    num_pairs, ahead = 0, 0.0
    for good, bad in by_prompt.values():
        sorted_bad = np.sort(bad)
        below, not_above = (np.searchsorted(sorted_bad, good, side=side) for side in ("left", "right"))
        num_pairs += len(good) * len(bad)
        ahead += float((below + not_above).sum()) / 2  # one that is equal counts as half, as a guess would
    return {"pair_accuracy": ahead / num_pairs, "num_pairs": num_pairs} if num_pairs else {}
