"""The account of a corpus build: what was found, and what became of it. Plain counts; knows no format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


def package_key(input_index: int, package: str) -> str:
    """The key of what was noted of an AIHub package: its input, and its folder in there."""
    return f"{input_index}:{package}"


@dataclass
class Tally:
    """The account of what was read: plain counts that add up over tasks."""

    items: Counter[str] = field(default_factory=Counter)  # found, read, passed_over, rejected
    item_bytes: Counter[str] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)  # found, kept, dropped, rejected
    passed_over: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)  # of instruction rows that were not rejected
    encodings: Counter[str] = field(default_factory=Counter)  # of items of text, as chosen or given
    heldout: Counter[str] = field(default_factory=Counter)  # records that are never trained on, by why; and their files
    heldout_files: Counter[str] = field(default_factory=Counter)
    packages: dict[str, Counter[str]] = field(default_factory=dict)  # by input index and package, see package_key

    def to_tree(self) -> dict[str, Any]:
        plain = {name: dict(sorted(counts.items())) for name, counts in vars(self).items() if name != "packages"}
        return plain | {"packages": {key: dict(sorted(self.packages[key].items())) for key in sorted(self.packages)}}

    def add(self, tree: dict[str, Any]) -> None:
        for name, counts in tree.items():
            if name == "packages":
                for key, package in counts.items():
                    self.packages.setdefault(key, Counter()).update(package)
            else:
                getattr(self, name).update(counts)
