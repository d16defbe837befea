"""Sentence embeddings as runs: the training that sentence-transformers does, exports that it opens, rows beyond use."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from data_pipeline.shards.format import read_shards
from data_pipeline.stream.examples import ExampleRows
from launch.verb_evaluate import evaluate_saved
from tests.data_pipeline.shards.example_folders import build, stage_of, write_examples
from tests.trainer.small_world import ANIMALS, TINY_BERT, SmallWorld, small_world
from tests.trainer.tiny_run import lines_of, losses_of
from trainer.errors import RunError
from trainer.export import ExportOptions, export
from trainer.ledger import read_ledger
from trainer.predict import open_predictor
from trainer.saved import find_saved
from trainer.schedule import make_optimizer, set_learning_rate

pytestmark = pytest.mark.stages

READER = Path(__file__).with_name("fresh_sentences.py")
# Weights so large that an untaught model tells sentences apart.
BERT = TINY_BERT | {"initializer_range": 0.2}
SEQ_LEN = 64
TEXTS = [
    "작은 여우는 산에 산다.",
    "두루미는 강에 산다. 그 두루미는 큰 편이다.",
    "숲의 큰 사슴은 어디에 사니? " * 12,
    "논",
]
FEW = {"max_steps": 4, "schedule": {"warmup_steps": 1, "peak_lr": 3e-3}}
SHORT = {"data": {"seq_len": SEQ_LEN, "too_long": "drop"}, "train": FEW, "checkpoint": {"every_steps": 4}}
SHORT |= {"evaluation": {"every_steps": 4, "max_documents": 1000}}


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return small_world()


@dataclass(frozen=True)
class Compared:
    """`shards`, `corpus`: attributes of a small world."""

    shards: str
    corpus: str
    embed: dict[str, Any]
    loss: Callable[[Any], Any]
    peak_lr: float = 3e-3


def _loss(name: str, **keys: Any) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        from sentence_transformers.sentence_transformer import losses

        return getattr(losses, name)(model, **keys)

    return make


RANKING = _loss("MultipleNegativesRankingLoss", scale=20.0)
COMPARED = {
    "pairs": Compared("pair_shards", "pairs", {}, RANKING),
    "hard-negatives": Compared("triplet_shards", "triplets", {"pooling": "cls"}, RANKING),
    "scores": Compared("scored_pair_shards", "scored_pairs", {"loss": "cosine"}, _loss("CosineSimilarityLoss")),
    # Slowly: a margin that is kept has no loss to compare.
    "triplets": Compared("triplet_shards", "triplets", {"loss": "triplet"}, _loss("TripletLoss"), peak_lr=2e-4),
}


@pytest.mark.parametrize("name", COMPARED)
def test_a_run_has_the_losses_of_sentence_transformers(world: SmallWorld, name: str, tmp_path: Path) -> None:
    """The same rows, weights and rates; ours in ragged micro-batches, theirs at once."""
    case = COMPARED[name]
    run = world.train(
        f"embed-as-{name}",
        getattr(world, case.shards),
        stage="embed",
        model={"from": str(_start(world))},
        embed=case.embed,
        data={"seq_len": 128},
        train={"micro_batch_sequences": 4, "max_steps": 12, "schedule": {"warmup_steps": 2, "peak_lr": case.peak_lr}},
        logging={"every_steps": 1, "tensorboard": False, "progress_bar": False, "ledger": True},
    )

    theirs = _their_losses(world, case, run, tmp_path)

    assert len(set(theirs)) == 12
    # 1e-4: the project's bar for equal work; float32 sums in another order over 12 updates.
    assert list(losses_of(run).values()) == pytest.approx(theirs, rel=1e-4, abs=1e-4)


def _start(world: SmallWorld) -> Path:
    return world.untrained("bert-apart", head="masked_lm", **BERT)


def _their_losses(world: SmallWorld, case: Compared, run: Path, folder: Path) -> list[float]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    export(find_saved(_start(world)), folder / "start", ExportOptions())  # for a tokenizer that frames texts
    body = Transformer(str(folder / "start"), max_seq_length=128)
    pooling = Pooling(TINY_BERT["hidden_size"], case.embed.get("pooling", "mean"))
    model = SentenceTransformer(modules=[body, pooling], device="cpu").train()
    objective = case.loss(model)
    saved = find_saved(run)
    assert saved.config is not None
    optimizer = make_optimizer(model, saved.config.train.optimizer, device=torch.device("cpu"))
    texts, steps = _texts_of_rows(world, case), read_ledger(run)
    losses = []
    for line in lines_of(run / "metrics.jsonl"):
        chosen = [texts[row] for row in steps[line["step"]]]
        columns = [[row[place] for row in chosen] for place in range(len(chosen[0]) - 1)]
        scores = torch.tensor([row[-1] if row[-1] is not None else 0.0 for row in chosen])
        loss = objective([model.preprocess(column) for column in columns], scores)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), saved.config.train.max_grad_norm)
        set_learning_rate(optimizer.param_groups, line["lr"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def _texts_of_rows(world: SmallWorld, case: Compared) -> list[tuple[Any, ...]]:
    """Of each training row the texts of its record, and its score."""
    table = pq.read_table(getattr(world, case.corpus) / "data").to_pylist()
    records = {row["id"]: [row[key] for key in ("text_a", "text_b", "text_c") if row[key]] for row in table}
    scores = {row["id"]: row["score"] for row in table}
    rows = ExampleRows(read_shards(getattr(world, case.shards), split="train"), seq_len=128)
    ids = [rows.record_id(number) for number in range(rows.num_rows)]
    return [(*records[each], scores[each]) for each in ids]


EXPORTED: dict[str, dict[str, Any]] = {
    "mean": {"model": BERT},
    "cls": {"model": BERT | {"architecture": "roberta"}, "embed": {"pooling": "cls", "normalize": False}},
    "lora": {"model": {"from": "{bert}"}, "adapter": {"rank": 4, "dropout": 0.0}},
    "merged": {"model": {"from": "{bert}"}, "adapter": {"rank": 4, "dropout": 0.0}},
}


@dataclass(frozen=True)
class Exports:
    """Runs, their exports, and what sentence-transformers said of these."""

    runs: dict[str, Path]
    folders: dict[str, Path]
    told: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def exports(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    root = tmp_path_factory.mktemp("sentences")
    runs, folders = {}, {}
    for name, sections in EXPORTED.items():
        model = {key: str(_start(world)) if value == "{bert}" else value for key, value in sections["model"].items()}
        whole = {**SHORT, **sections, "model": model}
        runs[name] = world.train(f"embed-to-{name}", world.pair_shards, stage="embed", **whole)
        folders[name] = root / name
        export(find_saved(runs[name]), folders[name], ExportOptions(merge=name == "merged"))
    plan = root / "plan.json"
    plan.write_text(json.dumps([{"folder": str(folder), "texts": TEXTS} for folder in folders.values()]))
    done = subprocess.run(
        [sys.executable, str(READER), str(plan)], cwd=root, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # What a folder lacks, transformers makes up, and says so.
    assert not re.search("newly initialized|MISSING", done.stdout + done.stderr), done.stderr[-3000:]
    told = dict(zip(folders, json.loads(plan.with_suffix(".out.json").read_text()), strict=True))
    return Exports(runs, folders, told)


def ours(path: Path) -> np.ndarray:
    predictor = open_predictor(find_saved(path))
    return predictor.scores([each.ids for each in predictor.sequences([(text,) for text in TEXTS])])


@pytest.mark.parametrize("name", EXPORTED)
def test_sentence_transformers_says_of_an_export_what_the_run_says(exports: Exports, name: str) -> None:
    theirs, vectors = np.array(exports.told[name]["vectors"]), ours(exports.runs[name])

    # 1e-6 of a vector's length: sums of float32 over other paddings; a merge rounds each weight once more.
    length = float(np.linalg.norm(vectors, axis=1).max())
    assert np.abs(theirs - vectors).max() < (1e-5 if name == "merged" else 1e-6) * length
    assert np.abs(theirs - ours(exports.folders[name])).max() < 1e-6 * length
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3 * length  # no constant would pass
    assert (np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5) == (name != "cls")


@pytest.mark.parametrize("name", EXPORTED)
def test_long_texts_are_cut_alike(exports: Exports, name: str) -> None:
    predictor = open_predictor(find_saved(exports.runs[name]))

    assert predictor.sequences([(TEXTS[2],)])[0].num_cut > 0  # its vectors are compared above
    assert exports.told[name]["max_seq_length"] == SEQ_LEN


@pytest.mark.parametrize("name", ["mean", "cls"])
def test_files_beside_an_export_are_those_that_the_library_writes(exports: Exports, name: str) -> None:
    for file, theirs in exports.told[name]["files"].items():
        found = json.loads((exports.folders[name] / file).read_text())
        if file == "sentence_bert_config.json":
            # The library keeps no arguments; without them it makes up a pooler and says so at each load.
            assert found.pop("model_kwargs") == {"add_pooling_layer": False}
        if file == "config_sentence_transformers.json":
            assert found["__version__"].keys() == theirs.pop("__version__").keys()
            found.pop("__version__")
        assert found == theirs, file
    assert ("2_Normalize/config.json" in exports.told[name]["files"]) == (name == "mean")


def test_the_card_names_the_library_that_makes_vectors(exports: Exports) -> None:
    text = (exports.folders["mean"] / "README.md").read_text()

    assert "library_name: sentence-transformers\npipeline_tag: sentence-similarity\n" in text
    assert 'model = SentenceTransformer(".")' in text and "recall@10" in text and "mean reciprocal rank" in text


def test_an_adapter_moves_the_vectors_of_its_base(exports: Exports) -> None:
    run = exports.runs["lora"]
    losses = list(losses_of(run).values())

    assert losses[-1] != losses[0]
    assert np.abs(ours(run) - ours(exports.runs["mean"])).max() > 1e-3
    evaluation = lines_of(run / "evaluations.jsonl")[-1]
    assert {"loss", "recall_at_1", "recall_at_10", "mrr"} <= evaluation.keys()
    assert 0 <= evaluation["recall_at_1"] <= evaluation["recall_at_10"] <= 1


def test_scored_pairs_are_evaluated_by_correlation(world: SmallWorld) -> None:
    run = world.train(
        "embed-correlated",
        world.scored_pair_shards,
        stage="embed",
        model={"from": str(_start(world))},
        embed={"loss": "cosine"},
        data={"seq_len": 128},
        train={"max_steps": 60, "micro_batch_sequences": 10, "schedule": {"warmup_steps": 4, "peak_lr": 3e-3}},
        checkpoint={"every_steps": 60},
        evaluation={"every_steps": 60, "at_start": True, "best_by": "spearman"},
    )

    before, after = lines_of(run / "evaluations.jsonl")
    assert after["loss"] < before["loss"]
    assert before["spearman"] < after["spearman"] <= 1 and after["is_best"]


@pytest.mark.parametrize(
    ("shards", "embed", "match"),
    [
        ("scored_pair_shards", {}, r"'in_batch' takes every pair .* has scores \(row 0 \(scored-pairs-\d+\): [\d.]+, "),
        ("pair_shards", {"loss": "cosine"}, r"of .*, train (\d+) of \1 rows have none \(row 0 \(pairs-\d+\), "),
        ("pair_shards", {"loss": "triplet"}, r"'triplet' takes examples of 3 texts, but those of .* have 2; set embed"),
        (
            "triplet_shards",
            {"loss": "cosine"},
            r"'cosine' takes examples of 2 texts, but those of .* have 3; set embed",
        ),
        (
            "scored_pair_shards",
            {"loss": "cosine", "max_score": 0.5},
            r"max_score: scores are divided by 0.5 .* \(row \d+ \(scored-pairs-\d+\): 1, .* embed.max_score=1 ",
        ),
    ],
)
def test_rows_that_a_loss_cannot_learn_from_are_named(
    world: SmallWorld, shards: str, embed: dict[str, Any], match: str
) -> None:
    model = {"from": str(_start(world))}

    with pytest.raises(RunError, match=match):
        world.train("embed-refused", getattr(world, shards), stage="embed", model=model, embed=embed, **SHORT)


def test_a_scale_of_scores_is_divided_by_its_end(world: SmallWorld) -> None:
    """Half of each score is what a scale to 2 asks for: the same run as over scores to 1 would have other losses."""
    losses = {}
    for end in (1.0, 2.0):
        embed = {"loss": "cosine", "max_score": end}
        run = world.train(
            f"embed-to-{end:g}",
            world.scored_pair_shards,
            stage="embed",
            model={"from": str(_start(world))},
            embed=embed,
            **SHORT,
        )
        losses[end] = next(iter(losses_of(run).values()))
    rows = ExampleRows(read_shards(world.scored_pair_shards, split="train"), seq_len=SEQ_LEN)

    assert rows.values().max() == 1
    assert abs(losses[1.0] - losses[2.0]) > 1e-3


def test_a_model_of_pairs_is_scored_over_scored_pairs_by_correlation(exports: Exports, world: SmallWorld) -> None:
    """What a search model is compared by with published ones, of a run and of its export."""
    of_run, of_folder = (
        evaluate_saved(str(path), shards=str(world.scored_pair_shards))
        for path in (exports.runs["cls"], exports.folders["cls"])
    )

    assert of_run["num_documents"] == read_shards(world.scored_pair_shards, split="heldout").num_documents
    assert -1 <= of_run["spearman"] <= 1 and -1 <= of_run["pearson"] <= 1
    assert of_folder["pearson"] == pytest.approx(of_run["pearson"], abs=1e-5)
    assert "recall_at_1" not in of_run


def test_pairs_that_nobody_scored_are_left_out_and_counted(exports: Exports, world: SmallWorld, tmp_path: Path) -> None:
    rows = [{"text_a": f"{animal}는 산에 산다.", "text_b": f"산에 {animal}가 있다."} for animal in ANIMALS]
    scored: list[dict[str, Any]] = [{**row, "score": float(number)} for number, row in enumerate(rows[:8])]
    places = {}
    for name, these in (("partly", [*scored, *rows[8:]]), ("whole", scored)):
        corpus = write_examples(tmp_path / name / "c", "pair", [these], heldout=range(len(these)))
        build(stage_of(corpus, world.tokenizer, tmp_path / name / "s"))
        places[name] = evaluate_saved(str(exports.runs["cls"]), shards=str(tmp_path / name / "s"))

    partly, whole = places["partly"], places["whole"]
    assert (partly["num_documents"], partly["num_unscored"], "num_unscored" in whole) == (10, 2, False)
    assert (partly["spearman"], partly["loss"]) == pytest.approx((whole["spearman"], whole["loss"]), rel=1e-5)


def test_an_export_finds_what_its_run_finds(exports: Exports, world: SmallWorld) -> None:
    run, folder = exports.runs["cls"], exports.folders["cls"]
    of_run, of_folder = (evaluate_saved(str(path), shards=str(world.triplet_shards)) for path in (run, folder))

    assert of_folder["mrr"] == pytest.approx(of_run["mrr"], abs=1e-6)
    assert of_folder["triplet_accuracy"] == of_run["triplet_accuracy"]
    assert of_run["num_candidates"] == of_run["num_documents"] > 10
    assert evaluate_saved(str(run))["recall_at_10"] == lines_of(run / "evaluations.jsonl")[-1]["recall_at_10"]


def test_an_encoder_that_tells_no_pooling_is_refused(world: SmallWorld, tmp_path: Path) -> None:
    folder = world.untrained("bare-encoder", head="encoder", **BERT)

    with pytest.raises(RunError, match=r"an encoder, but nothing tells how its states become one vector \(1_Pooling"):
        open_predictor(find_saved(folder))


@pytest.mark.parametrize(
    ("file", "tree", "match"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "pools by 'max', but known here are mean and cls"),
        (
            "modules.json",
            [{"type": "x.Transformer"}, {"type": "x.Pooling"}, {"type": "x.Dense"}],
            "modules are .* Dense",
        ),
    ],
)
def test_a_folder_that_makes_vectors_in_another_way_is_refused(
    exports: Exports, tmp_path: Path, file: str, tree: Any, match: str
) -> None:
    import shutil

    folder = tmp_path / "other"
    shutil.copytree(exports.folders["mean"], folder)
    (folder / file).write_text(json.dumps(tree))

    with pytest.raises(RunError, match=match):
        open_predictor(find_saved(folder))
