"""Tokenizers, texts and terms for tests of `dure tokenizer audit`: one of bytes, one of words, hostile names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_pipeline.tokenizer.audit import AuditInputs, audit

SENTENCES = (
    "강릉에서 바다를 보았다.",
    "IfcBuilding은 KT-13982의 건물이다.",
    "할머니가 아세트아미노펜을 먹었다.",
    "3,500원!",
)
HOSTILE = "<script>alert(1)</script>"
TERMS = ("IfcBuilding", "KT-13982", "아세트아미노펜", "개인정보 보호법", "바다", HOSTILE)


def write_byte_level(folder: Path, *, vocab_size: int) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return folder


def write_words(folder: Path) -> Path:
    words = ("[UNK]", "강릉에서", "바다를", "보았다", ".", HOSTILE)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_inputs(folder: Path) -> tuple[list[Path], Path, Path]:
    """Three tokenizers, a folder of two sources, and a list of terms with faults."""
    tokenizers = [
        write_byte_level(folder / "bytes-300", vocab_size=300),
        write_byte_level(folder / "한글 이름이 아주 긴 토크나이저 <b>", vocab_size=330),
        write_words(folder / "words"),
    ]
    texts = folder / "texts"
    texts.mkdir()
    for name, its in {"강릉": SENTENCES[:2], "b&<i>": SENTENCES[1:]}.items():
        lines = [json.dumps({"text": f"{text}\n{text}"}, ensure_ascii=False) + "\n" for text in its]
        (texts / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    terms = folder / "terms.txt"
    terms.write_text("\n".join([*TERMS, "", "바다", HOSTILE]), encoding="utf-8")
    return tokenizers, texts, terms


def make_tree(folder: Path) -> dict[str, Any]:
    tokenizers, texts, terms = write_inputs(folder)
    return audit(AuditInputs(tuple(tokenizers), texts, terms=terms))
