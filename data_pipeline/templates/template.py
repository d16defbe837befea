"""What a template is, whoever wrote it: messages -> pieces of text, some of them answers that a model must learn.

Knows neither files nor tokenizers. A message is {role, content}, and for a user optionally {input}: what the question
is about (Alpaca's `input`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.stage import StageError

Message = Mapping[str, str]
Span = tuple[int, int]


class TemplateError(StageError):
    """A template that can't be used, or messages that a template has no place for."""


@dataclass(frozen=True)
class Piece:
    """Text that is encoded by itself.

    `is_answer`: its tokens are targets. `ends`: an EOS id follows the text, and is a target too. `own`: the characters
    [start, end) that are the template's own words; only there may a marker become its special token.
    """

    text: str
    is_answer: bool = False
    ends: bool = False
    own: tuple[Span, ...] = ()


class Template(ABC):
    """A way to write messages. `name` is for people; equal `sha256` render equally.

    `eos_token` is that of the tokenizer that the template was loaded with.
    """

    name: str
    sha256: str
    eos_token: str

    @abstractmethod
    def render(self, messages: Sequence[Message]) -> list[Piece]:
        """The pieces of messages that end with an assistant turn, the last one its answer; raises TemplateError."""

    @abstractmethod
    def prompt_pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """The pieces before the answer to come, for messages that end with a user turn: a prefix of `render`'s."""

    @abstractmethod
    def chat_template(self) -> str:
        """The same as Jinja, for `chat_template.jinja`; transformers renders it to `text` of the pieces."""

    @abstractmethod
    def answer_text(self, decoded: str) -> str:
        """The answer in what a model said (special tokens spelled out or not), without what the template adds."""

    @abstractmethod
    def to_yaml(self) -> str:
        """A template file that loads to a template of the same `sha256`."""

    def prompt(self, messages: Sequence[Message]) -> str:
        """What stands before the answer to come, as text."""
        return self.text(self.prompt_pieces(messages))

    def text(self, pieces: Sequence[Piece]) -> str:
        """Pieces as one text, each EOS spelled out."""
        return "".join(piece.text + self.eos_token * piece.ends for piece in pieces)


def joined(parts: Sequence[tuple[str, bool]], *, is_answer: bool = False, ends: bool = False) -> Piece:
    """One piece of (text, whether it is the template's own)."""
    text = ""
    own: list[Span] = []
    for part, is_own in parts:
        if is_own and part:
            if own and own[-1][1] == len(text):
                own[-1] = (own[-1][0], len(text) + len(part))
            else:
                own.append((len(text), len(text) + len(part)))
        text += part
    return Piece(text, is_answer=is_answer, ends=ends, own=tuple(own))


def check_turns(messages: Sequence[Message], *, last: str) -> None:
    """Raise TemplateError unless messages are perhaps a system turn, then user and assistant in turn, up to `last`."""
    roles = [message.get("role") for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    expected = ["user", "assistant"] * len(turns)
    if not turns or turns != expected[: len(turns)] or turns[-1] != last:
        raise TemplateError(
            f"messages: the roles are {', '.join(map(str, roles)) or 'none'}; needed are an optional system, then user "
            f"and assistant in turn, the last one {last}"
        )
    for number, message in enumerate(messages):
        if not isinstance(message.get("content"), str):
            found = type(message.get("content")).__name__
            raise TemplateError(f"messages: content of message {number} is a {found}; text is needed")
