"""What made the shards, kept inside their folder: the tokenizer's files and the template."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline import disk
from data_pipeline.shards.format import TEMPLATE_FILE, TOKENIZER_FOLDER
from data_pipeline.tokenizer.fingerprint import tokenizer_file

if TYPE_CHECKING:
    from data_pipeline.templates.template import Template

# card.json: the tokenizer's figures, for the cards of the models that are trained with it.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "card.json",
)


def write_companions(output: Path, *, tokenizer: Path, template: Template | None) -> list[dict[str, Any]]:
    """Copy the tokenizer's files as far as there, and write the template; returns what the manifest says of them."""
    source = tokenizer_file(tokenizer).parent
    (output / TOKENIZER_FOLDER).mkdir(parents=True, exist_ok=True)
    texts = {f"{TOKENIZER_FOLDER}/{name}": source / name for name in TOKENIZER_FILES}
    contents = {name: path.read_bytes() for name, path in texts.items() if path.is_file()}
    if template is not None:
        contents[TEMPLATE_FILE] = template.to_yaml().encode()
    entries = []
    for name, data in contents.items():
        record = disk.write_bytes(output / name, data)
        entries.append(asdict(record) | {"name": name})
    return entries


def remove_companions(output: Path) -> None:
    """Remove the companions of an unfinished build, whose inputs may have been others."""
    for pattern in (f"{TOKENIZER_FOLDER}/*", f"{TEMPLATE_FILE}*"):
        for path in output.glob(pattern):
            path.unlink()
