"""The classes of a config, by their names and in their order. Knows pydantic only."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field


def _as_text(value: Any) -> Any:
    """`labels: [0, 1]` names the labels "0" and "1", as a corpus holds them."""
    if not isinstance(value, list | tuple):
        return value
    return [str(label) if type(label) is int else label for label in value]


def _checked(labels: tuple[str, ...]) -> tuple[str, ...]:
    twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if twice:
        raise ValueError(f"{', '.join(map(repr, twice))} is named twice; name each label once")
    return labels


Labels = Annotated[tuple[str, ...], BeforeValidator(_as_text), AfterValidator(_checked), Field(min_length=2)]
