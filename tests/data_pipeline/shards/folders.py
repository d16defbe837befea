"""A small finished corpus and a small tokenizer folder, through the code that the stages use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_pipeline import disk
from data_pipeline.corpus.records import SCHEMAS, Record, RecordWriter
from data_pipeline.stage import write_manifest
from data_pipeline.tokenizer.special import SPECIAL_TOKENS

TEXTS = [
    "강릉은 바다와 커피로 이름난 도시다.",
    "어디에 사느냐고 묻자 강릉이라고 답했다.",
    "두레는 마을 사람이 함께 일하는 모임이다.\n\n둘째 문단.",
    "ㅋㅋㅋ 漢字 🙂 def f(x): return x  # 주석",
    "짧다",
]


def write_corpus(folder: Path, parts: Sequence[Sequence[str]], *, heldout: Sequence[str] = ()) -> Path:
    """A corpus of those texts. Records are numbered; the texts in `heldout` carry the hint."""
    (folder / "data").mkdir(parents=True)
    entries, number = [], 0
    for part, texts in enumerate(parts):
        path = folder / "data" / f"part-{part:05d}.parquet"
        with disk.durable_file(path) as file:
            writer = RecordWriter(file)
            for text in texts:
                hint = "heldout" if text in heldout else ""
                writer.write(Record(id=f"문서-{number}", text=text, source="시험", metadata="{}", split_hint=hint))
                number += 1
            writer.close()
        entries.append(asdict(file.record(f"data/{path.name}")) | {"num_records": len(texts)})
    write_manifest(folder, {"kind": "corpus", "record": "document", "files": entries, "num_records": number})
    return folder


def turns(*texts: str, system: str = "", given: str = "") -> list[dict[str, str]]:
    """Messages of question and answer in turn; `given` is the input of the first question."""
    messages = [{"role": "system", "content": system, "input": ""}] if system else []
    for number, text in enumerate(texts):
        role, has_input = ("assistant", False) if number % 2 else ("user", number == 0)
        messages.append({"role": role, "content": text, "input": given if has_input else ""})
    return messages


def write_instruction_corpus(
    folder: Path, parts: Sequence[Sequence[list[dict[str, str]]]], *, heldout: Sequence[int] = ()
) -> Path:
    """A corpus of those conversations, numbered; the numbers in `heldout` carry the hint."""
    (folder / "data").mkdir(parents=True)
    entries, number = [], 0
    for part, conversations in enumerate(parts):
        rows = [
            {
                "id": f"행-{number + place}",
                "messages": messages,
                "source": "시험",
                "metadata": "{}",
                "split_hint": "heldout" if number + place in heldout else "",
            }
            for place, messages in enumerate(conversations)
        ]
        number += len(rows)
        path = folder / "data" / f"part-{part:05d}.parquet"
        with disk.durable_file(path) as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS["instruction"]), file)
        entries.append(asdict(file.record(f"data/{path.name}")) | {"num_records": len(rows)})
    write_manifest(folder, {"kind": "corpus", "record": "instruction", "files": entries, "num_records": number})
    return folder


def write_tokenizer(folder: Path, *, vocab_size: int = 400) -> Path:
    """A byte-level BPE with the project's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return _save(tokenizer, folder)


def write_tokenizer_with_unknowns(folder: Path) -> Path:
    """A word-level tokenizer that knows only the words of the first text."""
    tokens = [*SPECIAL_TOKENS, *TEXTS[0].split()]
    model = models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<|unk|>")
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _save(tokenizer, folder)


def _save(tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "unk_token": "<|unk|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return folder
