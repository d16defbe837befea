"""`dure evaluate RUN|MODEL`: loss and bits per byte over held-out documents, printed and kept beside the run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.saved import Dtype

EVALUATION_NAME = "evaluation.json"
MAX_SEQ_LEN = 2048  # inputs a row, of a model folder, which names none


def evaluate(arguments: argparse.Namespace) -> int:
    """Score a saved model over the held-out documents of its run's shards, or of --shards."""
    result = evaluate_saved(arguments.path, shards=arguments.shards, dtype=arguments.dtype)
    print(f"{result['model']}: held-out (검증) {result['shards']}")
    held = f", base held in {result['quantization']}" if result["quantization"] else ""
    for name in ("loss", "bits_per_byte"):
        print(f"  {name:<14} {result[name]:,.4f} (in {result['dtype']}{held})")
    for name in ("num_documents", "num_targets", "num_bytes"):
        print(f"  {name:<14} {result[name]:,}")
    if result["written"]:
        print(f"written: {result['written']}")
    return 0


def evaluate_saved(name: str, *, shards: str | None = None, dtype: Dtype | None = None) -> dict[str, Any]:
    """The figures of a run's newest checkpoint, a checkpoint, or a model folder over all held-out documents.

    Args:
        dtype: of the weights and the products, which the figures depend on a little; `usual_dtype` if None.

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
    from trainer.saved import (
        DTYPES,
        find_saved,
        open_model,
        open_tokenizer,
        quantization_of,
        usual_dtype,
        vocabulary_of,
    )

    quieten_libraries(use_gpu=torch.cuda.is_available())
    saved = find_saved(name)
    folder = Path(shards) if shards else Path(saved.config.data.shards) if saved.config else None
    if folder is None:
        raise RunError(f"{name}: a model folder does not say which documents to score; give --shards DIR")
    check_tokenizer(folder, open_tokenizer(saved).fingerprint)
    chosen = dtype or usual_dtype(saved)
    quantization = quantization_of(saved)
    opened = open_model(saved, shards=folder, dtype=DTYPES[chosen])
    positions = getattr(opened.model.config, "max_position_embeddings", None) or MAX_SEQ_LEN
    seq_len = saved.config.data.seq_len if saved.config else min(MAX_SEQ_LEN, positions)
    documents = EvaluationSet(folder, split="heldout", seq_len=seq_len)
    documents.pad_with(vocabulary_of(saved).in_model(opened.model).pad_id)
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
    tree |= {"dtype": chosen, "quantization": quantization.kind if quantization else None}
    tree |= result.as_dict()
    tree["written"] = str(saved.run_folder / EVALUATION_NAME) if saved.run_folder else None
    if saved.run_folder:
        disk.write_json(saved.run_folder / EVALUATION_NAME, tree)
    return tree
