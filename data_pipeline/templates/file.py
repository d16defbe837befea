"""A template file: YAML with either the parts of a template or a Jinja text. All faults of a file are told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from data_pipeline.config import Config, ConfigError, read_yaml, to_tree, validate
from data_pipeline.stage import fingerprint

CONTENT = "{content}"
INPUT = "{input}"


class TemplateFile(Config):
    """The parts that a row is put together from. `{content}` is the text of a message, `{input}` its input.

    system | start, then a turn: user, answer_prefix, answer + EOS, and after_answer before the next turn's user.
    """

    name: str = Field(min_length=1)
    about: str = ""
    bos: bool = False  # whether the tokenizer's BOS stands first
    start: str = ""  # stands first in rows without a system turn
    start_with_input: str | None = None  # instead of it, where the first user turn has an input
    system: str | None = None
    user: str
    user_with_input: str | None = None
    answer_prefix: str = ""
    answer: str
    after_answer: str = ""

    @field_validator("user", "answer", "system", "user_with_input")
    @classmethod
    def _holds_content_once(cls, part: str | None) -> str | None:
        if part is not None and part.count(CONTENT) != 1:
            raise ValueError(
                f"holds {CONTENT} {part.count(CONTENT)} times, got {part!r}; write it once, where the message's text "
                "goes"
            )
        return part

    @field_validator("user_with_input")
    @classmethod
    def _holds_input_once(cls, part: str | None) -> str | None:
        if part is not None and part.count(INPUT) != 1:
            raise ValueError(f"holds {INPUT} {part.count(INPUT)} times, got {part!r}; write it once")
        return part

    @model_validator(mode="after")
    def _something_stands_before_an_answer(self) -> TemplateFile:
        if not (self.answer_prefix or self.user.strip() != CONTENT):
            raise ValueError(
                f"user is {self.user!r} and answer_prefix is empty: nothing tells a question from its answer; "
                "add an answer_prefix"
            )
        return self


class JinjaFile(Config):
    """A chat template in Jinja, as tokenizers carry it."""

    name: str = Field(min_length=1)
    about: str = ""
    jinja: str = Field(min_length=1)


def read_template_file(path: Path) -> TemplateFile | JinjaFile:
    """The template file at `path`; raises ConfigError with a line for each fault."""
    tree = read_yaml(path)
    if "jinja" in tree:
        return validate(tree, JinjaFile, where=str(path))
    if tree.get("answer") is None:
        raise ConfigError(
            f"{path}: answer: missing: a template without an answer part has nothing to learn; "
            f'write where the answer goes, for example answer: " {CONTENT}"'
        )
    return validate(tree, TemplateFile, where=str(path))


def sha256_of(file: Config) -> str:
    """A hash of what decides the rendering: neither the name, nor comments, nor the order of keys."""
    tree: dict[str, Any] = to_tree(file)
    return fingerprint({key: value for key, value in tree.items() if key not in ("name", "about")})
