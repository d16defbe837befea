"""A chat template in Jinja, as a tokenizer carries it, followed turn by turn so that its answers are known.

Its text is cut where an answer's turn begins (what it renders to ask for the next answer) and ends (its EOS). Which
characters come from a message is found by rendering marks in place of the messages' texts. A template whose turns
can't be told apart in this way is refused, with what it did; nothing is guessed.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from data_pipeline.config import to_yaml
from data_pipeline.templates.file import JinjaFile, sha256_of
from data_pipeline.templates.template import Message, Piece, Template, TemplateError, check_turns, joined

Parts = list[tuple[str, bool]]  # text, and whether it is the template's own
Turns = list[dict[str, str]]

# Private-use characters that no message holds: NFC text of a corpus may, so a row with one is refused.
_OPEN, _CLOSE = "\ue8a1", "\ue8a2"
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


class ChatTemplate(Template):
    """A Jinja text for one tokenizer. `tokens`: its special tokens by role, which the text may name."""

    def __init__(self, file: JinjaFile, *, eos_token: str, tokens: dict[str, str]) -> None:
        self.name = file.name
        self.sha256 = sha256_of(file)
        self.eos_token = eos_token
        self._file = file
        self._tokens = tokens
        self._compiled = _compile(file)
        self._before, self._after = self._around_an_answer()

    def render(self, messages: Sequence[Message]) -> list[Piece]:
        check_turns(messages, last="assistant")
        return self._pieces(_turns(messages))

    def prompt_pieces(self, messages: Sequence[Message]) -> list[Piece]:
        check_turns(messages, last="user")
        return self._pieces(_turns(messages))

    def chat_template(self) -> str:
        return self._file.jinja

    def answer_text(self, decoded: str) -> str:
        answer = decoded.removesuffix(self.eos_token).removeprefix(self._before)
        return answer.partition(self._after)[0] if self._after else answer

    def to_yaml(self) -> str:
        return to_yaml(self._file)

    def _pieces(self, turns: Turns) -> list[Piece]:
        """Alternating prompts and answers; each prompt is what the template renders to ask for the answer."""
        pieces: list[Piece] = []
        rendered: Parts = []  # what the pieces so far and the rest of the last turn hold
        rest: Parts = []  # what stands behind the last EOS
        for number, turn in enumerate(turns):
            if turn["role"] != "user":
                continue
            asked = self._parts(turns[: number + 1], asks=True)
            pieces.append(joined(rest + self._behind(rendered, asked)))
            if number + 1 == len(turns):
                return pieces
            rendered = self._parts(turns[: number + 2], asks=False)
            answer, rest = self._cut_at_eos(self._behind(asked, rendered))
            pieces.append(joined(answer, is_answer=True, ends=True))
        return pieces

    def _behind(self, start: Parts, whole: Parts) -> Parts:
        """What `whole` holds behind `start`, or a refusal where it does not begin with it."""
        first, text = _text(start), _text(whole)
        if not text.startswith(first):
            raise TemplateError(
                f"template {self.name!r}: a turn changes what was written before it (it renders "
                f"{text[-80:]!r} after {first[-80:]!r}), so a prompt would differ from what was trained; "
                "use a template file instead"
            )
        return _without_start(whole, len(first))

    def _cut_at_eos(self, parts: Parts) -> tuple[Parts, Parts]:
        """An answer's turn up to its EOS, and what stands behind it."""
        answer: Parts = []
        has_content = False
        for place, (text, is_own) in enumerate(parts):
            has_content |= not is_own
            before, found, behind = text.partition(self.eos_token)
            if is_own and found and has_content:
                return [*answer, (before, True)], [(behind, True), *parts[place + 1 :]]
            answer.append((text, is_own))
        why = (
            f"its answers end with {_text(parts)[-40:]!r}, not with the tokenizer's EOS {self.eos_token!r}, so "
            "that a model would never stop; name the token that ends a turn as eos_token in tokenizer_config.json"
            if has_content
            else "it renders no answer (답변이 없는 템플릿)"
        )
        raise TemplateError(f"template {self.name!r}: {why}, or use a template file")

    def _parts(self, turns: Turns, *, asks: bool) -> Parts:
        """The rendering as texts of the template and of the messages; raises TemplateError where it can't be told."""
        whole = self._rendered(turns, asks=asks)
        marked = self._rendered(
            [turn | {"content": f"{_OPEN}{number}{_CLOSE}"} for number, turn in enumerate(turns)], asks=asks
        )
        parts = _aligned(marked, whole, [turn["content"] for turn in turns])
        if parts is not None:
            return parts
        raise TemplateError(
            f"template {self.name!r}: it changes the texts of messages in a way that can't be followed (it renders "
            f"{whole[-80:]!r}); use a template file instead"
        )

    def _rendered(self, turns: Turns, *, asks: bool) -> str:
        try:
            return self._compiled(messages=turns, add_generation_prompt=asks, **self._tokens)
        except Exception as error:  # what a template raises, and what Jinja finds wrong in it
            raise TemplateError(
                f"template {self.name!r}: it refuses these messages: {error}; change them, or use another template"
            ) from None

    def _around_an_answer(self) -> tuple[str, str]:
        """What the template writes around the text of an answer; a template without answers is refused here."""
        turns = [{"role": "user", "content": "질문"}, {"role": "assistant", "content": "답변"}]
        asked = self._parts(turns[:1], asks=True)
        answer, _ = self._cut_at_eos(self._behind(asked, self._parts(turns, asks=False)))
        place = next(place for place, (_, is_own) in enumerate(answer) if not is_own)
        return _text(answer[:place]), _text(answer[place + 1 :])


def _turns(messages: Sequence[Message]) -> Turns:
    """Messages as chat templates know them: an input stands below its question."""
    turns = []
    for message in messages:
        given = message.get("input")
        content = f"{message['content']}\n\n{given}" if given else message["content"]
        if _OPEN in content or _CLOSE in content:
            raise TemplateError(
                f"messages: a text holds the private-use character U+{ord(_OPEN):X} or U+{ord(_CLOSE):X}, which marks "
                "texts in a chat template; remove it from the text"
            )
        turns.append({"role": message["role"], "content": content})
    return turns


def _aligned(marked: str, whole: str, contents: list[str]) -> Parts | None:
    """The parts of `whole`, by a rendering with marks in place of texts; None if they don't fit.

    A template may trim a text: all white space, or line ends alone.
    """
    pieces = _MARK.split(marked)
    parts: Parts = [(pieces[0], True)]
    done = len(pieces[0])
    for number, behind in zip(pieces[1::2], pieces[2::2], strict=True):
        content = contents[int(number)]
        spellings = (content, content.strip("\n"), content.lstrip("\n"), content.rstrip("\n"), content.strip())
        fitting = [spelling for spelling in spellings if whole.startswith(spelling + behind, done)]
        if not fitting:
            return None
        parts += [(max(fitting, key=len), False), (behind, True)]
        done += len(parts[-2][0]) + len(behind)
    return parts if _text(parts) == whole else None


def _without_start(parts: Parts, num_characters: int) -> Parts:
    kept: Parts = []
    for text, is_own in parts:
        if num_characters < len(text) or not (text or is_own):  # an empty answer is one all the same
            kept.append((text[num_characters:], is_own))
        num_characters = max(num_characters - len(text), 0)
    return kept


def _text(parts: Parts) -> str:
    return "".join(text for text, _ in parts)


def _compile(file: JinjaFile) -> Callable[..., str]:
    """The template as transformers compiles it: the same settings, extensions and functions."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_extension(), loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(file.jinja).render
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"template {file.name!r}: line {error.lineno}: {error}; mend the Jinja text") from None


def _generation_extension() -> Any:
    """`{% generation %}`: marks answers for trl and transformers; here it prints what it holds."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    # Jinja's own escapes <, >, & for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(why: str) -> None:
    raise TemplateError(why)
