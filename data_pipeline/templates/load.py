"""A template by its name, by the path of a file, or the tokenizer's own (`tokenizer`)."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from data_pipeline.templates.file import JinjaFile, TemplateFile, read_template_file
from data_pipeline.templates.formatted import FormattedTemplate
from data_pipeline.templates.template import Template, TemplateError
from data_pipeline.tokenizer.encode import special_tokens
from data_pipeline.tokenizer.fingerprint import tokenizer_file

FOLDER = Path(__file__).parent
TOKENIZER = "tokenizer"
CHAT_TEMPLATE_FILE = "chat_template.jinja"


def template_names() -> list[str]:
    """What `load_template` takes beside paths."""
    return [*sorted(path.stem for path in FOLDER.glob("*.yaml")), TOKENIZER]


def load_template(name_or_path: str | Path, *, tokenizer: Path) -> Template:
    """The template of that name, of the YAML or Jinja file at that path, or ("tokenizer") the chat template in the
    folder `tokenizer`; for the EOS that this folder names.

    Raises:
        TemplateError: no such template, or one that does not fit the tokenizer.
        ConfigError: a file with faults, each in a line.
    """
    folder = tokenizer_file(tokenizer).parent
    tokens = special_tokens(folder)
    eos_token = tokens.get("eos_token")
    if eos_token is None:
        raise TemplateError(f"{folder}: no eos_token in tokenizer_config.json; name one: an answer needs an end")
    file = _read(str(name_or_path), folder)
    if isinstance(file, TemplateFile):
        return FormattedTemplate(file, eos_token=eos_token, bos_token=tokens.get("bos_token"))
    from data_pipeline.templates.chat import ChatTemplate

    return ChatTemplate(file, eos_token=eos_token, tokens=tokens)


def _read(name: str, tokenizer: Path) -> TemplateFile | JinjaFile:
    if name == TOKENIZER:
        return JinjaFile(name=TOKENIZER, jinja=_chat_template_of(tokenizer))
    if (FOLDER / f"{name}.yaml").is_file() and "/" not in name:
        return read_template_file(FOLDER / f"{name}.yaml")
    path = Path(name)
    if not path.is_file():
        names = ", ".join(template_names())
        close = difflib.get_close_matches(name, template_names(), n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise TemplateError(f"template: {name!r} is neither a template nor a file; there are {names}{meant}")
    if path.suffix == ".jinja":
        return JinjaFile(name=path.stem, jinja=path.read_text(encoding="utf-8"))
    return read_template_file(path)


def _chat_template_of(tokenizer: Path) -> str:
    """The Jinja text of a tokenizer folder: a file of its own, or in the older way a value of its settings."""
    file, settings = tokenizer / CHAT_TEMPLATE_FILE, tokenizer / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found: Any = json.loads(settings.read_text(encoding="utf-8")).get("chat_template") if settings.is_file() else None
    if isinstance(found, list):  # several by name
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    if not isinstance(found, str):
        names = ", ".join(name for name in template_names() if name != TOKENIZER)
        raise TemplateError(f"{tokenizer}: the tokenizer has no chat template of its own; choose one of {names}")
    return found
