"""Corpora of labels and pairs, and tokenizers of each class that frames them, through the code that the stages use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from data_pipeline import disk
from data_pipeline.corpus.records import SCHEMAS, ExampleRecord, RecordName, RecordWriter
from data_pipeline.shards.build import ShardsBuild, ShardsConfig
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.reader import open_shard
from data_pipeline.stage import Manifest, write_manifest

REVIEWS = [
    {"text_a": "강릉은 바다와 커피로 이름난 도시다.", "label": "1"},
    {"text_a": "어디에 사느냐고 묻자 강릉이라고 답했다.", "label": "0"},
    {"text_a": "ㅋㅋㅋ 漢字 🙂", "label": "1"},
    {"text_a": "[SEP] <|sep|> </s>", "label": "0"},
    {"text_a": "짧다", "label": "1"},
    {"text_a": "길다", "label": "0"},
]
RELATIONS = [
    {"text_a": row["text_a"], "text_b": REVIEWS[-1 - number]["text_a"], "label": ("참", "거짓", "중립")[number % 3]}
    for number, row in enumerate(REVIEWS)
]
TRIPLETS = [
    {"text_a": row["text_a"], "text_b": "맞는 글", "text_c": f"틀린 글 {number}"} for number, row in enumerate(REVIEWS)
]
SCORED = [
    {"text_a": row["text_a"], "text_b": REVIEWS[number - 1]["text_a"], "score": number / 2}
    for number, row in enumerate(REVIEWS)
]

Row = dict[str, Any]


def write_examples(
    folder: Path,
    record: RecordName,
    parts: Sequence[Sequence[Row]],
    *,
    heldout: Sequence[int] = (),
    sources: Sequence[str] = ("시험",),
) -> Path:
    """A corpus of those rows, numbered, their `sources` in turn; the numbers in `heldout` carry the hint."""
    (folder / "data").mkdir(parents=True)
    names = [name for name in SCHEMAS[record].names if name.startswith("text") or name in ("label", "score")]
    entries, number = [], 0
    for part, rows in enumerate(parts):
        path = folder / "data" / f"part-{part:05d}.parquet"
        with disk.durable_file(path) as file:
            writer = RecordWriter(file, kind=record)
            for row in rows:
                cells = {name: row.get(name) for name in names}
                hint = "heldout" if number in heldout else ""
                source = sources[number % len(sources)]
                writer.write(ExampleRecord(f"행-{number}", cells, source=source, metadata="{}", split_hint=hint))
                number += 1
            writer.close()
        entries.append(asdict(file.record(f"data/{path.name}")) | {"num_records": len(rows)})
    write_manifest(folder, {"kind": "corpus", "record": record, "files": entries, "num_records": number})
    return folder


def byte_level(special: Sequence[str]) -> Tokenizer:
    """Bytes as tokens behind the special ones: nothing is unknown to it, and lengths are those of UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def write_plain(folder: Path) -> Path:
    """As GPT's: an end of text and no other frame."""
    return save(byte_level(["<eos>", "<pad>"]), folder, eos_token="<eos>", pad_token="<pad>")


def write_roberta(folder: Path) -> Path:
    tokenizer = byte_level(["<s>", "<pad>", "</s>", "<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    return save(tokenizer, folder, **roles)


def write_bert(folder: Path, *, vocabulary: Sequence[str] = ()) -> Path:
    """As klue/bert-base: WordPiece of single characters, no eos_token; `vocabulary` in place of the texts' letters."""
    letters = sorted({letter for row in [*RELATIONS, *TRIPLETS] for text in row.values() for letter in text})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *(vocabulary or [spelled for letter in letters for spelled in (letter, f"##{letter}")])]
    model = models.WordPiece({token: number for number, token in enumerate(dict.fromkeys(tokens))}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return save(tokenizer, folder, tokenizer_class="BertTokenizer", **roles)


def save(tokenizer: Tokenizer, folder: Path, **settings: object) -> Path:
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def stage_of(corpus: Path, tokenizer: Path, output: Path, **changes: Any) -> ShardsBuild:
    tree = {"corpus": corpus, "tokenizer": tokenizer, "output": output, "heldout_fraction": 0, **changes}
    return ShardsBuild(ShardsConfig.model_validate(tree))


def build(stage: ShardsBuild) -> Manifest:
    for task in stage.plan():
        stage.run(task)
    return stage.finish()


def rows_of(folder: Path, split: str = "train") -> list[Row]:
    return [
        row
        for file in read_shards(folder, split=split).files
        for batch in open_shard(file)
        for row in batch.to_pylist()
    ]
