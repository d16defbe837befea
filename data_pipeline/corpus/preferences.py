"""Rows of compared, ranked, rated and judged answers -> preference, feedback and prompt records, by a table of forms.

Which form a row has is told by its keys, or by `columns` of the config; a further one is a row of the table. Each form
can be read as every kind of record that it has enough for: of two answers the better one is desirable feedback and the
other is not, and of all of them the best one is what a prompt's answers may be compared with.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from data_pipeline.corpus import instructions
from data_pipeline.corpus.columns import key_of
from data_pipeline.corpus.forms import Form, FormTable, value_at, values_at
from data_pipeline.corpus.mapping import Columns
from data_pipeline.corpus.rankings import as_list, has_tie, pairs_of, scores_of_ranks, scores_of_ratings
from data_pipeline.corpus.records import Answered, Drop, Message, Reject, Several
from data_pipeline.corpus.sources import InputConfig, Kind
from data_pipeline.corpus.turns import FaultyRowError, Turns, text_of

_QUESTIONS = ("prompt", "instruction", "question")
_GIVEN = {"prompt": "", "instruction": "input", "question": ""}
_ANSWER_LISTS = ("responses", "answers", "completions")
_RANKINGS, _RATINGS = ("ranking", "rankings", "ranks"), ("scores", "ratings", "rewards")


def _form(name: str, **columns: str) -> Form:
    return Form(name, Columns(**columns))


def _listed() -> Iterator[Form]:
    """A question, a list of answers, and a rank or a rating of each."""
    for question, answers in itertools.product(_QUESTIONS, _ANSWER_LISTS):
        asked = {"prompt": question, "input": _GIVEN[question], "system": "system", "answers": answers}
        for key, name in (*(("ranking", name) for name in _RANKINGS), *(("ratings", name) for name in _RATINGS)):
            yield _form(f"{question}_{answers}_{name}", **asked, **{key: name})


# The first that fits counts: what names more columns stands before what names fewer.
COMPARED_FORMS: tuple[Form, ...] = (
    Form(
        name="aihub_71748_rm",  # 초거대AI 언어모델: RMlabel.json
        columns=Columns(prompt="question", answers="answer0*.contents", ranking="answer0*.ranking", id="data_id"),
        root="data_info",
        source="aihub_71748",
        metadata={"category": "data_category", "question_type": "question_type"},
    ),
    *(
        _form(f"{name}_chosen", prompt=name, input=_GIVEN[name], system="system", chosen="chosen", rejected="rejected")
        for name in _QUESTIONS
    ),
    _form("chosen", system="system", chosen="chosen", rejected="rejected"),
    _form("kochatgpt", prompt="prompt", answers="completion_*", ranking="ranking"),
    _form(
        "ultrafeedback",
        prompt="instruction",
        answers="completions[].response",
        ratings="completions[].overall_score",
    ),
    *_listed(),
)
JUDGED_FORMS: tuple[Form, ...] = (
    *(
        _form(f"{name}_label", prompt=name, input=_GIVEN[name], system="system", answer=answer, is_desirable="label")
        for name, answer in (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"))
    ),
    _form("chat_label", messages="messages", system="system", is_desirable="label"),
)
PROMPT_FORMS: tuple[Form, ...] = (
    Form(
        name="aihub_71748_ppo",  # 초거대AI 언어모델: PPOdata.json
        columns=Columns(prompt="question", id="data_id"),
        root="data_info",
        source="aihub_71748",
        metadata={"question_type": "question_type"},
    ),
    *(_form(name, prompt=name, input=_GIVEN[name], system="system") for name in _QUESTIONS),
    _form("질문", prompt="질문"),
)
# AIHub's files of other records, which lie beside one another.
_OTHER_RECORDS = (
    (re.compile(r"(^|/)SFTlabel[^/]*\.json$", re.IGNORECASE), "instruction_file"),
    (re.compile(r"(^|/)PPOdata[^/]*\.json$", re.IGNORECASE), "prompt_file"),
)
_YES = frozenset(("true", "1", "yes", "up", "thumbs_up", "like", "good", "desirable", "👍", "좋아요"))
_NO = frozenset(("false", "0", "-1", "no", "down", "thumbs_down", "dislike", "bad", "undesirable", "👎", "싫어요"))
# Anthropic's HH: a conversation as one text.
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLE_OF_SPEAKER = {"Human": "user", "Assistant": "assistant"}


def skip_reason(path: str, kind: Kind | None) -> str:
    """Why the file at `path` holds no answers that were compared or judged; "" where it may."""
    if kind == "text":
        return "text_has_no_rows"
    return next((reason for pattern, reason in _OTHER_RECORDS if pattern.search(path)), "")


def skip_text(path: str, kind: Kind | None) -> str:
    """The same of prompts, which every row with a question holds."""
    return "text_has_no_rows" if kind == "text" else ""


@dataclass
class _Row:
    """The cells of one row by the keys of its form's columns, and what was changed as they were read, by name."""

    cells: Mapping[str, Any]
    columns: Columns
    changes: set[str] = field(default_factory=set)

    def value(self, *keys: str) -> Any:
        """What stands under the first of the keys that names a column."""
        named = self.columns.named
        return next((value_at(self.cells, named[key]) for key in keys if key in named), None)

    def text(self, value: Any) -> str:
        text, changes = text_of(value)
        self.changes.update(changes)
        return text

    def turns(self, value: Any) -> list[Message] | None:
        """The turns in a value that is a conversation: a list of them, or a text that names its speakers."""
        spoken = _speeches(value) if isinstance(value, str) else value if _is_chat(value) else None
        if spoken is None:
            return None
        turns = Turns()
        turns.add_chat(spoken)
        self.changes.update(turns.changes)
        return turns.messages

    def prompt(self, turns: Iterable[Message]) -> tuple[Message, ...]:
        """Turns that end with a question, checked and behind what a system says; raises FaultyRowError."""
        closed = Turns()
        closed.add_chat(list(turns))
        try:
            closed.close_prompt(system=self.value("system"))
        except FaultyRowError as fault:
            if fault.reason in ("empty_question", "no_question") and len(closed.messages) < 2:
                raise FaultyRowError("empty_prompt", "there is no prompt, or it is space alone") from None
            raise
        self.changes.update(closed.changes)
        return tuple(closed.messages)

    def asked(self) -> list[Message]:
        """The turns of the column of the prompt; none where no column is named for it."""
        if not (self.columns.prompt or self.columns.instruction):
            return []
        value = self.value("prompt", "instruction")
        turns = self.turns(value)
        if turns is not None:
            return turns
        given = self.text(self.value("input"))
        return [Message(role="user", content=self.text(value), input=given if given.strip() else "")]


def _is_chat(value: Any) -> bool:
    """A list of turns, or an object of columns as `datasets` writes one."""
    if isinstance(value, Mapping):
        return any(key in value for key in ("role", "from"))
    return isinstance(value, list) and bool(value) and all(map(_is_turn, value))


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and any(key in value for key in ("role", "from"))


def _speeches(text: str) -> list[dict[str, str]] | None:
    """The turns of "\\n\\nHuman: … \\n\\nAssistant: …"; None of another text. The answer that is asked for is none."""
    said = _SPEAKER.split(text)
    if len(said) < 3 or said[0].strip():
        return None
    pairs = zip(said[1::2], said[2::2], strict=True)
    turns = [{"role": _ROLE_OF_SPEAKER[speaker], "content": spoken.strip()} for speaker, spoken in pairs]
    return turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns


@dataclass(frozen=True)
class _Compared:
    """A prompt and its answers. `scores`: the higher the better; () where nothing is said of them.

    `is_pair`: the row itself says which of two is better, so that there is nothing to choose.
    """

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    scores: tuple[float, ...] = ()
    is_pair: bool = False


def _read(row: _Row) -> _Compared:
    """What was asked and answered, of a row of any form; raises FaultyRowError."""
    columns = row.columns
    if columns.chosen:
        named = {name: row.value(name) for name in ("chosen", "rejected")}
        prompt, answers = _conversations(row, named)
        return _Compared(prompt, answers, (1.0, 0.0), is_pair=True)
    if columns.answers:
        return _listed_answers(row)
    if columns.messages:
        turns = row.turns(row.value("messages"))
        if not turns:
            raise FaultyRowError("bad_turns", f"{columns.messages!r} holds no list of turns")
        has_answer = turns[-1]["role"] == "assistant"
        before = turns[:-1] if has_answer else turns
        answers = (turns[-1]["content"],) if has_answer else ()
        return _Compared(row.prompt(before), answers, _judged(row, answers))
    if not (columns.answer or columns.output):
        return _Compared(row.prompt(row.asked()), ())
    prompt, answers = _conversations(row, {"answer": row.value("answer", "output")})
    return _Compared(prompt, answers, _judged(row, answers))


def _listed_answers(row: _Row) -> _Compared:
    columns = row.columns
    listed = as_list(values_at(row.cells, columns.answers))
    if not isinstance(listed, list):
        raise FaultyRowError("bad_answers", f"{columns.answers!r} is a {type(listed).__name__}, not a list of answers")
    if len(listed) < 2:
        raise FaultyRowError("one_answer", f"{columns.answers!r} has {len(listed)} answers; a comparison needs two")
    to_scores, column = (scores_of_ranks, columns.ranking) if columns.ranking else (scores_of_ratings, columns.ratings)
    scores = to_scores(values_at(row.cells, column), num_answers=len(listed), column=column)
    prompt, answers = _conversations(row, {f"answer {number + 1}": value for number, value in enumerate(listed)})
    return _Compared(prompt, answers, tuple(scores))


def _conversations(row: _Row, named: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The prompt that all values share, and the answer of each.

    A value is an answer, or turns that end with one. Turns that begin with a question are the whole conversation; it
    must be that of the prompt's column where there is one.
    """
    asked = row.asked()
    prompts, answers = [], []
    for name, value in named.items():
        turns = row.turns(value)
        if not turns:
            turns = [Message(role="assistant", content=row.text(value), input="")]
        if turns[-1]["role"] != "assistant":
            raise FaultyRowError("no_answer", f"{name}: the last turn is {turns[-1]['role']}, not an answer")
        before = turns[:-1]
        is_whole = bool(before) and before[0]["role"] != "assistant"
        if is_whole and asked and not _is_asked_in(asked, before):
            raise FaultyRowError("different_prompts", f"{name}: its conversation does not hold the row's prompt")
        prompts.append(before if is_whole else [*asked, *before])
        answers.append(turns[-1]["content"])
        if prompts[-1] != prompts[0]:
            raise FaultyRowError("different_prompts", f"{name}: its conversation differs before the last answer")
    return row.prompt(prompts[0]), tuple(answers)


def _is_asked_in(asked: list[Message], turns: list[Message]) -> bool:
    """Whether a conversation is that of the prompt's column, or (of a text alone) has it as a question."""
    without_system = [turn for turn in turns if turn["role"] != "system"]
    if [turn for turn in asked if turn["role"] != "system"] == without_system:
        return True
    said = {turn["content"].strip() for turn in without_system if turn["role"] == "user"}
    return len(asked) == 1 and asked[0]["content"].strip() in said


def _judged(row: _Row, answers: tuple[str, ...]) -> tuple[float, ...]:
    """1 of an answer that is as it should be, 0 of another; () where no column says so."""
    column = row.columns.is_desirable
    if not column:
        return ()
    if not answers:
        raise FaultyRowError("no_answer", "no turn is an answer")
    value = row.value("is_desirable")
    spelled = str(value).strip().lower().removesuffix(".0")
    if value is None or not spelled:
        raise FaultyRowError("missing_verdict", f"{column!r}: the row does not say whether its answer is desirable")
    if spelled not in _YES | _NO:
        raise FaultyRowError("bad_verdict", f"{column!r} is {value!r}, which is neither true (1) nor false (0, -1)")
    return (float(spelled in _YES),)


@dataclass(frozen=True)
class _Part:
    """One record of a row. `suffix`: what tells its key from those of the others."""

    cells: dict[str, str | bool | None]
    suffix: str = ""


Parts = Iterator[_Part | Drop | FaultyRowError]


def _preferences(found: _Compared, options: InputConfig) -> Parts:
    """A record a pair of answers of which one is better."""
    if found.is_pair:
        yield _pair(found, 0, 1)
        return
    chosen = pairs_of(found.scores, choose=options.pairs, min_margin=options.min_margin)
    for better, worse in chosen.pairs:
        yield _pair(found, better, worse, suffix=f"-{better + 1}-{worse + 1}")
    yield from [Drop("tied_answers")] * chosen.num_tied
    yield from [Drop("small_margin")] * chosen.num_close


def _pair(found: _Compared, better: int, worse: int, *, suffix: str = "") -> _Part | FaultyRowError:
    chosen, rejected = found.answers[better], found.answers[worse]
    which = suffix and f" of pair {suffix[1:]}"
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            return FaultyRowError(f"empty_{name}", f"the {name} answer{which} is empty, or space alone")
    if chosen.strip() == rejected.strip():
        return FaultyRowError("equal_answers", f"the chosen and the rejected answer{which} are equal")
    return _Part({"chosen": chosen, "rejected": rejected}, suffix)


def _feedback(found: _Compared, options: InputConfig) -> Parts:
    """The answer that was judged; else the best of all, which is desirable, and the worst, which is not."""
    if len(found.answers) == 1 and not found.scores:
        yield FaultyRowError("missing_verdict", "nothing says whether the answer is desirable")
        return
    if len(found.answers) == 1:
        yield _verdict(found.answers[0], is_desirable=found.scores == (1.0,))
        return
    margin = 0.0 if found.is_pair else options.min_margin
    chosen = pairs_of(found.scores, choose="best_worst", min_margin=margin)
    for better, worse in chosen.pairs:
        if isinstance(fault := _pair(found, better, worse), FaultyRowError):
            yield fault
            return
        yield _verdict(found.answers[better], is_desirable=True, suffix="-chosen")
        yield _verdict(found.answers[worse], is_desirable=False, suffix="-rejected")
    yield from [Drop("tied_answers")] * chosen.num_tied
    yield from [Drop("small_margin")] * chosen.num_close


def _verdict(answer: str, *, is_desirable: bool, suffix: str = "") -> _Part | FaultyRowError:
    if not answer.strip():
        return FaultyRowError("empty_answer", "the answer is empty, or space alone")
    return _Part({"answer": answer, "is_desirable": is_desirable}, suffix)


def _prompts(found: _Compared, options: InputConfig) -> Parts:
    """The prompt, with the best answer to compare others with unless it is empty or undesirable."""
    best = max(range(len(found.answers)), key=lambda number: found.scores[number] if found.scores else 0, default=None)
    is_good = best is not None and found.scores != (0.0,) and found.answers[best].strip()
    yield _Part({"answer": found.answers[best] if best is not None and is_good else None})


def _to_records(
    row: Mapping[str, Any],
    form: Form,
    options: InputConfig,
    position: int,
    *,
    parts_of: Callable[[_Compared, InputConfig], Parts],
) -> Answered | Reject | Drop | Several:
    """All records of `row`, in order; raises FaultyRowError where it holds none for one reason."""
    cells = _Row(row, form.columns)
    found = _read(cells)
    if options.ties == "reject" and has_tie(found.scores):
        raise FaultyRowError("tied_answers", "two of the answers are as good as each other (ties: reject)")
    paths = form.metadata | {column: column for column in options.metadata_columns}
    metadata = {name: value_at(row, path) for name, path in paths.items()}
    key, changes = key_of(value_at(row, form.columns.id or "id"), position), tuple(sorted(cells.changes))
    made: list[Answered | Reject | Drop] = []
    for part in parts_of(found, options):
        if isinstance(part, FaultyRowError):
            made.append(Reject(part.reason, str(part), offset=position))
        elif isinstance(part, Drop):
            made.append(part)
        else:
            of_row = (position, form.name, form.source, metadata, changes)
            made.append(Answered(key + part.suffix, found.prompt, part.cells, *of_row))
            changes = ()  # the row's, counted once
    return made[0] if len(made) == 1 else Several(tuple(made))


def _table(forms: tuple[Form, ...], parts_of: Callable[[_Compared, InputConfig], Parts], **words: str) -> FormTable:
    return FormTable(forms, partial(_to_records, parts_of=parts_of), **words)


PREFERENCES = _table(
    COMPARED_FORMS,
    _preferences,
    row="preference",
    what="prompt and compared answers",
    korean="비교한 답변의 열을 찾을 수 없음",
    columns="columns: {prompt: …, chosen: …, rejected: …}, or answers with ranking or ratings",
)
FEEDBACK = _table(
    (*JUDGED_FORMS, *COMPARED_FORMS),
    _feedback,
    row="feedback",
    what="prompt and judged answer",
    korean="평가한 답변의 열을 찾을 수 없음",
    columns="columns: {prompt: …, answer: …, is_desirable: …}",
)
PROMPTS = _table(
    (*JUDGED_FORMS, *COMPARED_FORMS, *instructions.FORMS, *PROMPT_FORMS),
    _prompts,
    row="prompt",
    what="prompt",
    korean="질문 열을 찾을 수 없음",
    columns="columns: {prompt: …}, with an answer where rows have one",
)
