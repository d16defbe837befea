"""What the names of files and folders say: which split they are of, and where AIHub's own tree begins."""

from __future__ import annotations

import re

# A folder of AIHub's trees. A user's own folder above them (`validation_runs/`) must not decide a split.
AIHUB_FOLDER = re.compile(
    r"[\d.\-_ ]*(training|validation|sample|정식개방데이터|개방데이터|라벨링데이터|원천데이터|데이터)([_ ]\d.*)?",
    re.IGNORECASE,
)
_HELDOUT = re.compile(r"validation", re.IGNORECASE)
# As a word of a file's name: xnli.dev.ko.tsv, ratings_test.txt, test-00000-of-00001.parquet; no `latest`, no `testing`.
_HELDOUT_WORD = re.compile(
    r"(?<![a-z])(dev|test|val|valid|validation)(?![a-z])|(?<![가-힣])검증(?![가-힣])", re.IGNORECASE
)
_SAMPLE = re.compile(r"(^|[/\d._ ])sample|샘플", re.IGNORECASE)


def is_heldout(path: str) -> bool:
    """Whether AIHub's own split puts this path (a context, with the member) into Validation, at any depth."""
    return bool(_HELDOUT.search(path))


def is_named_heldout(path: str) -> bool:
    """Whether a file outside AIHub's folders is called dev, test or valid (검증), or lies in a folder so called."""
    *folders, name = path.split("/")
    if any(map(AIHUB_FOLDER.fullmatch, folders)):
        return False
    names = [name, *(folder for folder in folders if folder.lower().endswith(".zip"))]
    return any(map(_HELDOUT_WORD.search, names)) or any(map(_HELDOUT_WORD.fullmatch, folders))


def is_sample(path: str) -> bool:
    """Whether the path lies in AIHub's sample (4.Sample, 샘플), which repeats a little of the data."""
    return bool(_SAMPLE.search(path))
