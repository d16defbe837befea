"""The third part of `dure demo --dpo`: the tuned model learns from pairs of a chosen and a rejected answer.

preference rows (made, or the user's) -> shards -> DPO by QLoRA -> figures and questions before and after -> merged
export, asked again by a fresh process and talked to. The made rows teach a manner: to answer as one writes.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.stage import StageError, read_manifest
from launch import demo_data
from launch.demo_ask import Asking, ask, figures, read_answers
from launch.demo_data import Places
from launch.demo_parts import checkpoint_of, export_merged, kept, part, read_results, train

CONFIG, RUN, MODEL_NAME = Path("configs/demo-dpo.yaml"), "dpo", "model-dpo"
EVALUATION, ANSWERS, TALK = "evaluate-dpo", "preferences", "talk"
FIGURES = ("loss", "margin", "accuracy")
NUM_QUESTIONS, MAX_NEW_TOKENS, NUM_TURNS = 300, 48, 2
# What the demo's own rows are to reach, below which something is wrong; a user's rows may be anything.
LEAST_ACCURACY, LEAST_WRITTEN_SHARE, LEAST_ENDED_SHARE = 0.9, 0.8, 0.95


def tuned_on_preferences(places: Places, *, tuned: Path, rows: Path | None, seed: int) -> int:
    """From the tuned run to one that prefers; 1 where made rows are not learned, or an export says otherwise.

    `rows`: the user's; made ones where None.
    """
    if rows is None:
        part("rows: made-up preferences", lambda: demo_data.generate_preferences(places, seed=seed))
    source = rows or places.preferences
    part(
        f"rows: {source} -> preferences",
        lambda: demo_data.build_corpus(source, places.dpo_corpus, record="preference"),
    )
    part(
        f"shards: preferences -> token ids by the template {demo_data.TEMPLATE}",
        lambda: demo_data.build_shards(
            places.dpo_corpus,
            places.dpo_shards,
            tokenizer=places.tokenizer,
            is_made=rows is None,
            template=demo_data.TEMPLATE,
        ),
    )
    overrides = [f"data.shards={places.dpo_shards}", f"model.from={tuned}"]
    code: int = part(f"prefer: {CONFIG}: DPO over the tuned model", lambda: train(CONFIG, places, overrides))
    if code:
        return code
    evaluated = part("evaluate: held-out pairs, before and after", lambda: _evaluate(places))
    part("export: the preferring model, merged", lambda: export_merged(places.root / RUN, places.root / MODEL_NAME))
    asked = part(
        "questions: before, after, and of the export", lambda: _ask_all(places, tuned=tuned, is_made=rows is None)
    )
    if rows is None:
        part("talk: `dure chat` with the export", lambda: _talk(places))
    _show(asked)
    return _verdict(evaluated, asked) if rows is None else 0


def _evaluate(places: Places) -> dict[str, dict[str, float]]:
    """The figures of `dure evaluate` over all held-out pairs, and those of the run's evaluation before step 1."""
    from launch.verb_evaluate import evaluate_saved
    from trainer.run_folder import EVALUATIONS_NAME, read_lines

    run = places.root / RUN

    def make() -> dict[str, dict[str, float]]:
        first = next(iter(read_lines(run / EVALUATIONS_NAME)))
        last = evaluate_saved(str(run), checkpoint="last")
        return {name: {key: float(line[key]) for key in FIGURES} for name, line in (("before", first), ("after", last))}

    shards = read_manifest(places.dpo_shards, kind="shards")["manifest_sha256"]
    found: dict[str, dict[str, float]] = kept(
        places, EVALUATION, {"checkpoint": checkpoint_of(run), "shards": shards}, make
    )
    print(f"   {'held-out pairs':<16}" + "".join(f"{name:>12}" for name in FIGURES))
    for name, line in found.items():
        print(f"   {name:<16}" + "".join(f"{line[key]:>12.4f}" for key in FIGURES))
    return found


def _ask_all(places: Places, *, tuned: Path, is_made: bool) -> dict[str, Any]:
    """Figures of the same held-out prompts: the tuned run, the preferring one, and its export in a fresh process.

    `others`: what both answer to the questions of the instruction tuning; of made ones to those that ask for no
    sentence, whose answers the preferences say nothing about.
    """
    models = {"before": str(tuned), "after": str(places.root / RUN), "exported": str(places.root / MODEL_NAME)}
    paths = answer_paths(places)

    def make() -> dict[str, Any]:
        asked = {name: _asking(places, model, paths[name]) for name, model in models.items()}
        others = _asking(places, models["after"], paths["others"], shards=places.sft_shards)
        for askings in ([asked["before"], asked["after"], others], [asked["exported"]]):
            if ask(askings):
                names = ", ".join(asking.model for asking in askings)
                raise StageError(f"{places.root}: {names}: could not be asked; the message above says why")
        lines = {name: read_answers(path) for name, path in paths.items()}
        results: dict[str, Any] = {name: _figures(lines[name], is_made=is_made) for name in models}
        same = sum(ours["answer"] == its["answer"] for ours, its in zip(lines["after"], lines["exported"], strict=True))
        results["exported"]["num_same_as_tuned"] = same
        results["others"] = _others(read_answers(places.root / "answers-after.jsonl"), lines["others"], is_made=is_made)
        return results

    made_from = {
        "tuned": checkpoint_of(tuned),
        "run": checkpoint_of(places.root / RUN),
        "rows": read_manifest(places.dpo_shards, kind="shards")["manifest_sha256"],
    }
    found: dict[str, Any] = kept(places, ANSWERS, made_from, make)
    return found


def answer_paths(places: Places) -> dict[str, Path]:
    """Where the lines of each asking lie."""
    return {name: places.root / f"answers-dpo-{name}.jsonl" for name in ("before", "after", "exported", "others")}


def _asking(places: Places, model: str, output: Path, *, shards: Path | None = None) -> Asking:
    from trainer.saved import find_saved

    config = find_saved(str(places.root / RUN)).config
    assert config is not None, "a run has one"
    return Asking(
        model=model,
        output=str(output),
        shards=str(shards or places.dpo_shards),
        num_rows=NUM_QUESTIONS,
        seq_len=config.data.seq_len,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _figures(lines: Sequence[dict[str, Any]], *, is_made: bool) -> dict[str, Any]:
    """Shares of answers: equal to the chosen one, to the rejected one, of made rows as one writes, ended."""
    from data_pipeline.synthetic.preferences import is_written

    found, count = figures(list(lines)), max(1, len(lines))
    written = {"written_share": sum(is_written(line["answer"]) for line in lines) / count}
    return {
        "num_rows": found["num_rows"],
        "chosen_share": found["exact_match"],
        "rejected_share": sum(line["answer"].strip() == line["rejected"].strip() for line in lines) / count,
        **(written if is_made else {}),
        "ended_share": found["ended_share"],
    }


def _others(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], *, is_made: bool) -> dict[str, Any]:
    """Exact match before and after over equal questions."""
    from data_pipeline.synthetic.preferences import SPOKEN_END

    pairs = [
        (ours["is_exact"], its["is_exact"])
        for ours, its in zip(before, after, strict=True)
        if not (is_made and ours["expected"].strip().endswith(SPOKEN_END))
    ]
    count = max(1, len(pairs))
    return {
        "num_rows": len(pairs),
        "before": sum(ours for ours, _ in pairs) / count,
        "after": sum(its for _, its in pairs) / count,
    }


def _talk(places: Places) -> list[dict[str, str]]:
    """A few turns with the export as `dure chat` holds them: held-out questions about the world, without a passage."""
    from launch.verb_chat import Conversation
    from trainer.conversation import open_speaker
    from trainer.generate import Sampling
    from trainer.saved import find_saved

    model = places.root / MODEL_NAME
    rows = (places.preferences / demo_data.SPLIT_FOLDERS["heldout"] / "rows.jsonl").read_text(encoding="utf-8")
    asked = [row["instruction"] for row in map(json.loads, rows.splitlines()) if not row["input"]]

    def make() -> list[dict[str, str]]:
        talk = Conversation(open_speaker(find_saved(str(model))), Sampling(max_new_tokens=MAX_NEW_TOKENS))
        for question in list(dict.fromkeys(asked))[:NUM_TURNS]:
            talk.hear(question, io.StringIO())
        return [{"role": turn["role"], "content": turn["content"]} for turn in talk.turns]

    origin = read_manifest(model, kind="export")["manifest_sha256"]
    turns: list[dict[str, str]] = kept(places, TALK, {"model": origin}, make)
    for turn in turns:
        print(f"   {'>' if turn['role'] == 'user' else ' '} {turn['content']}")
    return turns


def _show(asked: dict[str, Any]) -> None:
    after, others, exported = asked["after"], asked["others"], asked["exported"]
    names = [name for name in after if name.endswith("_share")]
    titles = "".join(f"{name.removesuffix('_share'):>13}" for name in names)
    print(f"   {after['num_rows']:,} held-out prompts{'':<7}{titles}")
    for title, key in (("before DPO", "before"), ("after DPO", "after"), ("merged, fresh process", "exported")):
        print(f"   {title:<27}" + "".join(f"{asked[key][name]:>13.1%}" for name in names))
    change = f"{others['before']:.1%} before, {others['after']:.1%} after"
    print(f"   {others['num_rows']:,} other questions, exact match: {change}")
    print(f"   the merged model gave {exported['num_same_as_tuned']:,} of {exported['num_rows']:,} answers alike")


def _verdict(evaluated: dict[str, dict[str, float]], asked: dict[str, Any]) -> int:
    after, exported, faults = asked["after"], asked["exported"], []
    for name, value, least in (
        ("accuracy over held-out pairs", evaluated["after"]["accuracy"], LEAST_ACCURACY),
        ("written answers", after["written_share"], LEAST_WRITTEN_SHARE),
        ("answers that ended", after["ended_share"], LEAST_ENDED_SHARE),
    ):
        if value < least:
            faults.append(f"{name}: {value:.1%}, {least:.0%} is the least")
    if after["chosen_share"] <= asked["before"]["chosen_share"]:
        faults.append("no more answers are as chosen than before")
    if exported["num_same_as_tuned"] < exported["num_rows"]:
        faults.append("the merged model answers otherwise than the tuned one")
    for fault in faults:
        print(f"the demo's own preferences: {fault}: something is wrong", file=sys.stderr)
    return 1 if faults else 0


def told_to_report(places: Places) -> dict[str, Any]:
    """What the report is to know of this part beyond its run folder."""
    results, paths = read_results(places), answer_paths(places)
    lines = {name: read_answers(paths[name]) for name in ("before", "after")}
    return {
        "evaluated": results[EVALUATION]["result"],
        "asked": results[ANSWERS]["result"],
        "talk": results.get(TALK, {}).get("result", []),
        "answers": [
            {**ours, "before": earlier["answer"]} for ours, earlier in zip(lines["after"], lines["before"], strict=True)
        ],
    }
