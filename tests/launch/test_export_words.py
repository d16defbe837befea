"""`dure export` ends with what the folder is good for."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.verb_export import _next


@pytest.mark.parametrize(
    ("head", "use"),
    [
        ("classifier", 'pipeline("text-classification", model="exports/a")'),
        ("encoder", 'SentenceTransformer("exports/a")'),
        ("masked_lm", "model: {from: exports/a}"),
        (None, "`dure chat exports/a`"),
    ],
)
def test_the_next_step_fits_the_head(head: str | None, use: str) -> None:
    told = _next({} if head is None else {"head": head}, Path("exports/a"))

    assert use in told and ("dure chat" in told) == (head is None)
