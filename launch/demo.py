"""`dure demo`: all of it once, on this machine, in minutes; each part is the one that real runs use.

text (made, or the user's) -> corpus -> tokenizer -> shards -> pretrain -> instruction rows -> QLoRA -> questions before
and after -> merged export, asked again by a fresh process -> with --dpo the parts of `demo_preference` -> report.html.
Every part that is done already is skipped and says so; a part that was cut off goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.stage import StageError, read_manifest
from launch import demo_data, demo_preference
from launch.demo_data import MADE_VOCABULARY, VOCABULARY, Places
from launch.demo_parts import checkpoint_of, export_merged, kept, part, read_results, train

PRETRAIN, SFT = Path("configs/demo.yaml"), Path("configs/demo-sft.yaml")
PRETRAIN_RUN, SFT_RUN, MODEL_NAME = "pretrain", "sft", "model"
DEFAULT_SEED = 1
NUM_QUESTIONS, MAX_NEW_TOKENS = 300, 48
# What the demo's own rows are to reach, and below what something is wrong; a user's rows may be anything.
GOOD_EXACT_MATCH, LEAST_EXACT_MATCH, LEAST_ENDED_SHARE = 0.5, 0.4, 0.95


def demo(arguments: argparse.Namespace) -> int:
    """Run every part in turn; returns the exit code of the first one that fails, else 0."""
    started = time.perf_counter()
    if not (PRETRAIN.is_file() and SFT.is_file()):
        raise StageError(f"{PRETRAIN}: not here; run `dure demo` in the folder of the checkout")
    corpus, rows, preferences = arguments.corpus, arguments.sft, arguments.preference
    prefers = arguments.dpo or preferences is not None
    tuned = corpus is None or rows is not None
    _check_preferences(arguments, prefers=prefers, tuned=tuned)
    places = Places(Path(arguments.output or _default_root(corpus, rows, preferences, seed=arguments.seed)))
    if corpus is None or rows is None:
        part("generate: made-up Korean", lambda: demo_data.generate(places, seed=arguments.seed))
    code = _pretrained(places, source=Path(corpus) if corpus else places.aihub, is_made=corpus is None)
    if code == 0 and tuned:
        code = _tuned(places, source=Path(rows) if rows else places.rows, is_made=rows is None and corpus is None)
    if code == 0 and prefers:
        code = demo_preference.tuned_on_preferences(
            places,
            tuned=places.root / SFT_RUN,
            rows=Path(preferences) if preferences else None,
            seed=arguments.seed,
        )
    if code:
        return code
    part("report: one page of all of it", lambda: _report(places, tuned=tuned, prefers=prefers))
    _say_what_is_next(places, tuned=tuned, prefers=prefers, seconds=time.perf_counter() - started)
    return 0


def _check_preferences(arguments: argparse.Namespace, *, prefers: bool, tuned: bool) -> None:
    """Refuse what can't be: nothing to tune further, or made-up preferences over somebody's own questions."""
    if prefers and not tuned:
        raise StageError(
            f"--{'dpo' if arguments.dpo else 'preference'}: beside --corpus {arguments.corpus} nothing is tuned; give "
            "--sft ROWS too"
        )
    if arguments.dpo and arguments.preference is None and arguments.sft is not None:
        raise StageError(
            f"--dpo: the made-up preferences are about the made-up questions, not about --sft {arguments.sft}; give "
            "--preference ROWS too"
        )


def _default_root(*sources: str | None, seed: int) -> str:
    """A folder for each source: what was made of one is never mixed with what is made of another."""
    names = [Path(path).stem for path in sources if path is not None]
    if names:
        return f"runs/demo-{'-'.join(names)}"
    return "runs/demo" if seed == DEFAULT_SEED else f"runs/demo-seed-{seed}"


def _pretrained(places: Places, *, source: Path, is_made: bool) -> int:
    """From text to a model that knows Korean a little; 1 where it is no better than counting on made text."""
    vocabulary = MADE_VOCABULARY if is_made else VOCABULARY
    part(f"corpus: {source} -> documents", lambda: demo_data.build_corpus(source, places.corpus, record="document"))
    part(
        f"tokenizer: byte-level BPE, {vocabulary:,} tokens",
        lambda: demo_data.train_tokenizer(places, vocab_size=vocabulary),
    )
    part(
        "shards: documents -> token ids in Arrow files",
        lambda: demo_data.build_shards(places.corpus, places.shards, tokenizer=places.tokenizer, is_made=is_made),
    )
    code: int = part(f"pretrain: {PRETRAIN}", lambda: train(PRETRAIN, places, [f"data.shards={places.shards}"]))
    if code:
        return code
    is_below = part("evaluate: held-out bits per byte beside a trigram model", lambda: _evaluate(places))
    if is_made and not is_below:
        print("the demo's own text must be learned better than by counting: something is wrong", file=sys.stderr)
        return 1
    return 0


def _tuned(places: Places, *, source: Path, is_made: bool) -> int:
    """From the pretrained model to one that answers; 1 where made rows are not learned, or an export says otherwise."""
    part(
        f"rows: {source} -> instructions",
        lambda: demo_data.build_corpus(source, places.sft_corpus, record="instruction"),
    )
    part(
        f"shards: instructions -> token ids by the template {demo_data.TEMPLATE}",
        lambda: demo_data.build_shards(
            places.sft_corpus,
            places.sft_shards,
            tokenizer=places.tokenizer,
            is_made=is_made,
            template=demo_data.TEMPLATE,
        ),
    )
    overrides = [f"data.shards={places.sft_shards}", f"model.from={places.root / PRETRAIN_RUN}"]
    code: int = part(f"tune: {SFT}: QLoRA on the 4-bit model", lambda: train(SFT, places, overrides))
    if code:
        return code
    part(
        "export: the adapter merged into its base, for other programs",
        lambda: export_merged(places.root / SFT_RUN, places.root / MODEL_NAME),
    )
    before, after, exported = part("questions: before, after, and of the export", lambda: _ask_all(places))
    _show_answers(before, after, exported)
    return _verdict(after, exported) if is_made else 0


def _evaluate(places: Places) -> bool:
    """The model's held-out figures beside those of a trigram model that was counted on the same tokens."""
    from data_pipeline.ngram import trigram_baseline
    from launch.verb_evaluate import evaluate_saved

    run = places.root / PRETRAIN_RUN
    shards = read_manifest(places.shards, kind="shards")["manifest_sha256"]
    result = kept(
        places,
        "evaluate",
        {"checkpoint": checkpoint_of(run), "shards": shards},
        lambda: {"model": evaluate_saved(str(run)), "trigram": asdict(trigram_baseline(places.shards))},
    )
    return _show_evaluation(result["model"], result["trigram"])


def _show_evaluation(model: dict[str, Any], trigram: dict[str, Any]) -> bool:
    """Print both; whether the model is below."""
    print(f"   {'':<28}{'bits per byte':>14}{'nats a token':>14}")
    for name, figures in (("Llama after pretraining", model), ("interpolated trigram", trigram)):
        print(f"   {name:<28}{figures['bits_per_byte']:>14.4f}{figures['loss']:>14.4f}")
    is_below = bool(model["bits_per_byte"] < trigram["bits_per_byte"])
    verdict = "below" if is_below else "NOT below"
    print(f"   the model is {verdict} the trigram model, on {model['num_documents']:,} held-out documents")
    return is_below


def _ask_all(places: Places) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Figures of the same held-out questions: the base, the adapter on it, and the merged export in a fresh process."""
    from launch.demo_ask import Asking, ask, figures, read_answers
    from trainer.saved import find_saved

    seq_len = find_saved(str(places.root / SFT_RUN)).config.data.seq_len  # type: ignore[union-attr]
    models = {"before": PRETRAIN_RUN, "after": SFT_RUN, "exported": MODEL_NAME}
    paths = {name: places.root / f"answers-{name}.jsonl" for name in models}

    def asking(name: str) -> Asking:
        model, output = str(places.root / models[name]), str(paths[name])
        return Asking(model, output, str(places.sft_shards), NUM_QUESTIONS, seq_len, MAX_NEW_TOKENS)

    def make() -> dict[str, Any]:
        for names in (("before", "after"), ("exported",)):
            if ask([asking(name) for name in names]):
                raise StageError(f"{places.root}: {', '.join(names)}: could not be asked; the message above says why")
        results = {name: figures(read_answers(path)) for name, path in paths.items()}
        tuned, exported = read_answers(paths["after"]), read_answers(paths["exported"])
        same = sum(ours["answer"] == theirs["answer"] for ours, theirs in zip(tuned, exported, strict=True))
        results["exported"]["num_same_as_tuned"] = same
        return results

    made_from = {
        "pretrain": checkpoint_of(places.root / PRETRAIN_RUN),
        "sft": checkpoint_of(places.root / SFT_RUN),
        "rows": read_manifest(places.sft_shards, kind="shards")["manifest_sha256"],
    }
    results = kept(places, "questions", made_from, make)
    return results["before"], results["after"], results["exported"]


def _show_answers(before: dict[str, Any], after: dict[str, Any], exported: dict[str, Any]) -> None:
    print(f"   {before['num_rows']:,} held-out instructions{'exact match':>20}{'ended by EOS':>14}")
    for name, figures in (("before tuning", before), ("after tuning", after), ("merged, fresh process", exported)):
        print(f"   {name:<27}{figures['exact_match']:>17.1%}{figures['ended_share']:>14.1%}")
    print(f"   the merged model gave {exported['num_same_as_tuned']:,} of {exported['num_rows']:,} answers alike")


def _verdict(after: dict[str, Any], exported: dict[str, Any]) -> int:
    is_good = after["exact_match"] >= GOOD_EXACT_MATCH
    print(f"   {'at least' if is_good else 'NOT'} {GOOD_EXACT_MATCH:.0%} of the answers are right after tuning")
    faults = []
    if after["exact_match"] < LEAST_EXACT_MATCH:
        faults.append(f"exact match is {after['exact_match']:.1%}, {LEAST_EXACT_MATCH:.0%} is the least")
    if after["ended_share"] < LEAST_ENDED_SHARE:
        faults.append(f"{after['ended_share']:.1%} of the answers ended, {LEAST_ENDED_SHARE:.0%} is the least")
    if exported["num_same_as_tuned"] < exported["num_rows"]:
        faults.append("the merged model answers otherwise than the tuned one")
    for fault in faults:
        print(f"the demo's own rows: {fault}: something is wrong", file=sys.stderr)
    return 1 if faults else 0


def _report(places: Places, *, tuned: bool, prefers: bool) -> None:
    from launch.report import write_report

    results = read_results(places)
    evaluated = results["evaluate"]["result"]
    extra: dict[str, Any] = {
        "corpora": [places.corpus],
        "tokenizers": [places.tokenizer],
        "baselines": {"interpolated trigram": evaluated["trigram"]},
    }
    runs = [places.root / PRETRAIN_RUN]
    if tuned:
        runs.append(places.root / SFT_RUN)
        extra["corpora"].append(places.sft_corpus)
        extra["before"], extra["after"] = (results["questions"]["result"][name] for name in ("before", "after"))
    if prefers:
        runs.append(places.root / demo_preference.RUN)
        extra["corpora"].append(places.dpo_corpus)
        extra["preference"] = demo_preference.told_to_report(places)
    page = write_report(runs, places.root / "report.html", extra=extra)
    print(f"   {page}: {page.stat().st_size:,} bytes; open it in a browser")


def _say_what_is_next(places: Places, *, tuned: bool, prefers: bool, seconds: float) -> None:
    newest = demo_preference.RUN if prefers else SFT_RUN if tuned else PRETRAIN_RUN
    model = places.root / (demo_preference.MODEL_NAME if prefers else MODEL_NAME)
    run = places.root / newest
    lines = [
        f"\nDone in {seconds:.0f} s (완료). What is here now:",
        f"  {places.root / 'report.html'}  all of it on one page",
        f"  {places.data}  text, corpora, tokenizer and shards, each with its manifest.json",
        f"  {run}  config, metrics.jsonl, TensorBoard, checkpoints",
    ]
    lines += [f"  {model}  the merged model, for transformers and others"] if tuned else []
    lines += ["Next (다음):"]
    lines += [f"  dure chat {run}"] if tuned else [f"  dure train configs/debug.yaml data.shards={places.shards}"]
    shards = places.dpo_shards if prefers else places.sft_shards if tuned else places.shards
    lines += [
        f"  dure shards inspect {shards} --tokenizer {places.tokenizer}",
        f"  tensorboard --logdir {places.root}",
        "  dure demo --corpus YOUR_FOLDER --sft YOUR_ROWS",
    ]
    print("\n".join(lines))
