"""Exports in transformers' pipelines say what the runs say, in a process that does not see dure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.small_world import NLI, PLACES, SENTIMENTS, TINY_BERT, SmallWorld, small_world
from trainer.conversation import open_speaker
from trainer.export import ExportOptions, export
from trainer.generate import Sampling
from trainer.predict import open_predictor
from trainer.saved import find_saved, open_model, open_tokenizer

pytestmark = pytest.mark.stages

READER = Path(__file__).with_name("fresh_pipelines.py")
# 1e-5: float32, padded to other lengths, so that sums run in another order.
NEAR = 1e-5
SENTENCES = ["작은 여우 이야기는 재미있다.", "숲 장면은 지루하다. 사슴은 큰 편이다.", "두루미는 강에 산다."]
PAIRS = [("여우는 산에 산다.", "산에 여우가 있다."), ("사슴은 들에 산다.", "사슴은 들에 살지 않는다.")]
# Of more ids than a sequence had in training, which is less than the models have positions.
LONG = " ".join(f"{place}의 여우는 {place}에 산다." for place in PLACES * 3)
CANDIDATES = ["여우", "강"]
TEMPLATE = "이 글은 {} 이야기다."
SHORT = {"train": {"max_steps": 8, "schedule": {"warmup_steps": 1, "peak_lr": 1e-2}}, "checkpoint": {"every_steps": 8}}
# Weights so large that an untaught model tells sentences apart.
BERT = TINY_BERT | {"initializer_range": 0.2}
LLAMA = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 128, "initializer_range": 0.2}


class Pipelines:
    """Exports, what they were made of, and what their pipelines said, asked all at once: an import costs seconds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs: dict[str, Path] = {}
        self._plan: dict[str, dict[str, Any]] = {}
        self._told: dict[str, list[Any]] = {}

    def ask(self, name: str, run: Path, task: str, asked: Sequence[Any], **options: Any) -> None:
        folder = self.root / run.name
        if not folder.is_dir():
            export(find_saved(run), folder, ExportOptions())
        entry: dict[str, Any] = {"task": task, "folder": str(folder), "asked": list(asked), "options": options}
        if (folder / "adapter_config.json").is_file():
            told = json.loads((folder / "adapter_config.json").read_text())
            manifest = json.loads((folder / "manifest.json").read_text())
            entry |= {"base": told["base_model_name_or_path"], "labels": manifest["labels"]}
            entry["nf4"] = manifest["quantization"] is not None
        self.runs[name], self._plan[name] = run, entry

    def read(self) -> None:
        file = self.root / "plan.json"
        file.write_text(json.dumps(list(self._plan.values())))
        command = [sys.executable, str(READER), str(file)]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        self._told = dict(zip(self._plan, json.loads(file.with_suffix(".out.json").read_text()), strict=True))

    def __getitem__(self, name: str) -> list[Any]:
        return self._told[name]

    def folder(self, name: str) -> Path:
        return Path(self._plan[name]["folder"])


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return small_world()


@pytest.fixture(scope="module")
def asked(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Pipelines:
    def classifier(name: str, shards: Path, **sections: Any) -> Path:
        return world.train(name, shards, stage="classify", **({"data": {"seq_len": 96}} | SHORT | sections))

    pairs = [{"text": first, "text_pair": second} for first, second in PAIRS]
    made = Pipelines(tmp_path_factory.mktemp("pipelines"))
    mlm = world.train("pipe-mlm", world.shards, stage="mlm", model=BERT, **SHORT)
    models: dict[str, dict[str, Any]] = {
        "bert": {"from": str(mlm)},
        "roberta": BERT | {"architecture": "roberta"},
        "llama": LLAMA,
        "neox": LLAMA | {"architecture": "gpt_neox"},
    }
    for name, model in models.items():
        run = classifier(f"pipe-{name}", world.premise_shards, model=model)
        made.ask(f"{name}-pairs", run, "text-classification", pairs, top_k=None)
        made.ask(f"{name}-sentences", run, "text-classification", SENTENCES, top_k=None)
        made.ask(f"{name}-long", run, "text-classification", [LONG], top_k=None, truncation=True)
    reviews = classifier("pipe-reviews", world.review_shards, model=BERT)
    made.ask("reviews", reviews, "text-classification", SENTENCES, top_k=None)
    lora = classifier("pipe-lora", world.premise_shards, model={"from": str(mlm)}, adapter={"rank": 4})
    made.ask("lora", lora, "text-classification", pairs, top_k=None)
    wide = world.untrained("pipe-wide", head="masked_lm", **(BERT | {"hidden_size": 64}))
    packed = {"from": str(wide), "quantization": {"compute_dtype": "fp32"}}
    qlora = classifier("pipe-qlora", world.premise_shards, model=packed, adapter={"rank": 4})
    made.ask("qlora", qlora, "text-classification", pairs, top_k=None)
    zero_shot = {"candidate_labels": CANDIDATES, "hypothesis_template": TEMPLATE, "multi_label": True}
    made.ask("zero-shot", made.runs["bert-pairs"], "zero-shot-classification", SENTENCES, **zero_shot)
    blank = [
        sentence.replace("이야기", "<|mask|>").replace("산다", "<|mask|>") for sentence in (SENTENCES[0], SENTENCES[2])
    ]
    made.ask("fill-mask", mlm, "fill-mask", blank, top_k=5)
    made.ask("features", mlm, "feature-extraction", SENTENCES)
    made.ask("text-generation", world.base, "text-generation", ["여우는"], max_new_tokens=8, return_full_text=False)
    made.read()
    return made


def ours(run: Path, rows: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """Our probabilities of each row's classes."""
    predictor = open_predictor(find_saved(run))
    scores = predictor.scores([each.ids for each in predictor.sequences(rows)])
    return [dict(zip(predictor.labels, row.tolist(), strict=True)) for row in scores]


def theirs(told: list[Any]) -> list[dict[str, float]]:
    return [{entry["label"]: entry["score"] for entry in row} for row in told]


def largest_difference(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    assert [row.keys() for row in one] == [row.keys() for row in other]
    return max(abs(a[label] - b[label]) for a, b in zip(one, other, strict=True) for label in a)


@pytest.mark.parametrize("name", ["bert", "roberta", "llama", "neox"])
def test_a_long_text_is_cut_where_training_cut_it(asked: Pipelines, name: str) -> None:
    predictor = open_predictor(find_saved(asked.runs[f"{name}-long"]))
    (framed,) = predictor.sequences([(LONG,)])
    assert framed.num_cut > 128 - predictor.seq_len, "it would not fit the model's positions either"

    found = largest_difference(theirs(asked[f"{name}-long"]), ours(asked.runs[f"{name}-long"], [(LONG,)]))

    assert found < NEAR


@pytest.mark.parametrize("name", ["bert", "roberta", "llama", "neox"])
@pytest.mark.parametrize("kind", ["pairs", "sentences"])
def test_text_classification_of_an_export_gives_the_runs_probabilities(asked: Pipelines, name: str, kind: str) -> None:
    rows = PAIRS if kind == "pairs" else [(sentence,) for sentence in SENTENCES]

    told = theirs(asked[f"{name}-{kind}"])
    assert (
        largest_difference(ours(asked.runs[f"{name}-{kind}"], rows), [dict(sorted(row.items())) for row in told]) < NEAR
    )
    # One text alone is told from another: no constant would pass.
    assert largest_difference(told[:1], told[1:2]) > 10 * NEAR


def test_labels_of_an_export_are_those_of_the_data(asked: Pipelines) -> None:
    config = json.loads((asked.folder("reviews") / "config.json").read_text())

    assert config["id2label"] == {str(number): label for number, label in enumerate(SENTIMENTS)}
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert {row.keys() == set(SENTIMENTS) for row in theirs(asked["reviews"])} == {True}


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_an_adapter_with_its_head_opens_in_plain_peft(asked: Pipelines, name: str) -> None:
    told = [{label: row[label] for label in NLI} for row in theirs(asked[name])]

    assert largest_difference(ours(asked.runs[name], PAIRS), told) < NEAR
    manifest = json.loads((asked.folder(name) / "manifest.json").read_text())
    assert manifest["labels"] == list(NLI) and manifest["head"] == "classifier"


def test_zero_shot_classification_reads_entailment_from_an_nli_classifier(asked: Pipelines) -> None:
    rows = [(sentence, TEMPLATE.format(label)) for sentence in SENTENCES for label in CANDIDATES]
    found = iter(ours(asked.runs["zero-shot"], rows))

    for told in asked["zero-shot"]:
        scores = dict(zip(told["labels"], told["scores"], strict=True))
        for label in CANDIDATES:
            row = next(found)
            # Of several labels: entailment beside contradiction alone (Yin et al. 2019).
            expected = row["entailment"] / (row["entailment"] + row["contradiction"])
            assert abs(scores[label] - expected) < NEAR


def test_fill_mask_gives_the_runs_probabilities(asked: Pipelines) -> None:
    saved = find_saved(asked.runs["fill-mask"])
    opened, encoder = open_model(saved), open_tokenizer(saved)
    special = encoder.special_ids
    for told, sentence in zip(asked["fill-mask"], (SENTENCES[0], SENTENCES[2]), strict=True):
        before, after = sentence.replace("이야기", "\0").replace("산다", "\0").split("\0")
        pieces = [encoder.encode_batch([part])[0].tolist() for part in (before, after)]
        ids = [special["<|cls|>"], *pieces[0], special["<|mask|>"], *pieces[1], special["<|sep|>"]]
        with torch.no_grad():
            logits = opened.model(input_ids=torch.tensor([ids])).logits[0, 1 + len(pieces[0])]
        expected = logits.softmax(dim=0)
        for entry in told:
            assert abs(entry["score"] - float(expected[entry["token"]])) < NEAR
        assert told[0]["token"] == int(expected.argmax())


def test_feature_extraction_gives_the_runs_hidden_states(asked: Pipelines) -> None:
    saved = find_saved(asked.runs["features"])
    opened, encoder = open_model(saved), open_tokenizer(saved)
    body: Any = opened.model.base_model
    for told, sentence in zip(asked["features"], SENTENCES, strict=True):
        ids = encoder.encode_batch([sentence])[0].tolist()
        framed = [encoder.special_ids["<|cls|>"], *ids, encoder.special_ids["<|sep|>"]]
        with torch.no_grad():
            states = body(input_ids=torch.tensor([framed])).last_hidden_state[0]
        assert np.abs(np.array(told[0]) - states.numpy()).max() < NEAR


def test_text_generation_goes_on_as_the_run_does(asked: Pipelines) -> None:
    speaker = open_speaker(find_saved(asked.runs["text-generation"]), template="none")
    ids = speaker.encoder.encode_batch(["여우는"])[0].tolist()
    (answer,) = speaker.answers([ids], sampling=Sampling(max_new_tokens=8), batch_size=1, rows=[0])

    assert asked["text-generation"][0][0]["generated_text"] == speaker.text_of(answer.ids)
