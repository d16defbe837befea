"""`dure chat`, `dure generate` and `dure export` as a person calls them, over a model that answers."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from launch import cli
from launch.verb_generate import Source
from tests.trainer.small_world import SmallWorld, question, small_world
from tests.trainer.tiny_run import REPO, environment
from trainer.conversation import Speaker, open_speaker
from trainer.errors import RunError
from trainer.generate import Sampling
from trainer.output_lock import only_writer
from trainer.saved import Saved, find_saved, usual_dtype

pytestmark = pytest.mark.stages

FOX, DEER = question("작은", "여우", "숲"), question("큰", "사슴", "강")
ROWS = [{"instruction": question("큰", "토끼", place)} for place in ("산", "강", "바다", "마을", "숲")]


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return small_world()


@pytest.fixture(scope="module")
def speaker(world: SmallWorld) -> Speaker:
    return open_speaker(find_saved(world.talker))


def said(speaker: Speaker, *turns: str, sampling: Sampling | None = None, row: int = 0) -> str:
    """The answer to the last turn, when the others stood before it."""
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    prompt = speaker.prompt_ids(messages)
    sampling = sampling or Sampling(max_new_tokens=24)
    (answer,) = speaker.answers([prompt], sampling=sampling, batch_size=1, rows=[row])
    return speaker.text_of(answer.ids)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_chat_through_a_pipe_remembers_until_it_is_reset(world: SmallWorld, speaker: Speaker) -> None:
    command = [sys.executable, "-m", "launch.cli", "chat", str(world.talker), "--max-new-tokens", "24"]
    # Even where LANG knows no Korean.
    done = subprocess.run(
        command,
        cwd=REPO,
        env=environment(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0"),
        input="\n".join([FOX, DEER, "/reset", DEER, "/quit", FOX]).encode(),
        capture_output=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr.decode()
    first = said(speaker, FOX)
    with_history, fresh = said(speaker, FOX, first, DEER), said(speaker, DEER)
    assert done.stdout.decode().split("\n") == [first, with_history, fresh, ""]
    told = done.stderr.decode()
    assert told.count(" tokens/s]") == 3 and told.count(" s, ") == 3
    assert "template koalpaca" in told and "대화를 처음부터" in told
    assert "Traceback" not in told and "Loading weights" not in told


def test_history_reaches_the_model(speaker: Speaker) -> None:
    alone = speaker.prompt_ids([{"role": "user", "content": DEER}])
    messages = [("user", FOX), ("assistant", "숲에 산다."), ("user", DEER)]
    later = speaker.prompt_ids([{"role": role, "content": text} for role, text in messages])

    assert later[-len(alone) :] == alone and len(later) > len(alone)


class Typed(io.StringIO):
    """Lines from a pipe."""

    def isatty(self) -> bool:
        return False


def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str, typed: list[str]) -> Any:
    monkeypatch.setattr(sys, "stdin", Typed("\n".join(typed)))
    assert cli.main(["chat", *words]) == 0
    return capsys.readouterr()


def test_sampled_chat_is_fixed_by_its_seed_and_each_answer_has_a_row_of_its_own(
    world: SmallWorld, speaker: Speaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--temperature", "3", "--top-k", "50", "--top-p", "0.95", "--max-new-tokens", "8", "--seed", "4"]
    typed = [DEER, "/reset", DEER, "/reset", DEER]

    printed = chat(monkeypatch, capsys, str(world.talker), *flags, typed=typed)

    sampling = Sampling(max_new_tokens=8, temperature=3.0, top_k=50, top_p=0.95, seed=4)
    expected = [said(speaker, DEER, sampling=sampling, row=row) for row in range(3)]
    assert printed.out == "".join(f"{text}\n" for text in expected)
    assert len(set(expected)) == 3


def test_chat_says_where_an_answer_was_cut(
    world: SmallWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = chat(monkeypatch, capsys, str(world.talker), "--max-new-tokens", "2", typed=[DEER])
    whole = chat(monkeypatch, capsys, str(world.talker), "--max-new-tokens", "24", typed=[DEER])
    # So hot that every id is as likely as another, whatever the weights: 1 in 420 would be EOS.
    flags = ["--temperature", "1000000", "--max-new-tokens", "500"]
    full = chat(monkeypatch, capsys, str(world.talker), *flags, typed=[DEER])

    assert "cut at --max-new-tokens 2]" in cut.err
    assert "cut" not in whole.err
    assert "cut where the model's 128 positions are full]" in full.err


def test_chat_forgets_what_no_longer_fits_and_says_so(
    world: SmallWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [FOX, DEER, FOX, DEER, "가" * 200, FOX]

    printed = chat(monkeypatch, capsys, str(world.talker), "--max-new-tokens", "24", typed=typed)

    assert "no longer fit, and are forgotten" in printed.err
    assert "tokens, but the model has 128 positions; shorten the prompt or its history" in printed.err
    assert len(printed.out.splitlines()) == 5, "all but the one that is too long are answered"


def test_a_model_without_a_template_goes_on_with_a_text_only_when_asked_to(
    world: SmallWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Typed("고양이는"))
    assert cli.main(["chat", str(world.base)]) == 2
    assert "tuned with no template" in capsys.readouterr().err

    printed = chat(
        monkeypatch, capsys, str(world.base), "--template", "none", "--max-new-tokens", "4", typed=["고양이는"]
    )

    assert "goes on with each line by itself" in printed.err


def test_without_a_template_nothing_of_a_row_is_lost(speaker: Speaker) -> None:
    messages = [{"role": "system", "content": "짧게"}, {"role": "user", "content": "요약해라", "input": "긴 글"}]

    ids = replace(speaker, template=None).prompt_ids(messages)

    assert speaker.encoder.tokenizer.decode(ids, skip_special_tokens=False) == "짧게\n요약해라\n긴 글"


def test_generate_answers_each_row_as_it_would_be_answered_alone(
    world: SmallWorld, speaker: Speaker, tmp_path: Path
) -> None:
    rows = [*ROWS, {"question": FOX, "answer": "숲에 산다.", "id": "x"}]
    source = write_rows(tmp_path / "rows.jsonl", rows)

    words = ["generate", str(world.talker), "--input", str(source), "--max-new-tokens", "24", "--batch", "3"]
    assert cli.main(words) == 0

    lines = lines_of(tmp_path / "rows.answers.jsonl")
    asked = [row.get("instruction") or row["question"] for row in rows]
    assert [line["row"] for line in lines] == list(range(6))
    assert [line["answer"] for line in lines] == [said(speaker, text) for text in asked]
    assert lines[5] | {"answer": ""} == {
        "row": 5, "question": FOX, "id": "x", "expected": "숲에 산다.", "answer": "", "ended": True,
        "num_tokens": lines[5]["num_tokens"],
    }  # fmt: skip


def test_generate_goes_on_with_a_file_that_was_cut(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "answers.jsonl"
    flags = ["--temperature", "2", "--max-new-tokens", "6", "--seed", "1", "--batch", "2"]
    words = ["generate", str(world.talker), "--input", str(source), "--output", str(output), *flags]
    assert cli.main(words) == 0
    whole = output.read_bytes()
    # Two lines and a torn third: what a kill leaves. The second is altered, to see that it is not asked again.
    kept = whole.splitlines(keepends=True)
    marked = json.dumps(json.loads(kept[1]) | {"mark": 1}).encode() + b"\n"
    output.write_bytes(kept[0] + marked + kept[2][:9])
    capsys.readouterr()

    assert cli.main(words) == 0

    printed = capsys.readouterr().out
    assert "2 of 5 rows are answered; going on" in printed and "3 rows answered" in printed
    assert output.read_bytes() == kept[0] + marked + b"".join(kept[2:])
    assert cli.main(words) == 0
    assert "all 5 rows are answered already" in capsys.readouterr().out


def test_rows_that_can_not_be_asked_stand_among_the_answers(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "rows.csv", tmp_path / "answers.jsonl"
    source.write_bytes("번호,원문\n1,작은 여우\n2,\n3,큰 사슴\n".encode("cp949"))
    words = ["generate", str(world.talker), "--input", str(source), "--output", str(output), "--task", "translate"]

    assert cli.main([*words, "--max-new-tokens", "4"]) == 0

    printed = capsys.readouterr().out
    assert "1 of 3 rows can't be asked" in printed and "1 empty_text: row 1: the text is empty" in printed
    assert "2 rows answered (완료)" in printed
    lines = lines_of(output)
    assert [line["row"] for line in lines] == [0, 1, 2]
    assert [line.get("원문") for line in lines] == ["작은 여우", None, "큰 사슴"]
    assert lines[1] == {"row": 1, "error": "empty_text: the text is empty, or space alone"}
    assert cli.main([*words, "--max-new-tokens", "4"]) == 0
    assert "all 3 rows are answered already" in capsys.readouterr().out


def test_generate_refuses_a_file_that_was_made_in_another_way(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_rows(tmp_path / "rows.jsonl", ROWS[:1]), tmp_path / "answers.jsonl"
    words = ["generate", str(world.talker), "--input", str(source), "--output", str(output), "--max-new-tokens"]
    assert cli.main([*words, "4"]) == 0
    before = output.read_bytes()

    assert cli.main([*words, "5"]) == 2
    assert "its answers were made with sampling" in capsys.readouterr().err
    write_rows(source, ROWS[:2])
    assert cli.main([*words, "4"]) == 2
    assert "its answers were made with input_sha256" in capsys.readouterr().err
    (tmp_path / "answers.jsonl.made_with.json").unlink()
    assert cli.main([*words, "4"]) == 2
    assert "exists already, and `dure generate` did not write it" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_generate_looks_at_every_prompt_before_it_answers_the_first(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*ROWS, {"instruction": "가" * 200}, *ROWS, {"instruction": "나" * 300}]
    source = write_rows(tmp_path / "rows.jsonl", rows)

    assert cli.main(["generate", str(world.talker), "--input", str(source), "--batch", "1"]) == 2

    said = capsys.readouterr().err
    assert re.search(
        r"rows.jsonl: row 5: its prompt has \d{3} tokens, but the model has 128 positions \(2 rows are too long\); "
        "shorten such rows, or leave them out",
        said,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_second_generate_on_the_same_file_ends_and_says_who_writes_it(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", ROWS)

    with only_writer(tmp_path / "rows.answers.jsonl"):
        assert cli.main(["generate", str(world.talker), "--input", str(source)]) == 2

    assert f"rows.answers.jsonl: pid {os.getpid()} on " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_generate_goes_on_with_the_same_weights_wherever_they_lie_and_with_no_others(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", ROWS)
    assert cli.main(["export", str(world.talker), "--output", str(tmp_path / "model")]) == 0
    flags = ["--input", str(source), "--max-new-tokens", "4"]
    assert cli.main(["generate", str(tmp_path / "model"), *flags]) == 0
    output = tmp_path / "rows.answers.jsonl"
    before = output.read_bytes()
    (tmp_path / "model").rename(tmp_path / "moved")
    capsys.readouterr()

    assert cli.main(["generate", str(tmp_path / "moved"), *flags]) == 0
    assert "all 5 rows are answered already" in capsys.readouterr().out
    weights = tmp_path / "moved" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert cli.main(["generate", str(tmp_path / "moved"), *flags]) == 2

    said = capsys.readouterr().err
    assert re.search(
        r"were made with weights_sha256 '[0-9a-f]{64}', this call has '[0-9a-f]{64}'; name .*/model to", said
    )
    assert output.read_bytes() == before


def test_generate_does_not_mix_the_answers_of_two_steps_of_a_run(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", ROWS[:1])
    flags = ["--input", str(source), "--template", "none", "--max-new-tokens", "2"]
    assert cli.main(["generate", str(world.base / "checkpoints" / "step-00000008"), *flags]) == 0

    assert cli.main(["generate", str(world.base), *flags]) == 2

    assert re.search(r"made with step 8, this call has 12; name .*step-00000008 to go on", capsys.readouterr().err)


def test_an_output_whose_lines_were_changed_is_refused(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", ROWS)
    words = ["generate", str(world.talker), "--input", str(source), "--max-new-tokens", "2"]
    assert cli.main(words) == 0
    output = tmp_path / "rows.answers.jsonl"
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join([*lines[:1], *lines[2:]]))

    assert cli.main(words) == 2

    assert "answer 2 is of row 2, not of row 1; the file was changed" in capsys.readouterr().err


def test_rows_that_change_while_they_are_read_are_not_mixed(tmp_path: Path) -> None:
    source = Source.of(write_rows(tmp_path / "rows.jsonl", ROWS))
    source.check_unchanged()
    write_rows(tmp_path / "rows.jsonl", ROWS[:2])

    with pytest.raises(
        RunError, match=r"rows.jsonl: was changed while it was read: \d+ bytes, now \d+; the answers so"
    ):
        source.check_unchanged()


def evaluated(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, dict[str, Any]]:
    assert cli.main(["evaluate", *words]) == 0
    printed = capsys.readouterr().out
    (path,) = (line.removeprefix("written: ") for line in printed.splitlines() if line.startswith("written: "))
    result: dict[str, Any] = json.loads(Path(path).read_text())
    return printed, result


def test_evaluate_says_in_what_it_computed(world: SmallWorld, capsys: pytest.CaptureFixture[str]) -> None:
    printed, usual = evaluated(capsys, str(world.base))
    rounded_printed, rounded = evaluated(capsys, str(world.base), "--dtype", "bf16")

    assert f"bits_per_byte  {usual['bits_per_byte']:.4f} (in fp32)" in printed
    assert f"bits_per_byte  {rounded['bits_per_byte']:.4f} (in bf16)" in rounded_printed
    assert (usual["dtype"], rounded["dtype"], usual["quantization"]) == ("fp32", "bf16", None)
    # Other figures, but of the same model.
    assert usual["loss"] != rounded["loss"] and abs(usual["loss"] - rounded["loss"]) < 0.05


def test_evaluate_leaves_a_base_of_4_bits_in_4_bits(world: SmallWorld, capsys: pytest.CaptureFixture[str]) -> None:
    run = world.tuned("qlora", base=world.base, adapter={"rank": 4}, quantization={"compute_dtype": "fp32"})

    printed, result = evaluated(capsys, str(run), "--dtype", "bf16")

    assert "(in bf16, base held in nf4)" in printed
    assert (result["dtype"], result["quantization"]) == ("bf16", "nf4")


def test_a_saved_model_is_held_in_its_own_precision_on_a_gpu_and_in_float32_without_one(
    world: SmallWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = find_saved(world.base)
    folder = Saved(world.root, None, None, None)

    here = {gpu: usual_on(monkeypatch, saved, folder, gpu=gpu) for gpu in (False, True)}

    assert here == {False: ["fp32", "fp32", "fp32"], True: ["fp32", "bf16", "bf16"]}


def usual_on(monkeypatch: pytest.MonkeyPatch, saved: Saved, folder: Saved, *, gpu: bool) -> list[str]:
    """Of a run in float32, the same in bf16, and a folder."""
    assert saved.config is not None
    steps = saved.config.train.model_copy(update={"precision": "bf16"})
    in_bf16 = replace(saved, config=saved.config.model_copy(update={"train": steps}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    return [usual_dtype(each) for each in (saved, in_bf16, folder)]


def test_export_says_what_it_wrote_and_refuses_to_write_over_it(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(world.talker), "--output", str(tmp_path / "out")]

    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "full weights" in printed and "model.safetensors" in printed and "fill in the fields of" in printed
    assert cli.main(words) == 2
    assert "out: exists already" in capsys.readouterr().err
    assert cli.main([*words[:3], str(tmp_path / "other"), "--merge"]) == 2
    assert "has no adapter to merge" in capsys.readouterr().err
    assert cli.main([*words[:3], str(tmp_path / "other"), "--base-name", "a/b"]) == 2
    assert "was trained from no base" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "RUN"], "--input: no file given"),
        (["export", "RUN"], "--output: no folder given"),
        (["chat", "RUN", "--temperature", "warm"], "--temperature: 'warm' is not a number; give one like 0.7"),
        (["chat", "RUN", "--top-p", "2"], "sampling.top_p: 2.0 was given; it must be above 0 and at most 1"),
        (["chat", "nowhere"], "nowhere: not a run folder"),
        (["chat", "RUN", "--top-p", "0.9"], "--top-p: 0.9 was given, but at --temperature 0 (greedy) nothing is drawn"),
        (["chat", "RUN", "--top-k", "5"], "--top-k: 5 was given, but at --temperature 0 (greedy) nothing is drawn"),
        (["chat", "RUN", "--seed", "5"], "--seed: 5 was given, but at --temperature 0 (greedy) nothing is drawn"),
        (["generate", "RUN", "--input", "nowhere.jsonl"], "--input: nowhere.jsonl: no such file; name a JSONL file"),
        (["generate", "RUN", "--input", os.devnull], f"--input: {os.devnull}: no such file"),
    ],
)
def test_a_call_that_can_not_be_meant_is_refused_with_what_to_do(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err
