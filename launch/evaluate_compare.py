"""`dure evaluate compare A B`: both answer the prompts of a file, a judge scores the answers, wins are told by length.

What is answered already is not asked again: the answers are those of `dure generate`, a file a model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline import disk
from launch.question_rows import QuestionRow, read_questions
from launch.verb_evaluate import aligned
from launch.verb_generate import generate
from trainer.errors import RunError

if TYPE_CHECKING:
    from trainer.answer_judge import AnswerJudge, Written

COMPARISON_NAME, PAIRS_NAME = "comparison.json", "pairs.jsonl"
FOLDER = "comparisons"
SIDES = ("a", "b")

Tree = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A prompt with both answers, as `pairs.jsonl` holds them."""

    asked: QuestionRow
    answers: tuple[Tree, Tree]
    scores: tuple[float, float] | None = None


def compare(arguments: argparse.Namespace) -> int:
    """Answer, judge, count; the table is printed, and all of it stands in the output folder."""
    names = arguments.paths
    if len(names) != 2:
        raise RunError(f"dure evaluate compare: takes two models, got {len(names)}: {' '.join(names)}; name A and B")
    for flag in ("prompts", "judge"):
        if not getattr(arguments, flag):
            raise RunError(f"--{flag}: not given; see `dure evaluate compare --help`")

    from trainer.answer_judge import judge_identity, open_judge
    from trainer.quiet import bars_on_terminals_only
    from trainer.saved import find_saved

    prompts = Path(arguments.prompts)
    models = [find_saved(name) for name in names]
    told_apart = judge_identity(arguments.judge)
    folder = Path(arguments.output) if arguments.output else _folder_of(models, prompts)
    bars_on_terminals_only()
    for side, name in zip(SIDES, names, strict=True):
        print(f"{side.upper()}: {name}")
        asked = vars(arguments) | {"path": name, "input": str(prompts), "output": str(folder / f"{side}.answers.jsonl")}
        folder.mkdir(parents=True, exist_ok=True)
        generate(argparse.Namespace(**asked | {"checkpoint": None, "task": None}))
    pairs = list(read_pairs(prompts, [folder / f"{side}.answers.jsonl" for side in SIDES]))
    judge = open_judge(arguments.judge, batch_size=arguments.batch)
    judged, num_too_long = judge_pairs(judge, pairs)
    if not judged:
        raise RunError(f"--judge: {judge.name}: all {num_too_long:,} pairs are too long for it; name another judge")
    tree: Tree = {"model_a": names[0], "model_b": names[1], "prompts": str(prompts), "judge": judge.name}
    tree |= {"judge_sha256": told_apart, "made_with": [_made_with(folder / f"{side}.answers.jsonl") for side in SIDES]}
    tree |= comparison_of(judged) | {"num_too_long": num_too_long}
    disk.write_bytes(folder / PAIRS_NAME, b"".join(_line(pair) for pair in judged))
    disk.write_json(folder / COMPARISON_NAME, tree)
    print("\n".join(comparison_lines(tree)))
    print(f"written: {folder / COMPARISON_NAME}, {folder / PAIRS_NAME}")
    return 0


def _folder_of(models: Sequence[Any], prompts: Path) -> Path:
    """Beside the first model's run."""
    first, second = models
    if first.run_folder is None:
        raise RunError(f"--output: {first.path} is a model folder, which keeps no results; give --output DIR")
    other = (second.run_folder or second.path).resolve().name
    step = "" if second.step is None else f"-{second.step}"
    return Path(first.run_folder) / FOLDER / f"{first.step}-{other}{step}-{prompts.stem}"


def _made_with(answers: Path) -> Tree:
    from launch.verb_generate import MADE_WITH_SUFFIX

    return disk.read_object(answers.with_name(answers.name + MADE_WITH_SUFFIX))


def read_pairs(prompts: Path, answers: Sequence[Path]) -> Iterator[Pair]:
    """The prompts with what both models said to them."""
    from trainer.run_folder import read_lines

    for asked, first, second in zip(read_questions(prompts), *(read_lines(path) for path in answers), strict=True):
        assert first["row"] == second["row"] == asked.number, "generate writes the rows in their order"
        yield Pair(asked, (first, second))


def judge_pairs(judge: AnswerJudge, pairs: Sequence[Pair]) -> tuple[list[Pair], int]:
    """The pairs with their scores, without those that the judge can't read, and how many those are."""
    scores = [judge.scores([_written(pair, side) for pair in pairs]) for side in range(2)]
    judged = [
        Pair(pair.asked, pair.answers, (first, second))
        for pair, first, second in zip(pairs, *scores, strict=True)
        if first is not None and second is not None
    ]
    return judged, len(pairs) - len(judged)


def _written(pair: Pair, side: int) -> Written:
    from trainer.answer_judge import Written

    answer = pair.answers[side]
    reference = answer.get("expected")
    return Written(
        row=pair.asked.number,
        messages=pair.asked.messages,
        answer=answer["answer"],
        ended=bool(answer["ended"]),
        reference=reference if isinstance(reference, str) else None,
    )


def comparison_of(pairs: Sequence[Pair]) -> Tree:
    """The figures of judged pairs, and how many answers of each model ended."""
    from trainer.compare_figures import figures_of

    ended = {f"ended_share_{side}": _share(pairs, number) for number, side in enumerate(SIDES)}
    return figures_of([_judged(pair) for pair in pairs]) | ended


def _judged(pair: Pair) -> Any:
    from trainer.compare_figures import Judged

    assert pair.scores is not None, "it was judged"
    first, second = (str(answer["answer"]) for answer in pair.answers)
    return Judged(*pair.scores, len(first), len(second), is_equal=first.strip() == second.strip())


def _share(pairs: Sequence[Pair], number: int) -> float:
    return sum(bool(pair.answers[number]["ended"]) for pair in pairs) / max(1, len(pairs))


def _line(pair: Pair) -> bytes:
    assert pair.scores is not None, "it was judged"
    line: Tree = {"row": pair.asked.number, "messages": [dict(message) for message in pair.asked.messages]}
    for side, answer, score in zip(SIDES, pair.answers, pair.scores, strict=True):
        line |= {f"answer_{side}": answer["answer"], f"score_{side}": score, f"ended_{side}": answer["ended"]}
    return (json.dumps(line | {"result": _judged(pair).result}, ensure_ascii=False) + "\n").encode()


def comparison_lines(tree: Mapping[str, Any]) -> list[str]:
    """The tables of a comparison, as a terminal shows them."""
    rows = [["", "pairs", "A wins", "ties", "B wins", "A's share", "95 %"]]
    rows.append(_row("모두 all", tree["all"]))
    by = tree["by_difference"]
    rows.append(_row("길이가 비슷함 of like length", by["like_length"]))
    rows.append(_row("A가 짧음 A is shorter", by["a_shorter"]))
    rows.append(_row("A가 김 A is longer", by["a_longer"]))
    for bucket in tree["by_length"]:
        rows.append(_row(f"{bucket['from_chars']:,.0f}–{bucket['to_chars']:,.0f}자 characters", bucket))
    return [
        f"A {tree['model_a']}: {_about(tree, 'a')}",
        f"B {tree['model_b']}: {_about(tree, 'b')}",
        f"judge (심판) {tree['judge']}; {tree['prompts']}",
        *aligned(rows),
        *_notes(tree),
    ]


def _row(name: str, tally: Mapping[str, Any]) -> list[str]:
    counts = [f"{tally[key]:,}" for key in ("num_pairs", "wins", "ties", "losses")]
    if tally["win_rate"] is None:
        return [name, *counts, "–", "–"]
    low, high = tally["interval"]
    return [name, *counts, f"{tally['win_rate']:.1%}", f"{low:.1%} – {high:.1%}"]


def _about(tree: Mapping[str, Any], side: str) -> str:
    return (
        f"mean score {tree[f'mean_score_{side}']:.4f}, {tree[f'mean_chars_{side}']:,.1f} characters, "
        f"{tree[f'ended_share_{side}']:.1%} ended"
    )


def _notes(tree: Mapping[str, Any]) -> list[str]:
    notes = []
    if tree["longer_won"] is not None:
        notes.append(f"the longer answer won {tree['longer_won']:.1%} of the pairs of two lengths (긴 답이 이긴 비율)")
    if tree["num_too_long"]:
        notes.append(f"{tree['num_too_long']:,} pairs were too long for the judge, and are left out")
    return notes
