"""Generation on several ranks that must make the same number of forward passes, as ZeRO-3 needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.fault_harness import run_ranks
from tests.trainer.test_generate import CPU, MANY, model_of
from trainer.generate import Sampling, generate_answers
from trainer.ranks import Ranks

pytestmark = pytest.mark.stages


class Counting(torch.nn.Module):
    """Counts forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.passes = model_of(), 0

    def forward(self, **inputs: Any) -> Any:
        self.passes += 1
        return self.inner(**inputs)


def on_two_ranks(scratch: Path, *, stop_rank: int | None = None) -> list[dict[str, Any]]:
    """What rank 0 with 9 prompts and rank 1 with 2 short ones answer, and how many passes each made."""
    prompts = [MANY[:9], MANY[9:]]
    model = Counting()

    def work(ranks: Ranks) -> None:
        answers = generate_answers(
            model,
            prompts[ranks.rank],
            eos_ids={0},
            pad_id=1,
            sampling=Sampling(max_new_tokens=12 - 8 * ranks.rank),
            batch_size=4,
            device=CPU,
            synced=True,
            stop_requested=lambda: ranks.rank == stop_rank and model.passes >= 3,
        )
        told = {"answers": [answer.ids for answer in answers], "passes": model.passes}
        (scratch / f"rank-{ranks.rank}.json").write_text(json.dumps(told))

    assert run_ranks(work, num_ranks=2, scratch=scratch) == [0, 0]
    return [json.loads((scratch / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_ranks_with_other_prompts_make_the_same_number_of_passes_and_answer_as_alone(tmp_path: Path) -> None:
    first, second = on_two_ranks(tmp_path)

    assert first["passes"] == second["passes"] > 12
    for told, prompts, limit in ((first, MANY[:9], 12), (second, MANY[9:], 4)):
        alone = generate_answers(
            model_of(),
            prompts,
            eos_ids={0},
            pad_id=1,
            sampling=Sampling(max_new_tokens=limit),
            batch_size=1,
            device=CPU,
        )
        assert told["answers"] == [list(answer.ids) for answer in alone]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_of_one_rank_stops_all_after_the_same_pass(tmp_path: Path, rank: int) -> None:
    first, second = on_two_ranks(tmp_path, stop_rank=rank)

    assert first == second == {"answers": [], "passes": 3}
