"""Tasks of lm-eval on our models: their likelihoods are those of plain transformers, and what is missing is named."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.config import ConfigError
from launch.evaluate_tasks import GROUP_FOLDERS, TASKS_NAME, evaluate_tasks, task_lines
from tests.trainer.small_world import ANIMALS, PLACES, SmallWorld, question, small_world
from tests.trainer.tiny_run import lines_of
from trainer.errors import RunError
from trainer.lm_eval_tasks import as_lm, load_groups, require_lm_eval, run_groups
from trainer.saved import find_saved
from trainer.task_groups import TaskGroup, find_groups

GROUPS = ("kobest", "haerae", "kmmlu", "click")
NO_LM_EVAL = "lm-eval is not installed: pip install 'dure[eval]' to run its tasks"
CHOICE = """
task: where_animals_live
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "### 질문: {{{{question}}}}\\n\\n### 답변:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 2.5}}
"""
WRITTEN = """
task: say_where_animals_live
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: "### 질문: {{{{question}}}}\\n\\n### 답변:"
doc_to_target: " {{{{choices[answer]}}}}"
num_fewshot: 0
generation_kwargs: {{until: ["\\n"], max_gen_toks: 24, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


def test_each_group_of_the_configs_says_its_tasks_its_examples_and_its_metric() -> None:
    found = find_groups(GROUPS, folders=GROUP_FOLDERS)

    assert [group.name for group in found] == list(GROUPS)
    assert [(group.num_fewshot, group.metric) for group in found] == [(5, "f1"), (3, "acc"), (5, "acc"), (0, "acc")]


def test_a_name_that_no_file_has_is_lm_evals_own() -> None:
    assert find_groups(["kmmlu_direct"], folders=GROUP_FOLDERS) == [TaskGroup("kmmlu_direct", ("kmmlu_direct",))]


def test_a_file_may_set_keys_of_its_tasks_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "tasks: [kobest_copa]\nmetric: acc\noverrides: {dataset_kwargs: {revision: refs/convert/parquet}}\n"
    )

    (group,) = find_groups([str(path)], folders=())

    assert group.specs == ({"task": "kobest_copa", "dataset_kwargs": {"revision": "refs/convert/parquet"}},)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks: [a]\nnum_fewshots: 3\n", "num_fewshots: unknown key; did you mean 'num_fewshot'?"),
        ("tasks: []\n", "tasks"),
        ("dataset_path: json\n", "neither a group of ours (tasks: [NAME, …]) nor a task of lm-eval (task: NAME)"),
    ],
)
def test_a_file_that_names_no_task_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)

    with pytest.raises((RunError, ConfigError)) as found:
        find_groups([str(path)], folders=())

    assert said in str(found.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(RunError, match=r"--tasks: nowhere\.yaml: no such file"):
        find_groups(["nowhere.yaml"], folders=())


def test_a_missing_lm_eval_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)

    with pytest.raises(RunError, match=r"lm-eval 없음.*pip install 'dure\[eval\]'"):
        require_lm_eval()


def test_a_group_is_a_row_a_task_and_a_column_a_metric() -> None:
    task = {"version": 1.0, "num_fewshot": 5, "num_questions": 1404, "metrics": {"acc": 0.5, "f1": 0.25}}
    other = {"version": 2.0, "num_fewshot": 0, "num_questions": 16, "metrics": {"acc": 0.75}}
    tree = {"group": "kobest", "metric": "acc", "score": 0.5028, "num_questions": 1420, "limit": None, "seconds": 12.4}
    tree |= {"lm_eval": "0.4.13", "dtype": "bf16", "quantization": "nf4", "tasks": {"보기": task, "copa": other}}

    assert task_lines(tree) == [
        "kobest: acc 0.5028 over 1,420 questions (lm-eval 0.4.13, bf16, base held in nf4, 12 s)",
        "  과제 task  version  few-shot  questions     acc      f1",
        "  보기           1.0         5      1,404  0.5000  0.2500",
        "  copa           2.0         0         16  0.7500       –",
    ]


@pytest.fixture(scope="module")
def world() -> SmallWorld:
    return small_world()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of two tasks over questions of ours with four answers each: to choose one, and to say it."""
    folder = tmp_path_factory.mktemp("tasks")
    data, cache = folder / "questions.jsonl", folder / "cache"
    rows = []
    for number, animal in enumerate(ANIMALS):
        places = [PLACES[(number + turn) % len(PLACES)] for turn in range(4)]
        answer = number % 4
        choices = [f"{place}에 산다." for place in places]
        rows.append({"question": question("큰", animal, places[answer]), "choices": choices, "answer": answer})
    data.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    paths = []
    for name, text in (("choose", CHOICE), ("say", WRITTEN)):
        path = folder / f"{name}.yaml"
        path.write_text(text.format(data=data, cache=cache), encoding="utf-8")
        paths.append(str(path))
    return paths


def plain_log_likelihood(model: Any, tokenizer: Any, context: str, answer: str) -> float:
    """Sum of ln p of the ids of an answer after its context: one sequence, no padding, no cache."""
    before, whole = tokenizer(context)["input_ids"], tokenizer(context + answer)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([whole[:-1]])).logits[0].float()
    log_probs = torch.log_softmax(logits, dim=-1)
    return float(sum(log_probs[place - 1, whole[place]] for place in range(len(before), len(whole))))


def asked(lm: Any, task: Any) -> list[tuple[tuple[str, str], float]]:
    """The requests of a task, and what lm-eval's wrapper of our model answers to each."""
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests(limit=None, rank=0, world_size=1)
    return [
        (instance.args, found[0])
        for instance, found in zip(task.instances, lm.loglikelihood(task.instances), strict=True)
    ]


@pytest.mark.stages
def test_likelihoods_and_answers_are_those_of_plain_transformers(
    world: SmallWorld, tasks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason=NO_LM_EVAL)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.export import ExportOptions, export

    run = world.talker
    export(find_saved(run), tmp_path / "export", ExportOptions())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    (loaded,) = load_groups(find_groups([tasks[0]], folders=()))

    lm = as_lm(find_saved(run), batch_size=7, dtype="fp32")
    found = asked(lm, loaded["tasks"]["where_animals_live"])

    assert len(found) == 4 * len(ANIMALS)
    for (context, answer), said in found:
        assert said == pytest.approx(plain_log_likelihood(model, tokenizer, context, answer), abs=1e-4)

    # The verb: both tasks, beside what choosing by those likelihoods and what greedy generation make of the questions.
    words = namespace(path=str(run), tasks=",".join(tasks), batch=7)
    assert evaluate_tasks(words) == 0
    chosen, written = lines_of(run / TASKS_NAME)
    right = choices_right([said for _, said in found])
    assert chosen["tasks"]["where_animals_live"]["metrics"]["acc"] == pytest.approx(right)
    assert chosen["tasks"]["where_animals_live"]["version"] == 2.5
    told = written["tasks"]["say_where_animals_live"]
    assert (told["num_questions"], told["metrics"]["exact_match"]) == (
        len(ANIMALS),
        pytest.approx(answers_right(model, tokenizer, Path(tasks[0]).parent / "questions.jsonl")),
    )
    assert right > 0 and told["metrics"]["exact_match"] > 0, "shares of nothing would be equal too"
    assert {"step", "dtype", "lm_eval", "limit", "quantization"} <= set(chosen)
    assert "where_animals_live" in capsys.readouterr().out


def choices_right(said: list[float]) -> float:
    """The share of questions of which the right answer is the likeliest; four answers a question, in order."""
    quads = [said[start : start + 4] for start in range(0, len(said), 4)]
    return sum(quad.index(max(quad)) == number % 4 for number, quad in enumerate(quads)) / len(quads)


def answers_right(model: Any, tokenizer: Any, data: Path) -> float:
    """The share of questions to which plain greedy generation writes the right line."""
    num_right = 0
    rows = lines_of(data)
    for row in rows:
        ids = tokenizer(f"### 질문: {row['question']}\n\n### 답변:", return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).partition("\n")[0]
        num_right += text == f" {row['choices'][row['answer']]}"
    return num_right / len(rows)


def namespace(**values: Any) -> Any:
    from argparse import Namespace

    names = ("checkpoint", "shards", "output", "num_fewshot", "limit", "dtype")
    return Namespace(**{**dict.fromkeys(names), "batch": 8, **values})


@pytest.mark.stages
def test_a_base_in_4_bits_with_its_adapter_is_asked_as_it_stands(world: SmallWorld, tasks: list[str]) -> None:
    pytest.importorskip("lm_eval", reason=NO_LM_EVAL)
    run = world.tuned(
        "lm-eval-qlora",
        base=world.talker,
        adapter={"rank": 4, "dropout": 0.0},
        quantization={"compute_dtype": "fp32"},
    )
    (loaded,) = load_groups(find_groups([tasks[0]], folders=()))
    lm = as_lm(find_saved(run), batch_size=7, dtype="fp32")

    found = asked(lm, loaded["tasks"]["where_animals_live"])[:12]

    assert any("lora" in name for name, _ in lm.model.named_parameters())
    assert any(type(module).__name__ == "Linear4bit" for module in lm.model.modules())
    for (context, answer), said in found:
        assert said == pytest.approx(plain_log_likelihood(lm.model, lm.tokenizer, context, answer), abs=1e-4)
    (tree,) = run_groups(find_saved(run), find_groups([tasks[0]], folders=()), num_fewshot=2, limit=3)
    assert (tree["quantization"], tree["limit"], tree["num_questions"]) == ("nf4", 3, 3)
    assert tree["tasks"]["where_animals_live"]["num_fewshot"] == 2


@pytest.mark.stages
def test_lm_eval_knows_the_tasks_of_the_configs_and_data_that_are_not_at_hand_are_named() -> None:
    lm_eval = pytest.importorskip("lm_eval", reason=NO_LM_EVAL)
    folders = [Path(lm_eval.__file__).parent / "tasks" / name for name in GROUPS]
    assert os.environ.get("HF_HUB_OFFLINE") == "1", "tests ask no network"

    for name in GROUPS:  # those that it does not know would be named first
        with pytest.raises(RunError, match=rf"--tasks: {name}: its data set can't be downloaded .*HF_HUB_OFFLINE=1"):
            load_groups(find_groups([name], folders=GROUP_FOLDERS), folders=folders)
    with pytest.raises(RunError, match=r"lm-eval knows no kobest_copas; did you mean kobest_copa"):
        load_groups([TaskGroup("mine", ("kobest_copas",))], folders=folders)


@pytest.mark.stages
def test_a_model_that_writes_no_text_is_refused(world: SmallWorld) -> None:
    pytest.importorskip("lm_eval", reason=NO_LM_EVAL)
    with pytest.raises(RunError, match="a masked lm writes no text"):
        as_lm(find_saved(world.bert), batch_size=1, dtype="fp32")
