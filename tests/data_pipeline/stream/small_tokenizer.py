"""A tokenizer of numbers beside the shards of `shard_folder.py`: what rows with a frame ask for its roles."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

ROLES = {"eos_token": 0, "pad_token": 1, "mask_token": 2, "sep_token": 3, "cls_token": 4}
MASK, SEP, CLS = 2, 3, 4
FIRST_ORDINARY = 5


def write_tokenizer(folder: Path, *, vocab_size: int = 1000, roles: dict[str, int] = ROLES) -> Path:
    """`folder`/tokenizer, whose token of id n is `tn`; `roles` are its special tokens."""
    vocabulary = {f"t{number}": number for number in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t5"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([f"t{number}" for number in roles.values()])
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer/tokenizer.json"))
    named = {role: f"t{number}" for role, number in roles.items()}
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(named))
    return folder
