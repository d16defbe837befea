"""A template made of parts with `{content}` and `{input}`, and the Jinja that renders to the same text."""

from __future__ import annotations

import json
from collections.abc import Sequence

from data_pipeline.config import to_yaml
from data_pipeline.templates.file import CONTENT, INPUT, TemplateFile, sha256_of
from data_pipeline.templates.template import Message, Piece, Template, TemplateError, check_turns, joined

Parts = list[tuple[str, bool]]  # text, and whether it is the template's own


class FormattedTemplate(Template):
    """A template file's parts for one tokenizer, whose EOS and BOS it writes."""

    def __init__(self, file: TemplateFile, *, eos_token: str, bos_token: str | None) -> None:
        if file.bos and bos_token is None:
            raise TemplateError(
                f"template {file.name!r}: bos is true, but the tokenizer has no bos_token; set bos: false, or name one "
                "in tokenizer_config.json"
            )
        self.name = file.name
        self.sha256 = sha256_of(file)
        self.eos_token = eos_token
        self._file = file
        self._bos_token = bos_token if file.bos else None
        self._before, _, after = file.answer.partition(CONTENT)
        # A marker that closes an answer and is the tokenizer's EOS is written once.
        self._after = after.removesuffix(eos_token)

    def render(self, messages: Sequence[Message]) -> list[Piece]:
        check_turns(messages, last="assistant")
        return self._pieces(messages)

    def prompt_pieces(self, messages: Sequence[Message]) -> list[Piece]:
        check_turns(messages, last="user")
        return self._pieces(messages)

    def answer_text(self, decoded: str) -> str:
        answer = decoded.removesuffix(self.eos_token).removeprefix(self._before)
        return answer.partition(self._after)[0] if self._after else answer

    def chat_template(self) -> str:
        file = self._file
        lines = [
            "{%- for message in messages -%}",
            *_start_in_jinja(file),
            "{%- if message['role'] == 'system' -%}",
            _system_in_jinja(file),
            "{%- elif message['role'] == 'user' -%}",
            *_after_answer_in_jinja(file),
            "{%- if message['input'] -%}",
            _with_input_in_jinja(file),
            "{%- else -%}" + _in_jinja(file.user) + "{%- endif -%}",
            "{%- elif message['role'] == 'assistant' -%}",
            _literal(file.answer_prefix + self._before) + "{{- message['content'] -}}" + _literal(self._after),
            "{{- eos_token -}}",
            "{%- else -%}" + _raising("a role must be system, user or assistant") + "{%- endif -%}",
            "{%- endfor -%}",
            "{%- if add_generation_prompt -%}" + _literal(file.answer_prefix) + "{%- endif -%}",
        ]
        return "\n".join(line for line in lines if line) + "\n"

    def to_yaml(self) -> str:
        return to_yaml(self._file)

    def _pieces(self, messages: Sequence[Message]) -> list[Piece]:
        pieces: list[Piece] = []
        before: Parts = self._start(messages)
        for message in messages:
            if message["role"] == "user":
                before += self._user(message)
                before.append((self._file.answer_prefix, True))
            elif message["role"] == "assistant":
                pieces.append(joined(before))
                answer = [(self._before, True), (message["content"], False), (self._after, True)]
                pieces.append(joined(answer, is_answer=True, ends=True))
                before = [(self._file.after_answer, True)]
        return pieces if messages[-1]["role"] == "assistant" else [*pieces, joined(before)]

    def _start(self, messages: Sequence[Message]) -> Parts:
        first: Parts = [(self._bos_token, True)] if self._bos_token else []
        if messages[0]["role"] == "system":
            if self._file.system is None:
                raise TemplateError(
                    f"template {self.name!r}: no place for a system turn, but the row begins with one; "
                    "add `system` to the template, or choose another"
                )
            return first + _filled(self._file.system, messages[0])
        start = self._file.start
        if messages[0].get("input") and self._file.start_with_input is not None:
            start = self._file.start_with_input
        return [*first, (start, True)]

    def _user(self, message: Message) -> Parts:
        if not message.get("input"):
            return _filled(self._file.user, message)
        if self._file.user_with_input is None:
            raise TemplateError(
                f"template {self.name!r}: no place for an input, but a user turn has one; "
                "add `user_with_input` to the template, or choose another"
            )
        return _filled(self._file.user_with_input, message)


def _split(part: str) -> list[tuple[str, str]]:
    """(literal, field behind it) in order; the last field is empty."""
    found: list[tuple[str, str]] = []
    rest = part
    while rest:
        places = [(rest.find(field), field) for field in (CONTENT, INPUT) if field in rest]
        if not places:
            return [*found, (rest, "")]
        place, field = min(places)
        found.append((rest[:place], field))
        rest = rest[place + len(field) :]
    return found


def _filled(part: str, message: Message) -> Parts:
    """A part with its fields filled in; what a message says is never read as a part."""
    parts: Parts = []
    for literal, field in _split(part):
        parts.append((literal, True))
        if field:
            parts.append((message[field[1:-1]], False))
    return parts


def _literal(text: str) -> str:
    """Jinja that prints `text`, whatever is in it, and no white space around it."""
    return "{{- " + json.dumps(text, ensure_ascii=False) + " -}}" if text else ""


def _in_jinja(part: str) -> str:
    return "".join(
        _literal(literal) + (f"{{{{- message['{field[1:-1]}'] -}}}}" if field else "")
        for literal, field in _split(part)
    )


def _raising(why: str) -> str:
    return "{{- raise_exception(" + json.dumps(why, ensure_ascii=False) + ") -}}"


def _start_in_jinja(file: TemplateFile) -> list[str]:
    start = _literal(file.start)
    if file.start_with_input is not None:
        with_input = _literal(file.start_with_input)
        start = "{%- if message['input'] -%}" + with_input + "{%- else -%}" + start + "{%- endif -%}"
    first = ["{{- bos_token -}}"] if file.bos else []
    if start:
        first.append("{%- if message['role'] != 'system' -%}" + start + "{%- endif -%}")
    return ["{%- if loop.first -%}", *first, "{%- endif -%}"] if first else []


def _after_answer_in_jinja(file: TemplateFile) -> list[str]:
    if not file.after_answer:
        return []
    is_next_turn = "not loop.first and messages[loop.index0 - 1]['role'] == 'assistant'"
    return ["{%- if " + is_next_turn + " -%}" + _literal(file.after_answer) + "{%- endif -%}"]


def _system_in_jinja(file: TemplateFile) -> str:
    return _in_jinja(file.system) if file.system else _raising(f"template {file.name} has no place for a system turn")


def _with_input_in_jinja(file: TemplateFile) -> str:
    if file.user_with_input is None:
        return _raising(f"template {file.name} has no place for an input")
    return _in_jinja(file.user_with_input)
