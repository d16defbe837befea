"""What somebody without dure does with an exported encoder: sentence-transformers over it, in a process of its own.

`python fresh_sentences.py PLAN.json`: a list of {folder, texts}. Writes beside it, for each entry, the vector of each
text, how long a text may be, and the files beside the weights as the library itself saves them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer


class Block:
    """Makes dure impossible to import: what is opened here, is opened by others' code alone."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ("trainer", "data_pipeline", "launch"):
            raise ImportError(f"{name} is blocked")


def told(entry: dict[str, Any]) -> dict[str, Any]:
    model = SentenceTransformer(entry["folder"], device="cpu")
    again = Path(entry["folder"]).with_name(f"{Path(entry['folder']).name}-saved-again")
    model.save(str(again), create_model_card=False)
    names = ["modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"]
    names += ["1_Pooling/config.json", "2_Normalize/config.json"]
    files = {name: json.loads((again / name).read_text()) for name in names if (again / name).is_file()}
    vectors = model.encode(entry["texts"], batch_size=2)
    return {"vectors": vectors.tolist(), "max_seq_length": model.max_seq_length, "files": files}


if __name__ == "__main__":
    sys.meta_path.insert(0, Block())
    torch.set_num_threads(1)
    plan = Path(sys.argv[1])
    answers = [told(entry) for entry in json.loads(plan.read_text())]
    plan.with_suffix(".out.json").write_text(json.dumps(answers))
