"""Which source each document of a split came from: what tells figures of an evaluation apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.format import ShardSet
from data_pipeline.shards.reader import open_shard

IntArray = NDArray[np.int64]


def documents_by_source(shards: ShardSet) -> dict[str, IntArray]:
    """The numbers of the documents of each source in a split, ascending; sources by their documents, the most first."""
    found: dict[str, list[IntArray]] = {}
    first = 0
    for file in shards.files:
        for batch in open_shard(file):
            for name, places in _places(batch.column("source")).items():
                found.setdefault(name, []).append(places + first)
            first += batch.num_rows
    numbers = {name: np.concatenate(parts) for name, parts in found.items()}
    return dict(sorted(numbers.items(), key=lambda item: (-len(item[1]), item[0])))


def _places(column: Any) -> dict[str, IntArray]:
    encoded = column.dictionary_encode()
    numbers = encoded.indices.to_numpy()
    return {name: np.flatnonzero(numbers == number) for number, name in enumerate(encoded.dictionary.to_pylist())}
