"""Training: the asked size exactly, the same tokenizer each time, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from trained_tokenizer import KINDS, OF_WORDS, VOCAB_SIZE, make_corpus, run, stage_of, write_documents

from data_pipeline import disk
from data_pipeline.stage import StageError, read_manifest, verify_files
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.fingerprint import tokenizer_fingerprint
from data_pipeline.tokenizer.measure import measure_hostile
from data_pipeline.tokenizer.recipe import choose_alphabet
from data_pipeline.tokenizer.sample import sample_texts
from data_pipeline.tokenizer.special import SPECIAL_TOKENS, TEMPLATE_MARKERS

REPO = Path(__file__).resolve().parents[3]


def vocabulary(folder: Path) -> dict[str, int]:
    found = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return found if isinstance(found, dict) else {piece: number for number, (piece, _) in enumerate(found)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_has_exactly_the_asked_size_and_begins_with_the_special_tokens(trained, kind: str) -> None:
    ids = vocabulary(trained[kind])

    assert sorted(ids.values()) == list(range(VOCAB_SIZE))
    assert [ids[token] for token in SPECIAL_TOKENS] == list(range(38))
    added = json.loads((trained[kind] / "tokenizer.json").read_text())["added_tokens"]
    expected = [*SPECIAL_TOKENS, *(TEMPLATE_MARKERS if kind in OF_WORDS else ())]
    assert [(token["id"], token["content"], token["special"]) for token in added] == [
        (number, content, True) for number, content in enumerate(expected)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_training_again_in_another_process_gives_the_same_file(
    corpus: Path, trained, tmp_path: Path, kind: str
) -> None:
    script = f"""
        import sys
        sys.path[:0] = {[str(REPO), str(Path(__file__).parent)]!r}
        from pathlib import Path
        from trained_tokenizer import run, stage_of
        run(stage_of(Path({str(corpus)!r}), Path({str(tmp_path / "again")!r}), kind={kind!r}))
    """
    environment = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env=environment)

    for name in ("tokenizer.json", "card.json", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (trained[kind] / name).read_bytes(), name


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_the_folder_and_gives_the_same_ids(trained: dict[str, Path], kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained[kind])
    encoder = Encoder(trained[kind])
    text = "강릉에서 바다를 보았다. 1234년!\n\n할머니"

    assert tokenizer(text)["input_ids"] == encoder.encode_batch([text])[0].tolist()
    assert len(tokenizer) == VOCAB_SIZE
    roles = ("bos", "eos", "pad", "unk", "mask", "sep", "cls")
    assert [getattr(tokenizer, f"{role}_token_id") for role in roles] == [0, 0, 1, 2, 3, 4, 5]
    assert tokenizer("<|endoftext|>", split_special_tokens=False)["input_ids"] == [0]
    decoded = tokenizer.decode(tokenizer(text)["input_ids"])
    assert decoded.split() == text.split() if kind in OF_WORDS else decoded == text


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_and_the_card_say_what_was_made(corpus: Path, trained: dict[str, Path], kind: str) -> None:
    manifest = read_manifest(trained[kind], kind="tokenizer")

    assert verify_files(trained[kind], manifest) == []
    assert sorted(path.name for path in trained[kind].iterdir()) == sorted(
        ["manifest.json", *(entry["name"] for entry in manifest["files"])]
    )
    assert manifest["tokenizer_fingerprint"] == tokenizer_fingerprint(trained[kind])
    assert manifest["corpus_manifest_sha256"] == read_manifest(corpus, kind="corpus")["manifest_sha256"]
    assert manifest["vocab_size"] == VOCAB_SIZE
    card = json.loads((trained[kind] / "card.json").read_text())
    assert card["training"]["num_documents"] == 120
    assert card["training"]["num_bytes"] == read_manifest(corpus, kind="corpus")["num_text_bytes"]
    assert card["corpus_sample"]["num_texts"] == 120
    assert card["corpus_sample"]["round_trip_rate"] == (0.0 if kind in OF_WORDS else 1.0)
    assert card["hostile"]["hanja"]["unk_rate"] == (pytest.approx(0.7, abs=0.2) if kind in OF_WORDS else 0.0)
    page = (trained[kind] / "README.md").read_text()
    assert card["fingerprint"] in page
    assert f"{card['corpus_sample']['bytes_per_token']:.3f}" in page
    assert ("공백과 줄바꿈은 보존되지 않고" in page) == (kind in OF_WORDS)


def test_a_text_in_nfd_is_measured_as_a_user_gives_it(trained: dict[str, Path], tmp_path: Path) -> None:
    sound = measure_hostile(Encoder(trained["byte_level_bpe"]))["nfd"]
    folder = tmp_path / "without"
    shutil.copytree(trained["byte_level_bpe"], folder)
    tree = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tree | {"normalizer": None}))
    lost = measure_hostile(Encoder(folder))["nfd"]

    assert (sound.num_exact, sound.num_lost) == (1, 0)
    assert (lost.num_exact, lost.num_chars) == (0, sound.num_chars)
    assert lost.num_lost > 0
    assert lost.num_tokens > sound.num_tokens


def test_a_size_that_the_text_can_not_fill_is_an_error_with_the_reached_one(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"vocab_size: 32,000 was asked for, .* gave [1-4],\d{3} .*set vocab_size: \d{4} or"
    ):
        run(stage_of(corpus, tmp_path / "out", vocab_size=32_000))

    assert not (tmp_path / "out/manifest.json").exists()


def test_a_size_without_room_for_the_bytes_is_an_error(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"vocab_size: 100 was asked for, .* gave 294"):
        run(stage_of(corpus, tmp_path / "out", vocab_size=100))


def test_an_alphabet_that_leaves_no_room_is_an_error(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"vocab_size: 200, but 49 special tokens and \d+ forms .* lower max_alphabet"):
        run(stage_of(corpus, tmp_path / "out", vocab_size=200, kind="hash_hash_bpe"))


def test_the_alphabet_is_the_required_characters_and_then_the_most_frequent() -> None:
    texts = [["가가가 나나 다", "라"]]

    assert choose_alphabet(iter(texts), required="힣 힣", max_alphabet=1)[-1] == "힣"
    base = len(choose_alphabet(iter([]), required="힣", max_alphabet=1))
    chosen = choose_alphabet(iter(texts), required="힣", max_alphabet=base + 3)
    assert chosen == sorted(chosen)
    assert [character for character in chosen if "가" <= character <= "힣"] == ["가", "나", "다", "힣"]
    assert " " not in chosen


def test_characters_outside_the_alphabet_are_unknown(corpus: Path, tmp_path: Path) -> None:
    base = len(choose_alphabet(iter([]), required="".join(TEMPLATE_MARKERS), max_alphabet=1))

    manifest = run(stage_of(corpus, tmp_path / "out", kind="hash_hash_bpe", vocab_size=400, max_alphabet=base + 10))

    template = set("".join(TEMPLATE_MARKERS))
    singles = {token for token in vocabulary(tmp_path / "out") if len(token) == 1 and "가" <= token <= "힣"}
    assert len(singles - template) == 10
    assert manifest["unk_rate"] > 0.1


def test_held_out_documents_are_never_trained_on(tmp_path: Path) -> None:
    paths = [
        write_documents(tmp_path / f"{split}/docs.jsonl", seed=seed)
        for seed, split in enumerate(["1.Training", "2.Validation"])
    ]
    secret = json.dumps({"text": "쀍쀍쀍쀍 " * 50}, ensure_ascii=False)
    paths[1].write_text(paths[1].read_text() + secret)

    folder = make_corpus(tmp_path / "corpus", *paths)
    manifest = run(stage_of(folder, tmp_path / "out", kind="hash_hash_bpe"))

    assert "쀍" not in vocabulary(tmp_path / "out")
    assert manifest["vocab_size"] == VOCAB_SIZE
    assert json.loads((tmp_path / "out/card.json").read_text())["training"]["num_documents"] == 120


def test_a_corpus_of_only_held_out_documents_is_an_error(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path / "corpus", write_documents(tmp_path / "2.Validation/docs.jsonl", num_documents=3))

    with pytest.raises(StageError, match="no document to train a tokenizer on"):
        run(stage_of(folder, tmp_path / "out"))


def test_a_share_of_a_corpus_is_the_same_each_time_and_about_the_asked_size(corpus: Path) -> None:
    whole = [text for batch in sample_texts(corpus, max_bytes=1 << 30, salt="a") for text in batch]
    half = [
        text
        for batch in sample_texts(corpus, max_bytes=sum(len(t.encode()) for t in whole) // 2, salt="a")
        for text in batch
    ]
    other = [
        text
        for batch in sample_texts(corpus, max_bytes=sum(len(t.encode()) for t in whole) // 2, salt="b")
        for text in batch
    ]

    assert len(whole) == 120
    assert 40 < len(half) < 80
    assert set(half) < set(whole)
    assert half != other


def test_equal_inputs_are_done_and_others_are_not(corpus: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(trained["byte_level_bpe"], folder)

    assert stage_of(corpus, folder).is_done()
    assert not stage_of(corpus, folder, min_frequency=3).is_done()
    other = make_corpus(tmp_path / "other", write_documents(tmp_path / "docs.jsonl", seed=5))
    assert not stage_of(other, folder).is_done()


def test_a_finished_tokenizer_of_other_inputs_is_refused_and_stays(
    corpus: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(trained["byte_level_bpe"], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = stage_of(corpus, folder, min_frequency=3)

    with pytest.raises(StageError) as caught:
        run(other)

    ours = stage_of(corpus, folder).inputs_sha256
    said = f"holds a tokenizer of other inputs ({ours[:12]}…, now {other.inputs_sha256[:12]}…): "
    assert f"{said}config.min_frequency 2, now 3; give another output folder, or remove this one" in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    run(stage_of(corpus, folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.stages), 17])
def test_killed_at_any_write_and_run_again_gives_the_same_result(
    corpus: Path, trained, tmp_path: Path, stride: int
) -> None:
    expected = {
        path.name: path.read_bytes() for path in trained["byte_level_bpe"].iterdir() if path.name != "manifest.json"
    }
    at, is_killed = 0, True
    while is_killed:
        folder = tmp_path / f"out{at}"
        is_killed = killed_training(corpus, folder, at)
        if is_killed:
            run(stage_of(corpus, folder))
        found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
        assert {name: data for name, data in found.items() if not name.startswith(".")} == expected
        at += stride

    assert at > 60


def killed_training(corpus: Path, folder: Path, at: int) -> bool:
    moments = iter(range(at))

    def die(*_: object) -> None:
        if next(moments, None) is None:
            raise Killed

    disk.set_probe(die)
    try:
        run(stage_of(corpus, folder))
    except Killed:
        return True
    finally:
        disk.set_probe(None)
    return False


def test_training_is_not_done_again_when_only_measuring_was_killed(corpus: Path, tmp_path: Path) -> None:
    stage = stage_of(corpus, tmp_path / "out")
    train, _ = stage.plan()
    stage.run(train)
    before = (tmp_path / "out/tokenizer.json").stat().st_ino

    with pytest.raises(StageError, match="task 'measure' is not done"):
        stage.finish()
    run(stage_of(corpus, tmp_path / "out"))

    assert (tmp_path / "out/tokenizer.json").stat().st_ino == before


def test_what_another_config_left_is_not_taken_for_ones_own(corpus: Path, trained, tmp_path: Path) -> None:
    other = stage_of(corpus, tmp_path / "out", vocab_size=500)
    for task in other.plan():
        other.run(task)

    run(stage_of(corpus, tmp_path / "out"))

    found = (tmp_path / "out/tokenizer.json").read_bytes()
    assert found == (trained["byte_level_bpe"] / "tokenizer.json").read_bytes()


def test_an_unfinished_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()

    with pytest.raises(StageError, match=r"unfinished folder .*finished corpus is needed"):
        stage_of(tmp_path / "corpus", tmp_path / "out").plan()


def test_a_folder_of_other_files_is_never_written_to(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("x")

    with pytest.raises(StageError, match=r"holds thesis\.txt, which no tokenizer training wrote"):
        stage_of(corpus, tmp_path / "out").plan()

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
