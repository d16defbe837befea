"""How the rows of one step are shared out: micro-steps over ranks, the last one ragged (law 2)."""

from __future__ import annotations

from collections.abc import Iterator


def rank_slices(
    num_rows: int, *, dp_rank: int, dp_world_size: int, micro_batch_sequences: int
) -> Iterator[tuple[int, int]]:
    """[start, end) of this rank's rows in each micro-step over `num_rows` rows; the same number on every rank.

    A whole micro-step gives each rank `micro_batch_sequences` rows. The last one shares what is left as evenly as it
    goes, so a slice may be empty. Ranks in order give the rows of each micro-step in order.
    """
    if not 0 <= dp_rank < dp_world_size:
        raise ValueError(f"dp_rank is {dp_rank}, but dp_world_size is {dp_world_size}; a rank is below it")
    if micro_batch_sequences < 1:
        raise ValueError(f"micro_batch_sequences is {micro_batch_sequences}; it must be at least 1")
    whole = dp_world_size * micro_batch_sequences
    for start in range(0, num_rows, whole):
        size = min(whole, num_rows - start)
        yield start + size * dp_rank // dp_world_size, start + size * (dp_rank + 1) // dp_world_size
