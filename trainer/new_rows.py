"""New rows beside a model's embedding and head: a small parameter each, and never a copy of what was there.

The old modules stay as they are and do what they did; a new id is looked up in the new rows, and the new rows' logits
are put at their ids. So the logits of old tokens are those of the old head, to the bit (law 11), whatever the base is:
trained or frozen, sliced by ZeRO-3, or beside packed 4-bit layers. `fold` makes a plain, larger model of it.
Shapes: B rows, T inputs a row, H width, R new rows, V rows of the old embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from trainer.errors import RunError

Role = Literal["input", "output", "both"]
ROLE = "new_rows_role"  # an attribute of each parameter of new rows
MODEL = "model"  # the role of every other parameter


@dataclass(frozen=True)
class RowsPlan:
    """Which ids are new and which rows stand for them.

    Rows [first, first + num_rows) are new: `num_tokens` tokens, and after them what pads the embedding to `total`.
    """

    first: int
    num_tokens: int
    num_rows: int
    total: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def plan_rows(*, first: int, num_tokens: int, base_rows: int, multiple: int, needs_pad: bool) -> RowsPlan:
    """Free rows of the model are taken first; where they do not do, it grows to a `multiple`.

    `needs_pad`: the tokenizer has no pad token, so that one row more must stay free for padding.

    >>> plan_rows(first=30003, num_tokens=70, base_rows=30080, multiple=64, needs_pad=True)
    RowsPlan(first=30003, num_tokens=70, num_rows=70, total=30080)
    >>> plan_rows(first=30003, num_tokens=77, base_rows=30080, multiple=64, needs_pad=True)
    RowsPlan(first=30003, num_tokens=77, num_rows=141, total=30144)
    """
    needed = first + num_tokens + needs_pad
    if needed <= base_rows:
        return RowsPlan(first, num_tokens, num_tokens, base_rows)
    total = -(-needed // multiple) * multiple
    return RowsPlan(first, num_tokens, total - first, total)


class RowsEmbedding(nn.Module):
    """An embedding of V rows and R new ones; ids (B, T) -> (B, T, H)."""

    def __init__(self, base: nn.Embedding, rows: nn.Parameter, plan: RowsPlan) -> None:
        super().__init__()
        self.base, self.rows = base, rows
        self.plan = plan
        self._first, self._num_rows = plan.first, plan.num_rows
        self.num_embeddings, self.embedding_dim = plan.total, base.embedding_dim
        self.padding_idx = None
        self.is_bypassed = False

    @property
    def weight(self) -> nn.Parameter:
        """The old rows, for programs that ask an embedding for its type or device."""
        return self.base.weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        if self.is_bypassed:
            found: torch.Tensor = self.base(input_ids)
            return found
        places = input_ids - self._first
        is_new = (places >= 0) & (places < self._num_rows)
        old = self.base(input_ids.masked_fill(is_new, 0))
        new = functional.embedding(places.clamp(0, self._num_rows - 1), self.rows).to(old.dtype)
        scale = getattr(self.base, "embed_scale", None)
        if scale is not None:  # Gemma's embedding multiplies what it looks up
            new = new * torch.as_tensor(scale, dtype=new.dtype, device=new.device)
        return torch.where(is_new.unsqueeze(-1), new, old)


class RowsHead(nn.Module):
    """A head of V rows and R new ones; (..., H) -> (..., total) logits."""

    def __init__(self, base: nn.Linear, rows: nn.Parameter, bias: nn.Parameter | None, plan: RowsPlan) -> None:
        super().__init__()
        self.base, self.rows = base, rows
        self.row_bias = bias
        self._first, self._end = plan.first, plan.first + plan.num_rows
        self.in_features, self.out_features = base.in_features, plan.total
        self.is_bypassed = False

    @property
    def weight(self) -> nn.Parameter:
        """The old rows, for programs that ask a head for its type or device."""
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        old: torch.Tensor = self.base(hidden)
        if self.is_bypassed:
            return old
        bias = None if self.row_bias is None else self.row_bias.to(hidden.dtype)
        new = functional.linear(hidden, self.rows.to(hidden.dtype), bias).to(old.dtype)
        return torch.cat([old[..., : self._first], new, old[..., self._end :]], dim=-1)


@dataclass(frozen=True)
class Values:
    """What new rows begin with, float32: (R, H) of the embedding, (R, H) of the head, (R,) of its bias."""

    input: torch.Tensor
    output: torch.Tensor | None
    bias: torch.Tensor | None


def base_rows(model: Any) -> int:
    """Rows of the embedding, by its logical size: under ZeRO-3 the weight itself is a slice."""
    return int(model.get_input_embeddings().num_embeddings)


def is_tied(model: Any) -> bool:
    """Whether head and embedding are one matrix."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def zeros(model: Any, plan: RowsPlan) -> Values:
    """Rows to be filled from a checkpoint."""
    head = model.get_output_embeddings()
    shape = (plan.num_rows, model.get_input_embeddings().embedding_dim)
    has_bias = head is not None and head.bias is not None
    return Values(
        torch.zeros(shape),
        None if head is None or is_tied(model) else torch.zeros(shape),
        torch.zeros(plan.num_rows) if has_bias else None,
    )


def install(model: Any, plan: RowsPlan, values: Values, *, dtype: torch.dtype) -> None:
    """Put new rows of `dtype` that can be trained beside the embedding and the head of `model`, in place.

    After an adapter, not before: peft takes the old head inside the new one for a layer to be tuned.

    Raises:
        RunError: an embedding or a head that does more than look up or multiply.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    _check_kind(embedding, head)
    tied = is_tied(model)

    def parameter(value: torch.Tensor, beside: torch.Tensor, role: Role) -> nn.Parameter:
        made = nn.Parameter(value.to(device=beside.device, dtype=dtype))
        setattr(made, ROLE, role)
        return made

    rows = parameter(values.input, embedding.weight, "both" if tied else "input")
    model.set_input_embeddings(RowsEmbedding(embedding, rows, plan))
    if head is not None:
        if not tied:
            assert values.output is not None, "a head of its own has rows of its own"
            rows = parameter(values.output, head.weight, "output")
        bias = None if values.bias is None else parameter(values.bias, head.weight, "both" if tied else "output")
        model.set_output_embeddings(RowsHead(head, rows, bias, plan))
    model.config.vocab_size = plan.total


def _check_kind(embedding: Any, head: Any) -> None:
    is_scaled = hasattr(embedding, "embed_scale") and isinstance(embedding, nn.Embedding)
    if type(embedding) is not nn.Embedding and not is_scaled:
        raise RunError(
            f"new_rows: the model's embedding is a {type(embedding).__name__}, and only torch's own and scaled ones "
            "can get rows; extend another model"
        )
    if head is not None and type(head) is not nn.Linear:
        raise RunError(
            f"new_rows: the model's head is a {type(head).__name__}, and only a plain Linear can get rows; leave the "
            "head out of quantization and adapters"
        )


def row_modules(model: nn.Module) -> list[RowsEmbedding | RowsHead]:
    """The modules with new rows; [] where a model has none."""
    return [module for module in model.modules() if isinstance(module, RowsEmbedding | RowsHead)]


def plan_of(model: Any) -> RowsPlan | None:
    """Which rows of a model are new; None where none is."""
    embedding = model.get_input_embeddings()
    return embedding.plan if isinstance(embedding, RowsEmbedding) else None


def role_of(parameter: torch.Tensor) -> str:
    """ "input", "output" or "both" (where they are one) of a parameter of new rows; "model" of any other."""
    return getattr(parameter, ROLE, MODEL)


@contextmanager
def bypassed(model: nn.Module) -> Iterator[None]:
    """Within the block the model is what it was without new rows."""
    modules = row_modules(model)
    for module in modules:
        module.is_bypassed = True
    try:
        yield
    finally:
        for module in modules:
            module.is_bypassed = False


def held_rows(model: Any) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The new rows of embedding and head, and the head's bias there, as they stand; None where there is none.

    The head's are None too where they are the embedding's.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    bias = None if head is None else head.row_bias
    output = None if head is None or head.rows is embedding.rows else head.rows
    return embedding.rows, output, bias


@torch.no_grad()
def fold(model: Any, plan: RowsPlan) -> None:
    """Make a plain model of one with new rows, its embedding and head resized, in place. Nothing may be sliced."""
    rows, output, bias = held_rows(model)
    embedding, head = model.get_input_embeddings().base, model.get_output_embeddings()
    model.set_input_embeddings(embedding)
    if head is not None:
        model.set_output_embeddings(head.base)
    model.config.vocab_size = embedding.num_embeddings
    resize(model, plan)
    place = slice(plan.first, plan.first + plan.num_rows)
    model.get_input_embeddings().weight[place] = rows.to(embedding.weight.dtype)
    if head is not None:
        resized = model.get_output_embeddings()
        if output is not None:
            resized.weight[place] = output.to(resized.weight.dtype)
        if bias is not None:
            resized.bias[place] = bias.to(resized.bias.dtype)


def resize(model: Any, plan: RowsPlan) -> None:
    """Let transformers give embedding and head `plan.total` rows; old ones stay to the bit."""
    if plan.total != base_rows(model):
        trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        model.resize_token_embeddings(plan.total, mean_resizing=False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained.get(name, True))
