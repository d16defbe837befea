"""`dure export RUN --output DIR [--merge]`: a folder that transformers, peft and others open."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.errors import RunError


def export(arguments: argparse.Namespace) -> int:
    """Write the folder, say what stands in it and, of a merge, what it cost."""
    if not arguments.output:
        raise RunError("--output: no folder given; name one that does not exist yet")
    import torch

    from trainer.export import ExportOptions
    from trainer.export import export as export_saved
    from trainer.quiet import quieten_libraries
    from trainer.saved import find_saved

    quieten_libraries(use_gpu=torch.cuda.is_available())
    options = ExportOptions(
        merge=arguments.merge,
        dtype=arguments.dtype,
        shards=Path(arguments.shards) if arguments.shards else None,
        accept_merge_error=arguments.accept_merge_error,
        base_name=arguments.base_name,
    )
    output = Path(arguments.output)
    saved = find_saved(arguments.path, checkpoint=arguments.checkpoint)
    if saved.told:
        print(saved.told)
    manifest = export_saved(saved, output, options)
    print(f"{output}: {manifest['what']} weights of {arguments.path}, {manifest['dtype']} (완료)")
    for entry in manifest["files"]:
        print(f"  {entry['num_bytes']:>14,}  {entry['name']}")
    if "merge" in manifest:
        _tell_merge(manifest["merge"], dtype=manifest["dtype"])
    if manifest["what"] == "adapter" and not manifest["base"]["is_loadable"]:
        print(
            "  LOOK (주의): adapter_config.json names the base by its path on this machine; before you pass the folder "
            "on, export with --base-name NAME (its hub name), or --merge"
        )
    use = _next(manifest, output)
    print(f"next: fill in the fields of {output}/README.md; {use}; docs/export.md for other programs")
    return 0


# What a model with each head is used by; one that nothing is said of writes text.
_USES = {
    "classifier": '`dure predict {folder} --input FILE`, or pipeline("text-classification", model="{folder}")',
    "encoder": '`dure predict {folder} --input FILE`, or SentenceTransformer("{folder}")',
    "masked_lm": 'model: {{from: {folder}}} in the next stage, or pipeline("fill-mask", model="{folder}")',
    "causal_lm": "`dure chat {folder}`",
}


def _next(manifest: Mapping[str, Any], output: Path) -> str:
    """The commands that open the folder, by what stands on top of the model."""
    return _USES[manifest.get("head", "causal_lm")].format(folder=output)


def _tell_merge(merge: dict[str, Any], *, dtype: str) -> None:
    for name, key in (("merged, in float32", "float32"), (f"as written, in {dtype}", "as_written")):
        measure = merge[key]
        print(
            f"  {name}: largest logit error {measure['max_logit_error']:.3g}, top-1 agreement "
            f"{measure['top_1_agreement']:.4%} over {measure['num_rows']} held-out rows"
        )
    agreement, least = merge["as_written"]["top_1_agreement"], merge["limits"]["top_1_agreement"]
    if agreement < least:
        print(
            f"  LOOK (주의): as written it names another next token in {1 - agreement:.2%} of the places, more than "
            f"{1 - least:.2%}: that is {dtype}'s rounding; --dtype fp32 keeps them"
        )
    if merge["is_accepted"]:
        limits = merge["limits"]
        print(f"  beyond the limits ({limits['max_logit_error']:g}, {limits['top_1_agreement']:.1%}), and accepted")
