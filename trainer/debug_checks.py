"""What a debug run watches: where a value stops being finite, which weights get a gradient and move, whether it learns.

Each fault is named by module, parameter or step; none of this runs outside of `--debug`.
"""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipeline.stream.batch import NO_TARGET, Batch
from data_pipeline.stream.examples import ExampleBatch
from data_pipeline.stream.stream import AnyBatch
from trainer.errors import TrainingStopped
from trainer.gate_checks import Check
from trainer.resilience import StepPolicy, StepPolicyConfig, Verdict
from trainer.setup import Run
from trainer.step import Updater, seed_step

# A learning rate that changes all weights together by less than this share over the whole try trains nothing.
MIN_MOVE = 1e-6
NUM_NAMED = 4
BARS = "▁▂▃▄▅▆▇█"


class DebugFault(TrainingStopped):
    """A debug run found what is wrong. `short`: for a console whose table has told the rest already."""

    def __init__(self, message: str, *, short: str = "") -> None:
        super().__init__(message)
        self.short = short or message


def check_weights(model: nn.Module) -> None:
    """Refuse weights that are not finite before they meet a batch.

    Raises:
        DebugFault: the first such tensor, with how many of its values are NaN or infinite.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if (found := not_finite(tensor)) is not None:
            raise DebugFault(
                f"weights: {name} holds {found} before the first step; the file it was loaded from is damaged, or a "
                "conversion overflowed (fp16): load it again from its source"
            )


def not_finite(tensor: torch.Tensor) -> str | None:
    """ "3 NaN and 1 infinite of 64 values", or None where all are finite or no floating-point numbers."""
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return None
    nans, infinite = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
    return f"{nans:,} NaN and {infinite:,} infinite of {tensor.numel():,} values"


class FiniteWatch:
    """Stops the forward pass in the first module whose output is not finite, and names it."""

    def __init__(self, model: nn.Module) -> None:
        self._last_good = "the inputs"
        self._handles = [
            module.register_forward_hook(self._hook(name or type(model).__name__), with_kwargs=True)
            for name, module in model.named_modules()
        ]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            found = next((text for tensor in _tensors(output) if (text := not_finite(tensor)) is not None), None)
            if found is None:
                self._last_good = name
                return
            told = [not_finite(tensor) for tensor in _tensors([args, kwargs])]
            begins = "its inputs are already not finite" if any(told) else "its inputs are finite"
            raise DebugFault(
                f"forward: {name} ({type(module).__name__}) gives {found}, while {begins}; the last module in order "
                f"was {self._last_good}{_weights_of(module)}. A NaN or an overflow arises there: look at its weights, "
                "at the precision, and at what its inputs can reach"
            )

        return look


def _weights_of(module: nn.Module) -> str:
    """The largest weight of the module itself: an overflow shows there."""
    sizes = [
        f"{name} up to {tensor.detach().abs().max().item():.3g}"
        for name, tensor in module.named_parameters(recurse=False)
        if tensor.is_floating_point() and tensor.numel()
    ]
    return f"; {', '.join(sizes)}" if sizes else ""


def _tensors(item: Any) -> Iterator[torch.Tensor]:
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, dict):
        for value in item.values():
            yield from _tensors(value)
    elif isinstance(item, (list, tuple)):
        for value in item:
            yield from _tensors(value)


class LookingPolicy(StepPolicy):
    """Looks at the gradients when each step is judged; a step that is not finite ends the try, and is named."""

    def __init__(self, config: StepPolicyConfig, model: nn.Module) -> None:
        super().__init__(config)
        self._model = model
        self.num_steps = 0
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.without_gradient = dict.fromkeys(trained, "no gradient")

    def accepts(self, loss: float, grad_norm: float) -> Verdict:
        """The verdict, after a look at each gradient."""
        for name, parameter in self._model.named_parameters():
            if parameter.grad is None:
                continue
            if (found := not_finite(parameter.grad)) is not None:
                raise DebugFault(
                    f"backward: step {self.num_steps}: the gradient of {name} holds {found} (loss {loss:g}, grad_norm "
                    f"{grad_norm:g}); lower the learning rate, or compute this part in float32"
                )
            if name in self.without_gradient:
                if bool((parameter.grad != 0).any()):
                    del self.without_gradient[name]
                else:
                    self.without_gradient[name] = "a gradient of zeros"
        verdict = super().accepts(loss, grad_norm)
        if not verdict.accepted:
            raise DebugFault(f"loss: step {self.num_steps}: {verdict.reason}; look at the rows of this step's batch")
        self.num_steps += 1
        self.losses.append(loss)
        self.grad_norms.append(grad_norm)
        return verdict


def check_gradients(policy: LookingPolicy, *, num_trained: int) -> Check:
    """Every trained tensor had a gradient that is not zero in some step."""
    lacking = policy.without_gradient
    return Check(
        name="gradients reach the weights",
        value=f"{num_trained - len(lacking):,} of {num_trained:,} trained tensors",
        limit="all",
        is_ok=not lacking and num_trained > 0,
        advice=f"{_named(list(lacking))} got {next(iter(lacking.values()), 'nothing')} in {policy.num_steps} steps: a "
        "part of the model that the loss does not reach (detached, unused, or behind zeros) is never trained",
    )


class Moves:
    """How far the trained weights go from where they were."""

    def __init__(self, model: nn.Module) -> None:
        self._before = {
            name: parameter.detach().cpu().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self.num_trained = len(self._before)

    def check(self, model: nn.Module, *, peak_lr: float) -> Check:
        """Every trained tensor was changed by the config's own learning rate, and together by more than rounding."""
        still, moved, size = [], 0.0, 0.0
        for name, parameter in model.named_parameters():
            if (before := self._before.get(name)) is None:
                continue
            now = parameter.detach().cpu()
            if torch.equal(now, before):
                still.append(name)
            moved += float((now - before).double().square().sum())
            size += float(before.double().square().sum())
        share = (moved / size) ** 0.5 if size else 0.0
        return Check(
            name="the optimizer moves them",
            value=f"{self.num_trained - len(still):,} of {self.num_trained:,}, by {share:.1e} of their size",
            limit=f"all, by more than {MIN_MOVE:.0e}",
            is_ok=not still and share > MIN_MOVE,
            advice=f"{_named(still)} stayed as {'they were' if len(still) != 1 else 'it was'} at "
            f"train.schedule.peak_lr {peak_lr:g}; raise it, or give the optimizer what it leaves out"
            if still
            else f"train.schedule.peak_lr {peak_lr:g} trains nothing: 1e-4 to 1e-3 is usual; raise it",
        )


def check_repeatable(run: Run, batch: AnyBatch) -> Check:
    """Two backward passes over one batch give the same gradient to the bit."""
    first, second = (_gradients(run, batch) for _ in range(2))
    other = [name for name in first if not torch.equal(first[name], second[name])]
    return Check(
        name="two passes agree",
        value=f"{len(first) - len(other):,} of {len(first):,} gradients equal to the bit",
        limit="all",
        is_ok=not other,
        advice=f"{_named(other)} differ: a kernel adds in another order each time; a resumed run will then not repeat "
        "its losses to the bit (model.attention=sdpa has a deterministic backward pass)",
    )


def _gradients(run: Run, batch: AnyBatch) -> dict[str, torch.Tensor]:
    seed_step(run.config.seed, step=0, rank=0)
    (prepared,) = run.objective.prepare([batch], is_training=True)
    run.objective.begin_step(run.engine.module, [prepared])
    run.engine.begin_micro_batch(last=True)
    run.engine.backward(run.objective(run.engine.module, prepared) / max(1, prepared.num_targets))
    found = {
        name: parameter.grad.clone()
        for name, parameter in run.engine.model.named_parameters()
        if parameter.grad is not None
    }
    run.engine.discard()
    return found


@dataclass
class Overfit:
    """The losses of one batch that was trained on again and again. `limit`: below it, it is learnt; `lr`: the last
    rate, the highest."""

    limit: float
    entropy: float
    num_targets: int
    lr: float = 0.0
    losses: list[float] = field(default_factory=list)

    @property
    def is_learnt(self) -> bool:
        return bool(self.losses) and self.losses[-1] < self.limit


def one_batch(batch: AnyBatch, *, max_tokens: int) -> AnyBatch:
    """What of a micro-batch is small enough to be learnt by heart: its packing and its padding as they are.

    Of packed rows the window of at most `max_tokens` inputs with the most targets, cut out of the row that holds it; a
    document that it begins within starts there at position 0. Of examples the first ones, `max_tokens` ids in all.
    """
    if isinstance(batch, ExampleBatch):
        return _first_examples(batch, max_tokens=max_tokens)
    width = min(max_tokens, batch.labels.shape[1])
    sums = np.pad(np.cumsum(batch.labels != NO_TARGET, axis=1), ((0, 0), (1, 0)))
    within = sums[:, width:] - sums[:, : sums.shape[1] - width]
    row, first = divmod(int(np.argmax(within)), within.shape[1])
    cut = (slice(row, row + 1), slice(first, first + width))
    labels, positions = batch.labels[cut], batch.position_ids[cut].copy()
    starts = np.flatnonzero(positions[0] == 0)
    border = int(starts[0]) if len(starts) else width
    positions[0, :border] = np.arange(border)
    return Batch(
        input_ids=batch.input_ids[cut],
        labels=labels,
        position_ids=positions,
        row_ids=batch.row_ids[row : row + 1],
        num_targets=int((labels != NO_TARGET).sum()),
        epochs=None if batch.epochs is None else batch.epochs[row : row + 1],
    )


def _first_examples(batch: ExampleBatch, *, max_tokens: int) -> ExampleBatch:
    num_sequences = batch.num_sequences
    lengths = batch.lengths.reshape(-1, num_sequences).sum(axis=1)
    count = max(2, int((np.cumsum(lengths) <= max_tokens).sum()))
    rows = slice(0, count * num_sequences)
    kept = batch.lengths[rows]
    return ExampleBatch(
        input_ids=batch.input_ids[rows, : int(kept.max())],
        lengths=kept,
        values=batch.values[:count],
        row_ids=batch.row_ids[:count],
        num_targets=len(batch.row_ids[:count]),
        answers=None if batch.answers is None else batch.answers[rows],
    )


def overfit(run: Run, batch: AnyBatch) -> Overfit:
    """Train on `batch` alone until its loss is below the limit, or `debug.overfit_steps` updates are done.

    The limit is a share of the first loss or of the entropy of its own target frequencies, whichever is less: a model
    that ignores its inputs never comes below the latter.
    """
    debug = run.config.debug
    updater = Updater(
        engine=run.engine,
        objective=run.objective,
        policy=LookingPolicy(run.config.policy, run.engine.model),
        ranks=run.ranks,
        seed=run.config.seed,
        stop_requested=lambda: False,
    )
    (prepared,) = run.objective.prepare([batch], is_training=True)
    entropy = _entropy(_targets(prepared))
    result = Overfit(limit=float("inf"), entropy=entropy, num_targets=prepared.num_targets)
    for number in range(debug.overfit_steps):
        # From a tenth up to the whole: somewhere on the way is the rate that suits a model of this size.
        lr = debug.overfit_lr * 10 ** (number / (debug.overfit_steps - 1) - 1)
        loss = updater.step([batch], number=number, lr=lr).loss
        result.losses.append(loss)
        result.lr = lr
        if number == 0:
            result.limit = debug.overfit_share * min(loss, entropy if entropy > 0 else loss)
        elif result.is_learnt:
            break
    return result


def _targets(batch: AnyBatch) -> np.ndarray:
    """What is asked for: ids, class numbers, or nothing that could be guessed by how often it stands there."""
    if isinstance(batch, Batch):
        return batch.labels[batch.labels != NO_TARGET]
    return batch.values[np.isfinite(batch.values)]


def _entropy(targets: np.ndarray) -> float:
    """Nats a target, of guessing each by how often it stands there; 0 for none."""
    if not len(targets):
        return 0.0
    counts = np.unique(targets, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def check_overfit(result: Overfit) -> Check:
    """The loss of the one batch fell as far as it must."""
    first, last = result.losses[0], result.losses[-1]
    updates = f"{len(result.losses)} updates at up to {result.lr:.1e}"
    return Check(
        name="one batch can be learnt",
        value=f"loss {first:.3f} → {last:.3f} in {updates}  {sparkline(result.losses)}",
        limit=f"below {result.limit:.3f}",
        is_ok=result.is_learnt,
        advice=f"a sound model learns {result.num_targets:,} targets by heart; this one "
        + ("stays where it was" if last > first - 0.1 else "learns too little")
        + f" (guessing by their frequencies gives {result.entropy:.3f}): the loss does not reach the weights, they are "
        "frozen beside an adapter that can't make up for a base that knows nothing, or the inputs do not reach the "
        "loss (see the lines above); debug.overfit_steps=500 tries longer",
    )


def sparkline(losses: Sequence[float], *, width: int = 24) -> str:
    """The losses as a row of bars, the highest full."""
    places = np.linspace(0, len(losses) - 1, min(width, len(losses))).round().astype(int)
    values = np.asarray(losses)[places]
    low, span = values.min(), max(float(np.ptp(values)), 1e-12)
    return "".join(BARS[round(float((value - low) / span) * (len(BARS) - 1))] for value in values)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NUM_NAMED:,} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more


@contextlib.contextmanager
def anomalies_named() -> Iterator[list[str]]:
    """Anomaly detection and deterministic kernels in the block; yields the names of ops that have no such kernel.

    Raises:
        DebugFault: a backward function gave NaN; the message says which, and which line of the forward pass it is of.
    """
    told: list[str] = []
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings(record=True) as caught, torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("always")
        try:
            yield told
        except RuntimeError as error:
            found = re.search(r"Function '(\w+)' returned nan values in its (\d+)th output", str(error))
            if found is None:
                raise
            raise DebugFault(
                f"backward: {found[1]} gives NaN as its gradient number {found[2]}; it belongs to "
                f"{_forward_line([str(one.message) for one in caught])}. The forward pass is finite there, its "
                "derivative is not (a root or a logarithm of 0, 0 times infinity)"
            ) from None
        finally:
            torch.use_deterministic_algorithms(was_deterministic)
            messages = [str(one.message) for one in caught]
            names = [name for text in messages for name in re.findall(r"(\w+) does not have a deterministic", text)]
            told += sorted(set(names))


def _forward_line(messages: Sequence[str]) -> str:
    """The innermost line of the forward call that torch's anomaly mode tells in a warning."""
    for text in messages:
        if "Traceback of forward call" in text:
            frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+)\n\s+(.+)', text)
            if frames:
                path, line, function, code = frames[-1]
                return f"{path}:{line}, in {function}: `{code.strip()}`"
    return "a part of the forward pass that torch does not name"


def first_batches(run: Run) -> list[AnyBatch]:
    """The micro-batches of the first step; the stream stays where it is."""
    stream = copy.copy(run.stream)
    return stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=run.config.train.micro_batch_sequences)
