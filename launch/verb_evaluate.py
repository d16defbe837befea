"""`dure evaluate RUN|MODEL`: loss and bits per byte over held-out documents, printed and kept beside the run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EVALUATION_NAME = "evaluation.json"


def evaluate(arguments: argparse.Namespace) -> int:
    """Score a saved model over the held-out documents of its run's shards, or of --shards."""
    result = evaluate_saved(arguments.path, shards=arguments.shards)
    print(f"{result['model']}: held-out (검증) {result['shards']}")
    for name in ("loss", "bits_per_byte", "num_documents", "num_targets", "num_bytes"):
        value = result[name]
        print(f"  {name:<14} {value:,.4f}" if isinstance(value, float) else f"  {name:<14} {value:,}")
    if result["written"]:
        print(f"written: {result['written']}")
    return 0


def evaluate_saved(name: str, *, shards: str | None = None) -> dict[str, Any]:
    """The figures of a run's newest checkpoint, a checkpoint, or a model folder over all held-out documents.

    Raises:
        RunError: nothing saved under that name, or a model folder without --shards.
    """
    import torch
    from tqdm import tqdm

    from data_pipeline import disk
    from data_pipeline.shards.format import check_tokenizer
    from data_pipeline.stream.evaluation import EvaluationSet
    from trainer.errors import RunError
    from trainer.evaluate import evaluate as evaluate_documents
    from trainer.objectives.causal_lm import CausalLM
    from trainer.quiet import quieten_libraries
    from trainer.ranks import Ranks
    from trainer.saved import find_saved, open_model, open_tokenizer

    quieten_libraries(use_gpu=torch.cuda.is_available())
    saved = find_saved(name)
    folder = Path(shards) if shards else Path(saved.config.data.shards) if saved.config else None
    if folder is None:
        raise RunError(f"{name}: a model folder does not say which documents to score; give --shards DIR")
    check_tokenizer(folder, open_tokenizer(saved).fingerprint)
    opened = open_model(saved, shards=folder)
    seq_len = saved.config.data.seq_len if saved.config else min(2048, opened.model.config.max_position_embeddings)
    documents = EvaluationSet(folder, split="heldout", seq_len=seq_len)
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device(opened.device))
    with tqdm(desc="evaluate", unit="batch", disable=None) as bar:
        result = evaluate_documents(
            opened.model,
            documents,
            objective=CausalLM(kernel=opened.kernel, device=opened.device),
            ranks=ranks,
            micro_batch_sequences=max(1, 8192 // seq_len),
            on_batch=lambda: bar.update(1),
        )
    assert result is not None, "nobody asked to stop"
    tree: dict[str, Any] = {"model": str(saved.checkpoint or saved.path), "step": saved.step, "shards": str(folder)}
    tree |= result.as_dict()
    tree["written"] = str(saved.run_folder / EVALUATION_NAME) if saved.run_folder else None
    if saved.run_folder:
        disk.write_json(saved.run_folder / EVALUATION_NAME, tree)
    return tree
