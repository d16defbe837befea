"""What a build of shards refuses: a corpus that the config does not fit, and shards that nothing is learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.shards.examples import ExampleShape
from data_pipeline.shards.format import ANSWERED, EXAMPLES, FRAMED, SPLITS, TEMPLATED, RecordKind, Split
from data_pipeline.shards.part import Recipe
from data_pipeline.shards.preferences import AnsweredShape
from data_pipeline.stage import Manifest, StageError
from data_pipeline.templates.load import template_names

if TYPE_CHECKING:
    from data_pipeline.shards.build import ShardsConfig

SplitCounts = Mapping[Split, Mapping[str, int]]

# Of the config: the records that a key is for; a key that is set must fit the corpus.
KEYS: dict[str, tuple[RecordKind, ...]] = {
    "template": TEMPLATED,
    "max_tokens": (*TEMPLATED, *FRAMED),
    "frame": FRAMED,
    "labels": ("label",),
    "too_long": EXAMPLES,
    "references": ("prompt",),
}
MAX_NAMED = 5


def check_corpus(folder: Path, corpus: Manifest, config: ShardsConfig) -> None:
    """Raise StageError for a corpus of other records than the config's keys are for, or one that is empty."""
    record = corpus["record"]
    if record not in ("document", *TEMPLATED, *FRAMED):
        raise StageError(
            f"{folder}: holds {record!r} records, but shards are made of document, "
            f"{', '.join((*TEMPLATED, *FRAMED))} records; give such a corpus"
        )
    if record in TEMPLATED and config.template is None:
        raise StageError(
            f"{folder}: holds {record} records, but template is not set; set template to one of "
            f"{', '.join(template_names())} ('tokenizer' is its own chat template), or to the path of a file"
        )
    for key, records in KEYS.items():
        value = getattr(config, key)
        if record not in records and value != type(config).model_fields[key].default:
            kinds = " or ".join(records)
            raise StageError(
                f"{folder}: holds {record} records, but {key} is {value!r}; leave {key} out, or give a corpus of "
                f"{kinds} records (`dure corpus build --record {records[0]}`)"
            )
    if record in ANSWERED and config.too_long == "cut":
        raise StageError(
            f"{folder}: holds {record} records, but too_long is 'cut', and an answer without its end is another one; "
            "set too_long to refuse or drop, or raise max_tokens"
        )
    if corpus["num_records"] == 0:
        raise StageError(
            f"{folder}: the corpus holds 0 {record}s (빈 말뭉치), so there is nothing to encode; "
            "its manifest.json counts what `dure corpus build` dropped and rejected, and why"
        )


def check_faults(output: Path, *, recipe: Recipe, splits: SplitCounts, examples: Sequence[Mapping[str, str]]) -> None:
    """Law 10: rows that nothing can be learned from are counted and refused. `examples`: an id by fault, by part."""
    found = []
    for fault, meaning in recipe.faults.items():
        if count := sum(counts.get(fault, 0) for counts in splits.values()):
            first = next(example[fault] for example in examples if fault in example)
            found.append(f"{count:,} {meaning} (the first is {first!r})")
    if found:
        raise StageError(
            f"{output}: of the {recipe.record} rows, {'; '.join(found)}; mend them in the corpus, "
            "or leave them out with drop_faulty_rows=true"
        )


def check_counts(output: Path, *, recipe: Recipe, splits: SplitCounts, max_unk_rate: float) -> None:
    """Raise StageError for an empty train, and for more unknown tokens than the config allows."""
    train = splits["train"]
    if is_only_heldout(recipe.record, splits):
        train = splits["heldout"]
    if recipe.record != "document" and train["num_documents"] == 0:
        raise StageError(
            f"{output}: no {recipe.record} row is left for train ({splits['heldout']['num_documents']:,} are held "
            "out, the others faulty); lower heldout_fraction, or look at the counts in .tasks"
        )
    if train["num_tokens"] == train["num_documents"]:
        raise StageError(
            f"{output}: the {train['num_documents']:,} documents of train encode to no token beside EOS "
            f"({splits['heldout']['num_documents']:,} documents are held out); lower heldout_fraction, "
            "or look at the tokenizer's card (README.md in its folder)"
        )
    num_unk = sum(counts["num_unk"] for counts in splits.values())
    num_ids = sum(counts["num_tokens"] - counts["num_documents"] for counts in splits.values())
    if num_unk > max_unk_rate * num_ids:
        raise StageError(
            f"{output}: {num_unk:,} of {num_ids:,} tokens are unknown to the tokenizer "
            f"({num_unk / num_ids:.3%}), max_unk_rate is {max_unk_rate:.3%}; use a byte-level tokenizer or one with a "
            "larger alphabet, or raise max_unk_rate"
        )


def is_only_heldout(record: RecordKind, splits: SplitCounts) -> bool:
    """Whether these are rows to score a model on, and none to learn from: a test file by itself."""
    return record in FRAMED and splits["train"]["num_documents"] == 0 < splits["heldout"]["num_documents"]


def examples_manifest(
    output: Path, shape: ExampleShape | AnsweredShape | None, records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the manifest says of examples, nothing where there are none. `records`: of the tasks, with their classes.

    Raises:
        StageError: a class without a row of train.
    """
    if shape is None:
        return {}
    if isinstance(shape, AnsweredShape):
        return {"num_sequences": shape.num_sequences, "held_out_by": "prompt"}
    tree: dict[str, Any] = {"frame": asdict(shape.frame), "num_sequences": shape.num_sequences}
    if shape.record == "label":
        classes = _add_classes(shape.labels, records)
        _check_classes(output, classes)
        tree |= {"labels": list(shape.labels), "classes": classes}
    return tree


def _add_classes(labels: Sequence[str], records: Sequence[Mapping[str, Any]]) -> dict[Split, dict[str, int]]:
    """Rows of each label in each split, over all parts."""
    return {
        split: {
            label: sum(record["classes"][split].get(str(number), 0) for record in records)
            for number, label in enumerate(labels)
        }
        for split in SPLITS
    }


def _check_classes(output: Path, classes: Mapping[Split, Mapping[str, int]]) -> None:
    """A model can't learn a class of which it sees no row."""
    if not any(classes["train"].values()) and any(classes["heldout"].values()):
        return  # a test file by itself
    empty = [label for label, count in classes["train"].items() if not count]
    if empty:
        named = ", ".join(map(repr, empty[:MAX_NAMED])) + (", …" if len(empty) > MAX_NAMED else "")
        held = sum(classes["heldout"][label] for label in empty)
        raise StageError(
            f"{output}: {len(empty)} of {len(classes['train'])} labels have no row of train: {named} ({held:,} rows of "
            "them are held out); lower heldout_fraction, add rows, or leave them out of labels"
        )
    if len(classes["train"]) < 2:
        raise StageError(
            f"{output}: every row has the label {next(iter(classes['train']))!r}, so there is nothing to tell apart; "
            "add rows of another label, or look at columns.label of the corpus"
        )
