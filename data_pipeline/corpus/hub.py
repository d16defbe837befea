"""`hf:NAME@REVISION` -> a folder: a dataset of the Hugging Face hub as its files lie there, at one commit.

Downloads into the hub's own cache and reads from there; without a network the cache alone answers. The token of a gated
set is the hub's own business (`HF_TOKEN`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.stage import StageError

PREFIX = "hf:"
_FORM = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[^@\s]+))?")
# Errors of huggingface_hub, by name so that it need not be imported here, and what to do.
_ADVICE = {
    "GatedRepoError": "accept its terms on the hub and set HF_TOKEN",
    "RepositoryNotFoundError": "check the name; a private one needs HF_TOKEN",
    "RevisionNotFoundError": "check the revision: a commit, a tag or a branch of the dataset",
    "IncompleteSnapshotError": "only a part of it is in the cache; fetch it where the hub can be reached",
    "LocalEntryNotFoundError": (
        "the hub can't be reached (허브에 연결할 수 없음) and the cache does not hold it; fetch it where there is a "
        "network (`hf download --repo-type dataset NAME --revision REVISION`), or give a folder that holds its files"
    ),
}


@dataclass(frozen=True)
class HubDataset:
    """What an input names: a dataset at a revision (commit, tag or branch)."""

    name: str
    revision: str


@dataclass(frozen=True)
class Snapshot:
    """Its files on this machine, and the commit that the revision stood for."""

    folder: Path
    commit: str


def dataset_of(path: Path, *, where: str) -> HubDataset | None:
    """The dataset that `path` names, None for a path of this machine.

    Raises:
        StageError: no name, or no revision; `where` is the key of the config.
    """
    text = path.as_posix()
    if not text.startswith(PREFIX):
        return None
    match = _FORM.fullmatch(text.removeprefix(PREFIX))
    if match is None:
        raise StageError(f"{where}: {text} names no dataset; write hf:OWNER/NAME@REVISION")
    if match["revision"] is None:
        raise StageError(
            f"{where}: {text} has no revision, and what it names may change; write {text}@COMMIT "
            f"(a commit of its history on the hub), or {text}@main for the newest"
        )
    return HubDataset(match["name"], match["revision"])


def fetch(dataset: HubDataset, *, patterns: Sequence[str], where: str) -> Snapshot:
    """The files of `dataset` whose names fit one of `patterns`, downloaded if they are not there yet.

    Raises:
        StageError: no such dataset or revision, no right to it, or neither the hub nor the cache has it.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            dataset.name, repo_type="dataset", revision=dataset.revision, allow_patterns=list(patterns)
        )
    except Exception as error:  # its own errors, those of its HTTP client and of the disk have no common class
        kind = type(error).__name__
        advice = _ADVICE.get(kind, "see what the hub says, and try again")
        said = str(error).strip().splitlines()[0] if str(error).strip() else kind
        raise StageError(f"{where}: {PREFIX}{dataset.name}@{dataset.revision}: {kind}: {advice} ({said})") from None
    return Snapshot(Path(folder), Path(folder).name)
