"""What sentence-transformers reads beside a model: how its states become one vector. Its folder format, version 6.

modules.json                        transformer, pooling, normalisation: which class reads what
config_sentence_transformers.json   that it is a SentenceTransformer, compared by the cosine
sentence_bert_config.json           which of the model's outputs are the tokens' states
1_Pooling/  2_Normalize/            mean or CLS; present where vectors have length 1
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from data_pipeline import disk
from trainer.heads import head_options
from trainer.pooling import MODULES_NAME, NORMALIZE_FOLDER, POOLING_FOLDER, VectorForm
from trainer.run_environment import describe_environment

Json = dict[str, Any]

FORMAT_OF = "6.2.0"  # the version of sentence-transformers that writes files like these
_KINDS = {
    "": "sentence_transformers.base.modules.transformer.Transformer",
    POOLING_FOLDER: "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    NORMALIZE_FOLDER: "sentence_transformers.base.modules.normalize.Normalize",
}


def write_sentence_form(model: nn.Module, form: VectorForm, folder: Path) -> None:
    """Write them into the `folder` of `model` or of its adapter; how long a text may be, the tokenizer's files tell."""
    described: Any = model.config
    places = ["", POOLING_FOLDER, *([NORMALIZE_FOLDER] if form.normalize else [])]
    modules = [
        {"idx": number, "name": str(number), "path": place, "type": _KINDS[place]}
        for number, place in enumerate(places)
    ]
    files: dict[str, Any] = {
        MODULES_NAME: modules,
        "config_sentence_transformers.json": _kind(),
        "sentence_bert_config.json": _transformer(described),
        f"{POOLING_FOLDER}/config.json": {
            "embedding_dimension": described.hidden_size,
            "pooling_mode": form.pooling,
            "include_prompt": True,
        },
    }
    if form.normalize:
        vector = "sentence_embedding"
        files[f"{NORMALIZE_FOLDER}/config.json"] = {"module_input_name": vector, "module_output_name": vector}
    for name, tree in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        disk.write_json(folder / name, tree)


def _kind() -> Json:
    packages = describe_environment()["packages"]
    return {
        "__version__": {
            "sentence_transformers": FORMAT_OF,
            "transformers": packages["transformers"],
            "pytorch": packages["torch"],
        },
        "default_prompt_name": None,
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": ""},
        "similarity_fn_name": "cosine",
    }


def _transformer(described: Any) -> Json:
    tree: Json = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
    }
    # Else a pooler that the model has not would be made up, and told about.
    options = head_options(described, head="encoder", labels=())
    return tree | ({"model_kwargs": options} if options else {})
