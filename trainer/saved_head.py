"""What a saved model that does not write text must tell beside its weights: its head, its classes, its texts' frame.

A run keeps them in `examples.json`, an export in its manifest, others' folders in config.json and tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.disk import read_object
from data_pipeline.shards.format import Frame, read_shards_manifest
from data_pipeline.shards.frames import find_frame
from data_pipeline.stage import MANIFEST_NAME, StageError
from trainer.errors import RunError
from trainer.heads import head_of
from trainer.locate import ADAPTER_CONFIG_NAME
from trainer.run_folder import EXAMPLES_NAME
from trainer.stages import REWARD_LABELS, STAGES, Head

if TYPE_CHECKING:
    from trainer.saved import Saved

_OF_TASKS: dict[str | None, Head] = {"CAUSAL_LM": "causal_lm", "SEQ_CLS": "classifier", "FEATURE_EXTRACTION": "encoder"}


@dataclass(frozen=True)
class SavedHead:
    """`labels`: the classes in the order of their numbers, () of others. `frame`: None where texts have none.

    `num_sequences`: of an example, 0 where the model learnt from documents.
    """

    head: Head
    labels: tuple[str, ...] = ()
    frame: Frame | None = None
    num_sequences: int = 0
    seq_len: int = 0
    """Ids of a sequence in training; 0 where nothing says it."""
    num_texts: int = 0
    """Of a row in training; 0 where they differed, or where nothing says it."""
    class_weights: tuple[float, ...] = ()
    """That a classifier's loss was weighted by, () where it was not."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"labels": list(self.labels), "class_weights": list(self.class_weights)}


def head_of_saved(saved: Saved) -> Head:
    """What stands on top of the model of a run or a folder."""
    if saved.config is not None:
        return STAGES[saved.config.stage].head
    told = read_object(saved.path / ADAPTER_CONFIG_NAME)
    if told and not (saved.path / "config.json").is_file():
        ours = read_object(saved.path / MANIFEST_NAME).get("head")
        return ours or _OF_TASKS.get(told.get("task_type"), "masked_lm")
    return head_of(saved.path)


def saved_head(saved: Saved) -> SavedHead:
    """All that is known of it; a frame that nothing names is found by the tokenizer.

    Raises:
        RunError: a classifier of which nothing says what its classes are.
    """
    from trainer.saved import tokenizer_folder

    head = head_of_saved(saved)
    if head == "causal_lm":
        return SavedHead(head)
    told = _told(saved)
    labels = tuple(told.get("labels") or ())
    seq_len = saved.config.data.seq_len if saved.config is not None else int(told.get("seq_len", 0))
    if labels == REWARD_LABELS or (saved.config is not None and saved.config.stage == "reward"):
        return SavedHead(head, REWARD_LABELS, None, int(told.get("num_sequences", 0)), seq_len)
    if head == "classifier" and not labels:
        raise RunError(
            f"{saved.path}: a classifier, but nothing here names its classes ({EXAMPLES_NAME}, {MANIFEST_NAME}, or "
            "id2label of config.json); restore the file, or the shards that it was trained on"
        )
    frame = Frame(**told["frame"]) if told.get("frame") else find_frame(tokenizer_folder(saved))
    return SavedHead(
        head,
        labels,
        frame,
        num_sequences=int(told.get("num_sequences", 0)),
        seq_len=seq_len,
        num_texts=int(told.get("num_texts", 0)),
        class_weights=tuple(told.get("class_weights") or ()),
    )


def _told(saved: Saved) -> Mapping[str, Any]:
    if saved.config is None:
        manifest = read_object(saved.path / MANIFEST_NAME)
        if manifest.get("head"):
            return manifest
        found = read_object(saved.path / "config.json").get("id2label") or {}
        return {"labels": [found[key] for key in sorted(found, key=int)]}
    for folder in (saved.run_folder, saved.path):
        if folder is not None and (told := read_object(folder / EXAMPLES_NAME)):
            return told
    try:
        return read_shards_manifest(Path(saved.config.data.shards))
    except StageError:
        return {}
