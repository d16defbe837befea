"""A real tokenizer, shards of Korean and runs over them: what tests of training, generation and export work with."""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from data_pipeline import disk
from data_pipeline.corpus.build import CorpusBuild, CorpusConfig
from data_pipeline.shards.build import ShardsBuild, ShardsConfig
from data_pipeline.shards.format import RecordKind
from data_pipeline.stage import Stage, write_manifest
from data_pipeline.tokenizer.train import TokenizerConfig, TokenizerTrain
from launch.tasks import run_stage
from tests.trainer.tiny_run import tiny_config
from trainer.model import make_model, read_vocabulary
from trainer.model_config import ModelConfig
from trainer.ranks import Ranks
from trainer.resilience import StopFlag
from trainer.run import run_in_group
from trainer.stages import Head

ANIMALS = ["고양이", "강아지", "토끼", "호랑이", "거북이", "다람쥐", "까치", "두루미", "여우", "사슴"]
PLACES = ["산", "강", "바다", "마을", "숲", "들", "논", "우물가"]
SIZES = ["작은", "큰"]
VOCAB_SIZE = 420
SOURCE = "aihub_653"
# A masked LM, and what is tuned from it, of a tiny BERT; its positions hold a frame and two texts.
TINY_BERT: dict[str, Any] = {
    "architecture": "bert",
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "max_positions": 128,
}
SENTIMENTS = ("부정", "긍정")
NLI = ("contradiction", "entailment", "neutral")
NO_ANSWERS = {"answers": {"num_rows": 0}, "every_steps": 100, "max_documents": 20}


def question(size: str, animal: str, place: str) -> str:
    return f"{place}의 {size} {animal}는 어디에 사니?"


@dataclass(frozen=True)
class SmallWorld:
    """Made under `root` as far as it is asked for."""

    root: Path

    @cached_property
    def corpus(self) -> Path:
        texts = [f"{animal}는 {place}에 산다. {place}에는 {animal}가 있다." for animal in ANIMALS for place in PLACES]
        return self._corpus("documents", [{"text": text} for text in texts])

    @cached_property
    def instructions(self) -> Path:
        """Questions that hold their answers: a tiny model learns to say them in seconds."""
        rows = [
            {"instruction": question(size, animal, place), "output": f"{place}에 산다."}
            for size, animal, place in itertools.product(SIZES, ANIMALS, PLACES)
        ]
        return self._corpus("instructions", rows, record="instruction")

    @cached_property
    def reviews(self) -> Path:
        """One sentence a row; twice as many are bad as good, and a word in each tells which."""
        rows = [
            {"text_a": f"{size} {animal} 이야기는 {word}. {place} 장면도 그렇다.", "label": label}
            for number, (animal, place, size) in enumerate(itertools.product(ANIMALS, PLACES, SIZES))
            for word, label in [_SAID[number % len(_SAID)]]
        ]
        return self._examples("reviews", rows, record="label")

    @cached_property
    def premises(self) -> Path:
        """Two sentences a row: the second follows from the first, contradicts it, or is about something else."""
        rows = []
        for number, (animal, place) in enumerate(itertools.product(ANIMALS, PLACES)):
            other, far = ANIMALS[(number + 3) % len(ANIMALS)], PLACES[(number + 1) % len(PLACES)]
            claims = (f"{animal}는 {place}에 살지 않는다.", f"{place}에 {animal}가 있다.", f"{other}는 {far}에 간다.")
            first = f"{animal}는 {place}에 산다."
            rows += [{"text_a": first, "text_b": claim, "label": NLI[kind]} for kind, claim in enumerate(claims)]
        return self._examples("premises", rows, record="label")

    @cached_property
    def pairs(self) -> Path:
        """Questions with the sentence that answers them."""
        return self._examples("pairs", [dict(zip(("text_a", "text_b"), row, strict=True)) for row in _answered()])

    @cached_property
    def scored_pairs(self) -> Path:
        """Two sentences, and how near they are: 1 of one animal and place, 0.5 of one of both, 0 of none."""
        rows = []
        for number, (animal, place) in enumerate(itertools.product(ANIMALS, PLACES)):
            other, far = ANIMALS[(number + 3) % len(ANIMALS)], PLACES[(number + 1) % len(PLACES)]
            who, where, score = ((animal, place, 1.0), (animal, far, 0.5), (other, far, 0.0))[number % 3]
            text_b = f"{where}에는 {who}가 있다."
            rows.append({"text_a": f"{animal}는 {place}에 산다.", "text_b": text_b, "score": score})
        return self._examples("scored-pairs", rows)

    @cached_property
    def triplets(self) -> Path:
        """Questions with the sentence that answers them, and one that does not."""
        answered = _answered()
        rows = [
            {"text_a": ask, "text_b": right, "text_c": answered[number - 17][1].replace("산다", "가지 않는다")}
            for number, (ask, right) in enumerate(answered)
        ]
        return self._examples("triplets", rows)

    @cached_property
    def prompts(self) -> Path:
        """Questions alone, each with an answer that a reward may compare with."""
        rows = [
            {"prompt": question(size, animal, place), "answer": f"{place}에 산다."}
            for size, animal, place in itertools.product(SIZES, ANIMALS, PLACES)
        ]
        columns = {"prompt": "prompt", "answer": "answer"}
        inputs = [{"path": str(self.root / "prompts.jsonl"), "source": SOURCE, "columns": columns}]
        return self._corpus("prompts", rows, record="prompt", inputs=inputs)

    @cached_property
    def preferences(self) -> Path:
        """Questions with the right answer, and with that of another place; sometimes longer, sometimes shorter."""
        return self._corpus("preferences", _preferred(), record="preference")

    @cached_property
    def feedback(self) -> Path:
        """The same answers one by one, desirable or not."""
        return self._corpus("feedback", _preferred(), record="feedback")

    @cached_property
    def tokenizer(self) -> Path:
        """A byte-level BPE, so small that a Korean character is often several tokens."""
        paths = {"corpus": self.corpus, "output": self.root / "tokenizer"}
        return _run(TokenizerTrain(TokenizerConfig.model_validate({**paths, "vocab_size": VOCAB_SIZE})))

    @cached_property
    def shards(self) -> Path:
        return self._shards("shards", self.corpus)

    @cached_property
    def instruction_shards(self) -> Path:
        """More than 64 rows are held out: what a merge is measured on."""
        return self._shards("instruction-shards", self.instructions, template="koalpaca", heldout_fraction=0.5)

    @cached_property
    def review_shards(self) -> Path:
        return self._shards("review-shards", self.reviews, labels=list(SENTIMENTS))

    @cached_property
    def premise_shards(self) -> Path:
        return self._shards("premise-shards", self.premises)

    @cached_property
    def pair_shards(self) -> Path:
        return self._shards("pair-shards", self.pairs)

    @cached_property
    def scored_pair_shards(self) -> Path:
        return self._shards("scored-pair-shards", self.scored_pairs)

    @cached_property
    def triplet_shards(self) -> Path:
        return self._shards("triplet-shards", self.triplets)

    @cached_property
    def preference_shards(self) -> Path:
        return self._shards("preference-shards", self.preferences, template="koalpaca")

    @cached_property
    def feedback_shards(self) -> Path:
        return self._shards("feedback-shards", self.feedback, template="koalpaca")

    @cached_property
    def prompt_shards(self) -> Path:
        return self._shards("prompt-shards", self.prompts, template="koalpaca")

    @cached_property
    def bert(self) -> Path:
        """A folder with a masked LM of new weights and the tokenizer: what an encoder's stages begin on."""
        return self.untrained("bert", head="masked_lm", **TINY_BERT)

    @cached_property
    def llama(self) -> Path:
        """The same with a causal LM, wide enough to be packed in 4 bits."""
        model = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "max_positions": 128}
        return self.untrained("llama", head="causal_lm", **model)

    def untrained(self, name: str, *, head: Head, labels: Sequence[str] = (), **model: Any) -> Path:
        """A folder with a model of new weights and the tokenizer."""
        folder, shards = self.root / name, self.shards
        if not folder.is_dir():
            config = ModelConfig.model_validate({"pad_vocab_to_multiple": 1, **model})
            vocabulary = read_vocabulary(shards)
            made: Any = make_model(
                config, vocabulary=vocabulary, kernel="sdpa", dtype=torch.float32, seed=1, head=head, labels=labels
            )
            made.save_pretrained(folder)
            for file in (shards / "tokenizer").iterdir():
                shutil.copy(file, folder)
        return folder

    @cached_property
    def base(self) -> Path:
        """A pretrained Llama; of all weights."""
        return self.pretrained("base", hidden_size=64)

    def pretrained(self, name: str, **model: Any) -> Path:
        """A new model, trained for a few steps on documents."""
        return self.train(name, self.shards, model={"max_positions": 128, **model}, evaluation=NO_ANSWERS)

    @cached_property
    def talker(self) -> Path:
        """A model of all weights that answers most questions and ends each answer."""
        model = {"hidden_size": 64, "dropout": 0.0, "max_positions": 128}
        steps = {"max_steps": 150, "schedule": {"warmup_steps": 10, "peak_lr": 1e-2}}
        saves = {"every_steps": 150}
        shards = self.instruction_shards
        return self.train(
            "talker", shards, stage="sft", model=model, train=steps, checkpoint=saves, evaluation=NO_ANSWERS
        )

    def tuned(self, name: str, *, base: Path, adapter: dict[str, Any], **model: Any) -> Path:
        """A run that tuned an adapter beside `base`."""
        steps = {"max_steps": 8, "schedule": {"warmup_steps": 2, "peak_lr": 1e-2}}
        return self.train(
            name,
            self.instruction_shards,
            stage="sft",
            model={"from": str(base), **model},
            adapter=adapter,
            train=steps,
            evaluation=NO_ANSWERS,
        )

    def train(self, name: str, shards: Path, **sections: Any) -> Path:
        """Train a tiny model in this process, or go on with it; returns the run folder."""
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        config = tiny_config(self.root, shards, **{"run": {"name": name}, "data": {"seq_len": 64}} | sections)
        lone = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
        assert run_in_group(config, lone, stop=StopFlag()) == 0
        return self.root / name

    def _corpus(self, name: str, rows: list[dict[str, str]], **keys: Any) -> Path:
        file = self.root / f"{name}.jsonl"
        file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
        inputs = [{"path": str(file), "source": SOURCE}]
        output = self.root / f"{name}-corpus"
        return _run(CorpusBuild(CorpusConfig.model_validate({"inputs": inputs, "output": output, **keys})))

    def _examples(self, name: str, rows: Sequence[Mapping[str, Any]], *, record: RecordKind = "pair") -> Path:
        """A corpus of those texts with their labels or scores."""
        folder = self.root / f"{name}-corpus"
        (folder / "data").mkdir(parents=True)
        texts = ("text_a", "text_b") if record == "label" else ("text_a", "text_b", "text_c")
        value = pa.field("label", pa.string()) if record == "label" else pa.field("score", pa.float64())
        beside = {"source": SOURCE, "metadata": "{}", "split_hint": ""}
        fields = [("id", pa.string()), *((key, pa.string()) for key in texts), value]
        schema = pa.schema([*fields, *((key, pa.string()) for key in beside)])
        whole = [{"id": f"{name}-{number}", **row, **beside} for number, row in enumerate(rows)]
        path = folder / "data" / "part-00000.parquet"
        with disk.durable_file(path) as file:
            pq.write_table(pa.Table.from_pylist(whole, schema=schema), file)
        entry = asdict(file.record(f"data/{path.name}")) | {"num_records": len(whole)}
        write_manifest(folder, {"kind": "corpus", "record": record, "files": [entry], "num_records": len(whole)})
        return folder

    def _shards(self, name: str, corpus: Path, **keys: Any) -> Path:
        paths = {"corpus": corpus, "tokenizer": self.tokenizer, "output": self.root / name}
        return _run(ShardsBuild(ShardsConfig.model_validate({**paths, "heldout_fraction": 0.2, **keys})))


_SAID = (("지루하다", SENTIMENTS[0]), ("재미있다", SENTIMENTS[1]), ("따분하다", SENTIMENTS[0]))


def _preferred() -> list[dict[str, str]]:
    rows = []
    for number, (size, animal, place) in enumerate(itertools.product(SIZES, ANIMALS, PLACES)):
        far = PLACES[(PLACES.index(place) + 1 + number % 5) % len(PLACES)]
        right, wrong = f"{place}에 산다.", f"{far}에 산다."
        if number % 3:
            right, wrong = (f"그 {right}", wrong) if number % 3 == 1 else (right, f"그 {wrong}")
        rows.append({"prompt": question(size, animal, place), "chosen": right, "rejected": wrong})
    return rows


def _answered() -> list[tuple[str, str]]:
    return [
        (question(size, animal, place), f"{animal}는 {place}에 산다. 그 {animal}는 {size} 편이다.")
        for size, animal, place in itertools.product(SIZES, ANIMALS, PLACES)
    ]


@functools.cache
def small_world() -> SmallWorld:
    """One for the whole test process, removed at its end."""
    root = Path(tempfile.mkdtemp(prefix="dure-small-world-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return SmallWorld(root)


def _run(stage: Stage) -> Path:
    run_stage(stage, 1, label="test")
    return stage.output
