"""`dure tokenizer extend`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.config import validate
from data_pipeline.stage import Manifest, StageError, read_manifest
from launch.data_stage import Figure, table

if TYPE_CHECKING:
    from data_pipeline.tokenizer.extend import ExtendConfig, Plan
    from trainer.new_rows_model import ModelInputs

SHOWN = 30  # choices and refused terms on the console; the files hold all of them


def extend(arguments: argparse.Namespace) -> int:
    """A tokenizer and new tokens -> a folder with both; with --model the model's folder too."""
    from data_pipeline.tokenizer.extend import is_done, make_plan
    from data_pipeline.tokenizer.extend_write import write_candidates, write_plan

    config = _config(arguments)
    _check_flags(arguments, config)
    inputs = _model_inputs(arguments)
    if not arguments.dry_run and is_done(config) and _has_model(config, inputs):
        print(f"{config.output}: up to date (이미 완료): it was made from equal inputs; nothing was done")
        _tell_written(config, read_manifest(config.output, kind="tokenizer"))
        return 0
    plan = make_plan(config)
    print("\n".join(_shown(plan)), flush=True)
    if arguments.dry_run:
        write_candidates(plan, config.output)
        print(f"{config.output}: candidates.json and tokens.txt written, no tokenizer (--dry-run)")
        print(f"next: shorten tokens.txt, then dure tokenizer extend {config.tokenizer} --tokens … --output DIR")
        return 0
    if inputs is not None:
        from trainer.new_rows_model import write_extended_model

        lines = write_extended_model(
            plan, inputs=inputs, output=config.output, accepts_rounding=arguments.accept_rounding
        )
        print("\n".join(lines))
        print(f"{config.output}: the model with its tokenizer done (완료); transformers opens it")
        return 0
    manifest = write_plan(plan, config.output)
    print(f"{config.output}: tokenizer done (완료)")
    _tell_written(config, manifest)
    return 0


def _model_inputs(arguments: argparse.Namespace) -> ModelInputs | None:
    if arguments.model is None:
        return None
    from trainer.new_rows_model import model_inputs

    return model_inputs(arguments.model, init=arguments.init)


def _has_model(config: ExtendConfig, inputs: ModelInputs | None) -> bool:
    """Whether the finished folder holds all that was asked for: a model too, where one was named."""
    if inputs is None:
        return True
    from trainer.new_rows_model import is_model_done

    return is_model_done(config.output, inputs)


def _config(arguments: argparse.Namespace) -> ExtendConfig:
    from data_pipeline.tokenizer.extend import ExtendConfig

    given = {
        "tokenizer": arguments.path,
        "output": arguments.output,
        "tokens": arguments.tokens,
        "corpus": arguments.corpus,
        "count": arguments.count,
        "spaced": arguments.spaced,
        "min_count": arguments.min_count,
    }
    tree: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    return validate(tree, ExtendConfig, where="dure tokenizer extend")


def _check_flags(arguments: argparse.Namespace, config: ExtendConfig) -> None:
    """Refuse flags that would change nothing."""
    if arguments.dry_run and config.count == 0:
        raise StageError("--dry-run: shows what would be chosen on a corpus, but --count chooses nothing; leave it out")
    if arguments.dry_run and arguments.model is not None:
        raise StageError(f"--model: {arguments.model} was given, but --dry-run writes no model; leave one of them out")
    if config.spaced and config.tokens is None:
        raise StageError("--spaced: is about the terms of a list, but there is no --tokens; leave it out")
    if arguments.init is not None and arguments.model is None:
        raise StageError(f"--init: {arguments.init!r} is about a model's rows, but there is no --model; leave it out")
    if arguments.accept_rounding and arguments.model is None:
        raise StageError("--accept-rounding: is about a model's outputs, but there is no --model; leave it out")


def _shown(plan: Plan) -> Iterator[str]:
    """What was chosen, what was refused, and what it comes to."""
    if plan.choices:
        yield f"  {'token':<28} {'count':>9} {'saved':>9}  was"
        for choice in plan.choices[:SHOWN]:
            pieces = " ".join(_pieces(plan, choice.text))
            yield f"  {choice.text!r:<28} {choice.count:>9,} {choice.num_saved:>9,}  {pieces}"
        if len(plan.choices) > SHOWN:
            yield f"  … and {len(plan.choices) - SHOWN:,} more, in candidates.json"
    if plan.refused:
        yield f"{len(plan.refused):,} terms can't be new tokens (추가할 수 없는 토큰):"
        yield from (f"  {each}" for each in plan.refused[:SHOWN])
        if len(plan.refused) > SHOWN:
            yield f"  … and {len(plan.refused) - SHOWN:,} more, in extension.json"
    if plan.apart:
        yield (
            f"WARNING: {len(plan.apart):,} new tokens come back with a space around them (되돌리면 띄어 쓰임), as "
            f"'{plan.apart[0].strip()}은' does: this kind of tokenizer begins a word after each added token"
        )
    yield from table(list(_figures(plan)))


def _pieces(plan: Plan, text: str) -> tuple[str, ...]:
    return next(choice.pieces for choice in plan.choices if choice.text == text)


def _figures(plan: Plan) -> Iterator[Figure]:
    sizes = plan.sizes
    yield Figure("new tokens", len(plan.tokens))
    yield Figure("ids", f"{plan.tokens[0].id:,} to {plan.tokens[-1].id:,}")
    yield Figure("terms refused", len(plan.refused))
    yield Figure("texts without them: ids equal", sizes["num_texts_checked"])
    if sizes["num_texts"]:
        before, after = sizes["num_tokens_before"], sizes["num_tokens_after"]
        yield Figure("sample: documents", sizes["num_texts"])
        yield Figure("sample: tokens before", before)
        yield Figure("sample: tokens after", after)
        yield Figure("sample: tokens saved", f"{1 - after / max(1, before):.2%}")


def _tell_written(config: ExtendConfig, manifest: Manifest) -> None:
    told = manifest["extended_from"]
    rows = [
        Figure("vocabulary", manifest["vocab_size"]),
        Figure("fingerprint", manifest["tokenizer_fingerprint"][:16]),
        Figure("extended from", told["base"]["fingerprint"][:16]),
    ]
    print("\n".join(table(rows)))
    corpus = Path(config.corpus) if config.corpus is not None else "CORPUS"
    print(f"next: dure shards build --corpus {corpus} --tokenizer {config.output} --output DIR")
