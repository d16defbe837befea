"""A corpus of made-up Korean sentences, and tokenizers trained on it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from data_pipeline.corpus.build import CorpusBuild, CorpusConfig
from data_pipeline.stage import Manifest, Stage
from data_pipeline.tokenizer.train import TokenizerConfig, TokenizerTrain

KINDS = ("byte_level_bpe", "hash_hash_bpe", "unigram", "wordpiece")
OF_WORDS = ("hash_hash_bpe", "wordpiece")
VOCAB_SIZE = 800

SYLLABLES = [chr(0xAC00 + 53 * number) for number in range(100)]
ENDINGS = ["걸었다", "보았다", "기다렸다", "물었다", "답했다", "떠났다", "돌아왔다", "읽었다"]


def make_words(num_words: int) -> list[str]:
    rng = random.Random(1)
    return [
        "강릉",
        "바다",
        "할머니",
        *("".join(rng.choices(SYLLABLES, k=rng.choice([2, 3]))) for _ in range(num_words)),
    ]


WORDS = make_words(400)


def sentence(rng: random.Random) -> str:
    return f"{rng.choice(WORDS)}에서 {rng.choice(WORDS)}를 {rng.choice(ENDINGS)}. {rng.randrange(3000)}년!"


def write_documents(path: Path, *, num_documents: int = 120, seed: int = 0) -> Path:
    rng = random.Random(seed)
    lines = [{"id": n, "text": "\n".join(sentence(rng) for _ in range(12))} for n in range(num_documents)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def run(stage: Stage) -> Manifest:
    for task in stage.plan():
        stage.run(task)
    return stage.finish()


def make_corpus(output: Path, *inputs: Path) -> Path:
    run(CorpusBuild(CorpusConfig.model_validate({"inputs": list(inputs), "output": output})))
    return output


def stage_of(corpus: Path, output: Path, **options: Any) -> TokenizerTrain:
    tree = {"corpus": corpus, "output": output, "vocab_size": VOCAB_SIZE, **options}
    return TokenizerTrain(TokenizerConfig.model_validate(tree))
