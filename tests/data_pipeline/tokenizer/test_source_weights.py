"""Source weights: shares of bytes, exact as far as the text allows, by the ids alone."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from trained_tokenizer import make_corpus, run, stage_of

from data_pipeline.corpus.build import CorpusBuild, CorpusConfig
from data_pipeline.stage import StageError, write_manifest
from data_pipeline.tokenizer.sample import allot, sample_rows, source_limits

SIZES = {"aihub_653": 600, "nsmc": 300, "law": 30}  # documents of about 100 bytes


def write(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": key, "text": text, "source": source}, ensure_ascii=False) for key, text, source in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def rows_of(sizes: dict[str, int]) -> list[tuple[str, str, str]]:
    rng = random.Random(3)
    return [
        (f"{source}-{number}", f"{source} {number} " + "가나다라마 " * rng.randint(1, 8), source)
        for source, size in sizes.items()
        for number in range(size)
    ]


def corpus_by_source(folder: Path, sizes: dict[str, int] = SIZES) -> Path:
    """A corpus whose sources are named by its files."""
    paths = [write(folder / f"raw/{name}.jsonl", [row for row in rows_of(sizes) if row[2] == name]) for name in sizes]
    inputs = [{"path": path, "source": path.stem, "id_column": "id"} for path in paths]
    run(CorpusBuild(CorpusConfig.model_validate({"inputs": inputs, "output": folder / "corpus"})))
    return folder / "corpus"


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus_by_source(tmp_path_factory.mktemp("weighted"))


def taken(corpus: Path, **options: object) -> dict[str, int]:
    found = dict.fromkeys(SIZES, 0)
    for batch in sample_rows(corpus, salt="s", **options):
        for row in batch:
            found[row.source] += len(row.text.encode())
    return found


def test_each_source_has_its_share_of_the_bytes(weighted: Path) -> None:
    found = taken(weighted, max_bytes=20_000, source_weights={"aihub_653": 2, "nsmc": 1, "law": 0})

    assert found["law"] == 0
    assert found["aihub_653"] == pytest.approx(13_333, abs=300)  # a document is up to 150 bytes
    assert found["nsmc"] == pytest.approx(6_667, abs=300)


def test_a_source_with_too_little_is_taken_whole_and_the_others_share_the_rest(weighted: Path) -> None:
    whole = taken(weighted, max_bytes=1 << 30)

    found = taken(weighted, max_bytes=20_000, source_weights={"aihub_653": 1, "nsmc": 1, "law": 8})

    assert found["law"] == whole["law"]
    assert found["aihub_653"] == pytest.approx((20_000 - whole["law"]) / 2, abs=300)
    assert found["nsmc"] == pytest.approx((20_000 - whole["law"]) / 2, abs=300)


def test_nothing_is_taken_twice_where_there_is_less_than_was_asked_for(weighted: Path) -> None:
    assert taken(weighted, max_bytes=1 << 30, source_weights={"aihub_653": 9, "nsmc": 1, "law": 1}) == taken(
        weighted, max_bytes=1 << 30
    )


def test_the_sample_depends_on_ids_and_not_on_the_order_of_rows(tmp_path: Path) -> None:
    """The documents are the same, in other places of other files."""
    rows = rows_of({"one": 400})
    options = {"max_bytes": 10_000, "salt": "s", "source_weights": {"": 1.0}}
    straight = make_corpus(tmp_path / "a", write(tmp_path / "raw/x.jsonl", rows))
    turned = make_corpus(tmp_path / "b", write(tmp_path / "other/x.jsonl", rows[::-1]))
    sources = [next(iter(sample_rows(corpus, max_bytes=1 << 30, salt="s")))[0].source for corpus in (straight, turned)]
    samples = [
        {row.text for batch in sample_rows(corpus, **{**options, "source_weights": {source: 1.0}}) for row in batch}
        for corpus, source in zip((straight, turned), sources, strict=True)
    ]

    assert samples[0] == samples[1]
    assert 50 < len(samples[0]) < 150


def test_another_seed_samples_other_documents(weighted: Path, tmp_path: Path) -> None:
    options = {"source_weights": {"aihub_653": 1, "nsmc": 1, "law": 1}}
    samples = [
        {
            row.text
            for batch in stage_of(weighted, tmp_path, seed=seed, **options).config.sample("train", max_bytes=9_000)
            for row in batch
        }
        for seed in (0, 0, 1)
    ]

    assert samples[0] == samples[1] != samples[2]


def test_the_card_tells_the_bytes_by_source(weighted: Path, tmp_path: Path) -> None:
    weights = {"aihub_653": 3, "nsmc": 1, "law": 0}
    run(stage_of(weighted, tmp_path, vocab_size=300, source_weights=weights, max_training_bytes=20_000))

    card = json.loads((tmp_path / "card.json").read_text())
    by_source = card["training"]["bytes_by_source"]
    assert set(by_source) == {"aihub_653", "nsmc"}
    assert sum(by_source.values()) == card["training"]["num_bytes"]
    assert card["training"]["source_weights"] == weights
    share = by_source["aihub_653"] / card["training"]["num_bytes"]
    assert share == pytest.approx(0.75, abs=0.02)
    assert f"| aihub_653 | {by_source['aihub_653']:,} | {share:.1%} | 75.0% |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (
            {"aihub_635": 1, "nsmc": 1, "law": 1},
            r"source_weights\.aihub_635: .* no such source; did you mean 'aihub_653'",
        ),
        ({"x": 1, **SIZES}, r"source_weights\.x: .*its sources are 'aihub_653', 'law', 'nsmc'"),
        ({"nsmc": 1}, "no weight for 'aihub_653', 'law' of .*give each one, 0 to leave it out"),
    ],
)
def test_weights_that_do_not_name_the_sources_are_refused(
    weighted: Path, tmp_path: Path, weights: dict[str, float], says: str
) -> None:
    with pytest.raises(StageError, match=says):
        run(stage_of(weighted, tmp_path / "out", source_weights=weights))

    assert not (tmp_path / "out").exists()


def test_a_corpus_whose_only_source_weighs_nothing_is_refused(tmp_path: Path) -> None:
    corpus = corpus_by_source(tmp_path, {"nsmc": 3})

    with pytest.raises(ValidationError, match=r"every weight is 0"):
        stage_of(corpus, tmp_path / "out", source_weights={"nsmc": 0})


def test_a_source_with_a_weight_and_no_training_text_is_not_enough(tmp_path: Path) -> None:
    corpus = corpus_by_source(tmp_path, {"nsmc": 3})
    manifest = json.loads((corpus / "manifest.json").read_text())
    # As where every document of a source is held out.
    write_manifest(corpus, {**manifest, "sources": {**manifest["sources"], "law": {"num_records": 9}}})

    with pytest.raises(StageError, match=r"no training text of the sources with a weight above 0 \('law'\)"):
        source_limits(corpus, max_bytes=1, salt="s", source_weights={"nsmc": 0, "law": 1})


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_a_weight_that_is_no_share_is_refused(weighted: Path, tmp_path: Path, weight: float) -> None:
    with pytest.raises(ValidationError, match=r"source_weights\.nsmc"):
        stage_of(weighted, tmp_path, source_weights={"aihub_653": 1, "nsmc": weight, "law": 1})


amounts = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 10_000), min_size=1)


@given(available=amounts, data=st.data(), max_bytes=st.integers(1, 30_000))
def test_allotted_bytes_are_all_that_can_be_had(available: dict[str, int], data: st.DataObject, max_bytes: int) -> None:
    weights = {source: data.draw(st.sampled_from([0, 0.5, 1, 2, 7])) for source in available}

    found = allot(available, weights, max_bytes=max_bytes)

    in_reach = sum(available[source] for source, weight in weights.items() if weight > 0)
    assert sum(found.values()) == pytest.approx(min(max_bytes, in_reach))
    assert all(0 <= found[source] <= available[source] + 1e-9 for source in found)
    levels = {round(found[source] / weights[source], 6) for source in found if 0 < found[source] < available[source]}
    assert len(levels) <= 1
