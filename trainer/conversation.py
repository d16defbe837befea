"""A model with its tokenizer and its template: messages in, answers out. Chat and generate speak through it.

Knows neither terminals nor files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from trainer.errors import RunError
from trainer.generate import Answer, Sampling, generate_answers, stream_ids
from trainer.saved import (
    DTYPES,
    Quantize,
    Saved,
    open_model,
    open_template,
    open_tokenizer,
    told_ends,
    usual_dtype,
    vocabulary_of,
)
from trainer.saved_head import head_of_saved

if TYPE_CHECKING:
    from data_pipeline.templates import Message, Template
    from data_pipeline.tokenizer.encode import Encoder

NO_TEMPLATE = "none"
_BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Speaker:
    """What it takes to answer. Without a template it goes on with a text instead."""

    model: nn.Module
    device: torch.device
    encoder: Encoder
    template: Template | None
    eos_ids: frozenset[int]
    pad_id: int
    max_positions: int | None

    def prompt_ids(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        """The ids before the answer to come, as training saw them."""
        from data_pipeline.templates import encode_prompt

        said = cast("Sequence[Message]", messages)
        if self.template is not None:
            return encode_prompt(said, self.template, self.encoder)
        texts = (text for message in said for text in (message["content"], message.get("input", "")) if text)
        ids, _ = self.encoder.encode_batch(["\n".join(texts)])
        return [int(token) for token in ids]

    def text_of(self, ids: Sequence[int]) -> str:
        """What was said, as a person reads it."""
        text = self.encoder.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text if self.template is None else self.template.answer_text(text)

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling,
        batch_size: int,
        rows: Sequence[int],
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> list[Answer]:
        """An answer to each prompt; [] where a stop was requested."""
        return generate_answers(
            self.model,
            prompts,
            eos_ids=self.eos_ids,
            pad_id=self.pad_id,
            sampling=sampling,
            batch_size=batch_size,
            device=self.device,
            rows=rows,
            max_positions=self.max_positions,
            stop_requested=stop_requested,
        )

    def stream(self, prompt: Sequence[int], *, sampling: Sampling, row: int = 0) -> Iterator[tuple[str, int]]:
        """(new text, ids so far) as an answer comes; the text is whole characters and maybe empty."""
        said: list[int] = []
        shown = ShownText()
        ids = stream_ids(
            self.model,
            prompt,
            eos_ids=self.eos_ids,
            pad_id=self.pad_id,
            sampling=sampling,
            device=self.device,
            row=row,
            max_positions=self.max_positions,
        )
        for token in ids:
            if token not in self.eos_ids:
                said.append(token)
                yield shown.new(self.text_of(said)), len(said)
        yield shown.rest(self.text_of(said)), len(said)


@dataclass
class ShownText:
    """How much of a growing text was shown. What may still change is held back.

    A token may end inside a character (a Hangul syllable is three bytes): decoded, it ends with U+FFFD until the rest
    has come.
    """

    text: str = field(default="")

    def new(self, text: str) -> str:
        """What can be shown now of `text`, beyond what was."""
        whole = text.rstrip(_BROKEN)
        if not whole.startswith(self.text):  # a decoder or a template took something back; the end tells
            return ""
        fresh = whole[len(self.text) :]
        self.text += fresh
        return fresh

    def rest(self, text: str) -> str:
        """What is left once the text is whole; a character that never came to its end shows as U+FFFD."""
        return text[len(self.text) :] if text.startswith(self.text) else ""


def open_speaker(saved: Saved, *, template: str | None = None, quantize: Quantize | None = None) -> Speaker:
    """The model of `saved`, ready to answer, in its `usual_dtype`.

    Args:
        template: a name or a file instead of its own; "none" goes on with texts.

    Raises:
        RunError: it was tuned with no template, and none is given.
    """
    chosen = choose_template(saved, template)
    opened = open_model(saved, quantize=quantize, dtype=DTYPES[usual_dtype(saved)])
    vocabulary, encoder = vocabulary_of(saved).in_model(opened.model), open_tokenizer(saved)
    return Speaker(
        model=opened.model,
        device=opened.device,
        encoder=encoder,
        template=chosen,
        eos_ids=frozenset({vocabulary.eos_id, *told_ends(saved.path)}),
        pad_id=vocabulary.pad_id,
        max_positions=getattr(opened.model.config, "max_position_embeddings", None),
    )


def choose_template(saved: Saved, template: str | None) -> Template | None:
    """The template that `open_speaker` speaks through; None goes on with texts.

    Raises:
        RunError: it was tuned with no template, and none is given; or it writes no text.
    """
    if (head := head_of_saved(saved)) != "causal_lm":
        raise RunError(
            f"{saved.path}: a {head.replace('_', ' ')} writes no text; ask it by `dure predict` or `dure evaluate`"
        )
    chosen = None if template == NO_TEMPLATE else open_template(saved, name=template)
    if chosen is None and template != NO_TEMPLATE:
        raise RunError(
            f"{saved.path}: it was tuned with no template (no template.yaml), so nothing says how to ask it; give "
            f"--template NAME, or --template {NO_TEMPLATE} to let it go on with what you write"
        )
    return chosen
