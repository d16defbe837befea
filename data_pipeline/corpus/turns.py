"""The turns of one row: roles by one name each, texts normalised, in an order that a model can be taught.

An optional system turn, then user and assistant in turn, the last an answer; none of them empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from data_pipeline.corpus.records import Message
from data_pipeline.corpus.text import normalise

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_INNER_TEXT_KEYS = ("contents", "content", "text")  # of an answer that is an object, as AIHub's


class FaultyRowError(ValueError):
    """A row that holds no conversation. `reason` is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Turns:
    """The turns of a row as they are added, and what was changed on the way, by name. Raises FaultyRowError."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.changes: set[str] = set()

    def add_pair(self, question: Any, answer: Any, given: Any) -> None:
        """A question about `given` and its answer; or what stands before an answer and it, both as lists of turns."""
        if isinstance(question, list) and isinstance(answer, list):
            self.add_chat([*question, *answer])
            return
        self._add("user", question, given=given)
        self._add("assistant", answer)

    def add_chat(self, turns: Any) -> None:
        """A list of {role, content} or {from, value}."""
        for turn in _as_list(turns):
            if not isinstance(turn, Mapping):
                raise FaultyRowError(
                    "bad_turns", f"a turn is a {type(turn).__name__}, not an object of role and content"
                )
            role = next((turn[key] for key in _ROLE_KEYS if turn.get(key) is not None), None)
            name = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
            if name is None:
                raise FaultyRowError("bad_role", f"the role {role!r} is none of {', '.join(ROLES)}")
            content = next((turn[key] for key in _CONTENT_KEYS if turn.get(key) is not None), None)
            self._add(name, content, given=turn.get("input") if name == "user" else None)

    def close(self, *, system: Any = None) -> None:
        """Put `system` first unless the turns have their own, cut a question without an answer, and check them all."""
        said = self._take_system(system)
        _check_order(self.messages)
        if len(self.messages) < 2:
            raise FaultyRowError("no_answer", "no turn is an answer")
        if len(self.messages) % 2 == 1:
            del self.messages[-1]
            self.changes.add("last_question_cut")
        _check_not_empty(self.messages)
        self._put_system(said)

    def close_prompt(self, *, system: Any = None) -> None:
        """The same of turns that an answer is to follow: the last is a question, which is not cut."""
        said = self._take_system(system)
        _check_order(self.messages)
        if len(self.messages) % 2 == 0:
            why = "the last turn is an answer, where a question should be" if self.messages else "no turn is a question"
            raise FaultyRowError("no_question", why)
        _check_not_empty(self.messages)
        self._put_system(said)

    def _take_system(self, system: Any) -> str:
        """What a system says: the turns' own, which is taken out of them, or `system`."""
        said = self._text(system)
        if self.messages and self.messages[0]["role"] == "system":
            own = self.messages.pop(0)["content"]
            said = own if own.strip() else said
        return said

    def _put_system(self, said: str) -> None:
        if said.strip():
            self.messages.insert(0, Message(role="system", content=said, input=""))

    def _add(self, role: str, content: Any, *, given: Any = None) -> None:
        said = self._text(given)
        self.messages.append(Message(role=role, content=self._text(content), input=said if said.strip() else ""))

    def _text(self, value: Any) -> str:
        text, changes = text_of(value)
        self.changes.update(changes)
        return text


def text_of(value: Any) -> tuple[str, tuple[str, ...]]:
    """The text in a string, an object around one, or a list of its parts, normalised; and what that changed."""
    return normalise(_plain_text(value))


def _check_order(turns: Iterable[Message]) -> None:
    for number, turn in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if turn["role"] != expected:
            raise FaultyRowError(
                "bad_turns",
                f"turn {number + 1} is {turn['role']}, where {expected} should be: one system turn at most, first, "
                "then user and assistant in turn",
            )


def _check_not_empty(turns: Iterable[Message]) -> None:
    for turn in turns:
        if not turn["content"].strip():
            name = "answer" if turn["role"] == "assistant" else "question"
            raise FaultyRowError(f"empty_{name}", f"the {name} is empty, or space alone")


def _plain_text(value: Any) -> str:
    """The text in a value: a string, an object around one, or parts of text one after another; none is ""."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Mapping):
        key = next((key for key in _INNER_TEXT_KEYS if key in value), None)
        if key is not None:
            return _plain_text(value[key])
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in value]
        if all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
    raise FaultyRowError("text_not_string", f"a {type(value).__name__} stands where a text should")


def _as_list(turns: Any) -> list[Any]:
    if isinstance(turns, list):
        return turns
    if turns is None:
        raise FaultyRowError("no_answer", "no turns")
    if isinstance(turns, Mapping) and turns and all(isinstance(column, list) for column in turns.values()):
        # `datasets` writes a sequence of objects as an object of columns.
        return [dict(zip(turns, row, strict=False)) for row in zip(*turns.values(), strict=False)]
    raise FaultyRowError("bad_turns", f"the turns are a {type(turns).__name__}, not a list")
