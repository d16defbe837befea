"""`dure tokenizer extend --model`: models of BERT's kind with new tokens, unchanged for old texts, to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from data_pipeline.stage import read_manifest, verify_files
from launch.cli import main

pytestmark = pytest.mark.stages

WORDS = ["나무", "바다", "##는", "##가", "푸르", "##다", "##무", "나", "i", "##f", "##c", "a", "##b"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ["나무는 푸르다", "바다가 푸르다 나", "ifc ab"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights with a WordPiece tokenizer of its usual form."""
    import transformers

    folder = tmp_path_factory.mktemp("bert") / "model"
    torch.manual_seed(1)
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *WORDS])}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=40, **sizes)
    model: Any = transformers.BertForMaskedLM(config)
    torch.nn.init.normal_(model.cls.predictions.bias)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(SPECIAL)
    roles = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    wrapped = transformers.BertTokenizerFast(tokenizer_object=tokenizer, **roles)
    wrapped.save_pretrained(folder)
    return folder


def extend(bert: Path, output: Path, *flags: str) -> int:
    terms = output.with_suffix(".txt")
    terms.write_text("[newtoken]\nIfcBuilding\n")
    return main(
        [
            "tokenizer",
            "extend",
            str(bert),
            "--tokens",
            str(terms),
            "--output",
            str(output),
            "--model",
            str(bert),
            *flags,
        ]
    )


def opened(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    return AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_old_texts_give_what_they_gave_to_the_bit(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extend(bert, tmp_path / "out") == 0
    assert "outputs equal to the bit" in capsys.readouterr().out
    (old, old_tokenizer), (new, new_tokenizer) = opened(bert), opened(tmp_path / "out")

    for text in TEXTS:
        ids = old_tokenizer(text, return_tensors="pt").input_ids
        assert torch.equal(new_tokenizer(text, return_tensors="pt").input_ids, ids)
        assert torch.equal(new(ids).logits[..., : len(old_tokenizer)], old(ids).logits)
        assert torch.equal(new.bert(ids).last_hidden_state, old.bert(ids).last_hidden_state)


def test_new_tokens_are_one_id_with_a_row_of_their_pieces(bert: Path, tmp_path: Path) -> None:
    assert extend(bert, tmp_path / "out") == 0
    model, tokenizer = opened(tmp_path / "out")
    old = len(opened(bert)[1])

    ids = tokenizer("나무 IfcBuilding는 [newtoken]", add_special_tokens=False).input_ids
    told = json.loads((tmp_path / "out/extension.json").read_text())

    assert old in ids
    assert old + 1 in ids
    assert model.config.vocab_size == 64
    weight = model.get_input_embeddings().weight
    assert torch.allclose(weight[old], weight[told["tokens"][0]["pieces"]].mean(0), atol=1e-7)
    assert model.get_output_embeddings().weight is weight


def test_a_row_copied_from_cls_gives_the_outputs_of_cls(bert: Path, tmp_path: Path) -> None:
    assert extend(bert, tmp_path / "out", "--init", "copy:[CLS]") == 0
    model, tokenizer = opened(tmp_path / "out")
    with_cls = tokenizer("나무는 푸르다", return_tensors="pt").input_ids
    with_new = with_cls.clone()
    with_new[0, 0] = tokenizer.convert_tokens_to_ids("[newtoken]")
    assert int(with_cls[0, 0]) == 2

    one, two = model(with_cls).logits, model(with_new).logits

    assert torch.equal(one, two)
    assert torch.equal(one[..., 2], one[..., int(with_new[0, 0])])


def test_a_finished_tokenizer_gets_its_model_and_a_second_call_does_nothing(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, terms = tmp_path / "out", tmp_path / "out.txt"
    terms.write_text("[newtoken]\nIfcBuilding\n")
    assert main(["tokenizer", "extend", str(bert), "--tokens", str(terms), "--output", str(output)]) == 0
    assert not (output / "config.json").exists()

    assert extend(bert, output) == 0

    assert "outputs equal to the bit" in capsys.readouterr().out
    manifest = read_manifest(output, kind="tokenizer")
    assert verify_files(output, manifest) == [] and {"model.safetensors", "tokenizer.json"} <= {
        entry["name"] for entry in manifest["files"]
    }
    assert opened(output)[0].config.vocab_size == 64
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert extend(bert, output) == 0
    assert main(["tokenizer", "extend", str(bert), "--tokens", str(terms), "--output", str(output)]) == 0
    assert capsys.readouterr().out.count("up to date (이미 완료)") == 2
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    assert extend(bert, output, "--init", "random") == 2
    told = f"holds a model of {bert} with init 'mean_of_subtokens', now it is 'random'; give another --output"
    assert told in capsys.readouterr().err


def test_another_models_tokenizer_is_refused(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(bert, other)
    tree = json.loads((other / "tokenizer.json").read_text())
    tree["normalizer"] = None
    (other / "tokenizer.json").write_text(json.dumps(tree))
    (tmp_path / "terms.txt").write_text("IfcBuilding\n")
    words = ["tokenizer", "extend", str(other), "--tokens", str(tmp_path / "terms.txt")]

    assert main([*words, "--output", str(tmp_path / "out"), "--model", str(bert)]) == 2
    assert "extend the model's own tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert extend(bert, tmp_path / "out", "--init", "mean") == 2
    assert "'mean' is no way to begin a row" in capsys.readouterr().err
    assert main([*words, "--output", str(tmp_path / "out"), "--model", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
