"""What somebody without dure does with exports: transformers' pipelines over them, in a process of their own.

`python fresh_pipelines.py PLAN.json`: a list of {task, folder, asked, options?, base?, labels?, nf4?}. Beside it stands
then, for each entry, what the pipeline says of each of `asked`. With `base` the folder is a peft adapter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig, pipeline


def opened(entry: dict[str, Any]) -> Any:
    if "base" not in entry:
        return pipeline(entry["task"], model=entry["folder"])
    from peft import PeftModel

    tokenizer = AutoTokenizer.from_pretrained(entry["folder"])
    base = AutoModelForSequenceClassification.from_pretrained(
        entry["base"], num_labels=len(entry["labels"]), **(packing() if entry["nf4"] else {})
    )
    for module in base.modules():  # bitsandbytes' own layout of some CPUs computes in bf16
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    base.config.id2label = dict(enumerate(entry["labels"]))
    base.config.pad_token_id = tokenizer.pad_token_id
    return pipeline(entry["task"], model=PeftModel.from_pretrained(base, entry["folder"]), tokenizer=tokenizer)


def packing() -> dict[str, Any]:
    """As the card says: in 4 bits but for the head."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["score", "classifier", "pooler.dense"],
    )
    return {"quantization_config": config, "device_map": {"": "cpu"}, "dtype": torch.float32}


class Block:
    """Makes dure impossible to import: what is opened here, is opened by others' code alone."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ("trainer", "data_pipeline", "launch"):
            raise ImportError(f"{name} is blocked")


if __name__ == "__main__":
    sys.meta_path.insert(0, Block())
    torch.set_num_threads(1)
    plan = Path(sys.argv[1])
    told = []
    for entry in json.loads(plan.read_text()):
        run = opened(entry)
        told.append([run(asked, **entry.get("options", {})) for asked in entry["asked"]])
    plan.with_suffix(".out.json").write_text(json.dumps(told, ensure_ascii=False))
