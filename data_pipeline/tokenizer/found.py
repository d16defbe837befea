"""Tokenizers that are no folder with a tokenizer.json: a name of the Hugging Face hub, or BERT's vocab.txt alone.

Of the hub the files of the tokenizer are fetched, never weights; they lie in the hub's own cache. A vocab.txt becomes
a tokenizer.json in a cache of ours, by its content, so that what it is made of stays as it was.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.decoders import WordPiece

from data_pipeline import disk
from data_pipeline.stage import StageError

VOCAB_FILE, SETTINGS_NAME = "vocab.txt", "tokenizer_config.json"
PREFIX = "hf:"
FILES = (
    "tokenizer.json",
    SETTINGS_NAME,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    VOCAB_FILE,
)
ROLES = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
_NAME = re.compile(r"(?P<prefix>hf:)?(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[^@\s]+))?")
# Of tokenizer_config.json: others cut words in another way, whatever their vocab.txt.
_BERT_CLASSES = re.compile(r"(Bert|Electra|DistilBert|MobileBert|Funnel|MPNet)Tokenizer(Fast)?")


def hub_folder(path: Path) -> Path | None:
    """The files of the tokenizer that `path` names on the hub (klue/bert-base, hf:klue/bert-base@REVISION).

    None where it is no such name: it has another form, or its first part is a folder here.

    Raises:
        StageError: the hub has no such model or can't be reached, or the model brings no tokenizer.
    """
    match = _NAME.fullmatch(path.as_posix())
    if match is None or (not match["prefix"] and Path(path.parts[0]).exists()):
        return None
    return _fetched(match["name"], match["revision"])


@functools.lru_cache(maxsize=16)
def _fetched(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    command = f'hf download {name} --include "tokenizer*" "vocab.txt" "special_tokens_map.json"'
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # its own errors, those of its HTTP client and of the disk have no common class
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StageError(
            f"{name}: no folder here, and the hub gave no tokenizer of that name (허브에서 받을 수 없음): "
            f"{type(error).__name__}: {said}; check the name, or fetch it where there is a network: {command}"
        ) from None
    if not any((folder / file).is_file() for file in ("tokenizer.json", VOCAB_FILE)):
        raise StageError(
            f"{name}: neither tokenizer.json nor {VOCAB_FILE} is in the hub's cache ({folder}); fetch it where there "
            f"is a network: {command}. A model that has neither is opened by its own code: save it with "
            f"AutoTokenizer.from_pretrained({name!r}).save_pretrained(DIR), and give DIR"
        )
    return folder


def from_vocab(folder: Path) -> Path:
    """The tokenizer.json that BERT's vocab.txt in `folder` amounts to, beside settings that name its roles.

    Raises:
        StageError: the settings name a tokenizer that is none of BERT's, or the vocabulary lacks a role.
    """
    settings = disk.read_object(folder / SETTINGS_NAME)
    given = disk.read_object(folder / "special_tokens_map.json")
    name = str(settings.get("tokenizer_class") or "BertTokenizer")
    if not _BERT_CLASSES.fullmatch(name):
        raise StageError(
            f"{folder}: a {VOCAB_FILE} of a {name}, which is opened by its own code; save it with "
            "AutoTokenizer.from_pretrained(…).save_pretrained(DIR) where that runs, and give DIR"
        )
    lines = (folder / VOCAB_FILE).read_text(encoding="utf-8").split("\n")
    tokens = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    roles = {role: _content(settings.get(role, given.get(role, token))) for role, token in ROLES.items()}
    missing = [f"{role} {token!r}" for role, token in roles.items() if token not in set(tokens)]
    if missing:
        raise StageError(f"{folder}: {VOCAB_FILE} has no {', '.join(missing)}; is it a vocabulary of BERT's?")
    tree = json.loads(_tokenizer(tokens, roles, settings).to_str())
    kept = {key: value for key, value in settings.items() if key != "added_tokens_decoder"}
    told = kept | roles | {"tokenizer_class": "BertTokenizer"}
    return _kept({"tokenizer.json": tree, SETTINGS_NAME: told}) / "tokenizer.json"


def _tokenizer(tokens: list[str], roles: dict[str, str], settings: dict[str, Any]) -> Tokenizer:
    """As transformers' BertTokenizer reads the file: the last of two equal lines counts."""
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=roles["unk_token"], max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        strip_accents=settings.get("strip_accents"),
        lowercase=bool(settings.get("do_lower_case", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = WordPiece(prefix="##")
    sep, cls = roles["sep_token"], roles["cls_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(token, vocabulary[token]) for token in (cls, sep)],
    )
    tokenizer.add_special_tokens(sorted(roles.values(), key=vocabulary.__getitem__))
    return tokenizer


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _kept(files: dict[str, Any]) -> Path:
    """A folder of the cache that holds these files, whole; equal files have one folder."""
    contents = {name: json.dumps(tree, ensure_ascii=False, indent=1).encode() for name, tree in files.items()}
    digest = hashlib.sha256(b"\0".join(contents.values())).hexdigest()[:32]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dure" / "tokenizers"
    folder = cache / digest
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".made-", dir=cache))
    for name, data in contents.items():
        disk.write_bytes(made / name, data)
    try:
        made.rename(folder)
    except OSError:  # another process was first
        disk.remove_tree(made)
        if not folder.is_dir():
            raise
    return folder
