"""The fingerprint follows the ids: what can't change them does not change it, what can does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.tokenizer.fingerprint import tokenizer_fingerprint


@pytest.fixture
def changed(byte_level: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], str]:
    def fingerprint_after(change: Callable[[dict[str, Any]], None]) -> str:
        tree = json.loads((byte_level / "tokenizer.json").read_text())
        change(tree)
        (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
        return tokenizer_fingerprint(tmp_path)

    return fingerprint_after


def spell_merges_as_strings(tree: dict[str, Any]) -> None:
    tree["model"]["merges"] = [" ".join(merge) for merge in tree["model"]["merges"]]


def leave_out_defaults(tree: dict[str, Any]) -> None:
    tree["model"] = {key: value for key, value in tree["model"].items() if value not in (None, False)}


def reverse_keys(tree: dict[str, Any]) -> None:
    for key in list(tree)[::-1]:
        tree[key] = tree.pop(key)


@pytest.mark.parametrize(
    "change",
    [spell_merges_as_strings, leave_out_defaults, reverse_keys, lambda tree: tree.pop("decoder"),
     lambda tree: tree["added_tokens"].reverse(), lambda tree: tree.update(padding={"pad_id": 1})],
)  # fmt: skip
def test_what_does_not_decide_ids_does_not_change_it(byte_level: Path, changed, change) -> None:
    assert changed(change) == tokenizer_fingerprint(byte_level)


def swap_two_merges(tree: dict[str, Any]) -> None:
    merges = tree["model"]["merges"]
    merges[5], merges[6] = merges[6], merges[5]


def swap_two_ids(tree: dict[str, Any]) -> None:
    vocabulary = tree["model"]["vocab"]
    first, second = list(vocabulary)[50:52]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


@pytest.mark.parametrize(
    "change",
    [
        swap_two_merges,
        swap_two_ids,
        lambda tree: tree["model"]["merges"].pop(),
        lambda tree: tree.update(normalizer=None),
        lambda tree: tree.update(normalizer={"type": "NFKC"}),
        lambda tree: tree["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="x"),
        lambda tree: tree["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        lambda tree: tree["model"].update(ignore_merges=True),
        lambda tree: tree["added_tokens"][3].update(content="<|other|>"),
        lambda tree: tree["added_tokens"][3].update(special=False),
        lambda tree: tree["added_tokens"][3].update(lstrip=True),
    ],
)
def test_what_decides_ids_changes_it(byte_level: Path, changed, change) -> None:
    assert changed(change) != tokenizer_fingerprint(byte_level)


def test_it_does_not_depend_on_the_path(byte_level: Path, tmp_path: Path) -> None:
    shutil.copytree(byte_level, tmp_path / "copy")

    assert tokenizer_fingerprint(tmp_path / "copy") == tokenizer_fingerprint(byte_level)
    assert tokenizer_fingerprint(tmp_path / "copy/tokenizer.json") == tokenizer_fingerprint(byte_level)


def test_the_kinds_differ(trained: dict[str, Path]) -> None:
    assert len({tokenizer_fingerprint(folder) for folder in trained.values()}) == len(trained)
