"""The flags that `dure chat` and `dure generate` share, as the values that they stand for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.generate import Sampling


def sampling_of(arguments: argparse.Namespace) -> Sampling:
    """How the next token is chosen; raises RunError for a value that can't be meant, or that would change nothing."""
    from trainer.generate import Sampling

    sampling = Sampling(
        max_new_tokens=arguments.max_new_tokens,
        temperature=_number(arguments.temperature, "--temperature"),
        top_p=_number(arguments.top_p, "--top-p"),
        top_k=arguments.top_k,
        repetition_penalty=_number(arguments.repetition_penalty, "--repetition-penalty"),
        seed=arguments.seed,
    )
    if sampling.temperature == 0:
        _refuse_unread(sampling)
    return sampling


def _refuse_unread(sampling: Sampling) -> None:
    """Greedy answers draw nothing, so that what narrows or seeds the draw has no effect."""
    from trainer.errors import RunError
    from trainer.generate import Sampling

    for name in ("top_p", "top_k", "seed"):
        value = getattr(sampling, name)
        if value != getattr(Sampling(), name):
            flag = "--" + name.replace("_", "-")
            raise RunError(
                f"{flag}: {value} was given, but at --temperature 0 (greedy) nothing is drawn; set --temperature above "
                "0, such as 0.7, or leave it out"
            )


def _number(text: str, flag: str) -> float:
    from trainer.errors import RunError

    try:
        return float(text)
    except ValueError:
        raise RunError(f"{flag}: {text!r} is not a number; give one like 0.7") from None
