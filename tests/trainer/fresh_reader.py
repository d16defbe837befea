"""What somebody without dure does with exports: opens them by plain transformers and peft, in a process of their own.

`python fresh_reader.py PLAN.json`: a list of {folder, kind: model|adapter, dtype, base?, nf4?, rows, messages?}. Writes
beside it, for each entry, logits of each row and the answer to each conversation by the tokenizer's own chat template.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def opened(entry: dict[str, Any]) -> Any:
    packing = {}
    if entry.get("nf4"):
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
        packing = {"quantization_config": config, "device_map": {"": "cpu"}}
    source = entry.get("base") or entry["folder"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[entry["dtype"]], **packing).eval()
    for module in model.modules():  # bitsandbytes' own layout of some CPUs computes in bf16
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if entry["kind"] == "adapter":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, entry["folder"]).eval()
    return model


@torch.no_grad()
def answered(entry: dict[str, Any]) -> dict[str, Any]:
    model, tokenizer = opened(entry), AutoTokenizer.from_pretrained(entry["folder"])
    logits = [model(input_ids=torch.tensor([row])).logits[0].float() for row in entry["rows"]]
    prompts, answers = [], []
    for messages in entry.get("messages", []):
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        said = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=24)[0, len(ids) :]
        prompts.append(ids)
        answers.append(said.tolist())
    return {"logits": logits, "prompts": prompts, "answers": answers, "length": tokenizer.model_max_length}


class Block:
    """Makes dure impossible to import: what is opened here, is opened by others' code alone."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ("trainer", "data_pipeline", "launch"):
            raise ImportError(f"{name} is blocked")


if __name__ == "__main__":
    sys.meta_path.insert(0, Block())
    torch.set_num_threads(1)
    plan = Path(sys.argv[1])
    torch.save([answered(entry) for entry in json.loads(plan.read_text())], plan.with_suffix(".pt"))
