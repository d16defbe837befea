"""`dure chat RUN`: questions line by line, answers as they come. In a terminal or from a pipe."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from data_pipeline.stage import StageError
from launch.sampling_flags import sampling_of
from trainer.errors import RunError

if TYPE_CHECKING:
    from data_pipeline.corpus.records import Message
    from trainer.conversation import Speaker
    from trainer.generate import Sampling

HELP = "/reset (대화를 처음부터 · forget the history), /system TEXT, /help, /quit; Ctrl-C stops an answer"
PROMPT = "> "


def chat(arguments: argparse.Namespace) -> int:
    """Talk until the input ends. Answers go to stdout, all else to stderr."""
    sampling = sampling_of(arguments)
    import torch

    from trainer.conversation import open_speaker
    from trainer.quiet import quieten_libraries
    from trainer.saved import find_saved

    quieten_libraries(use_gpu=torch.cuda.is_available())
    saved = find_saved(arguments.path, checkpoint=arguments.checkpoint)
    if saved.told:
        _tell(saved.told)
    speaker = open_speaker(saved, template=arguments.template, quantize=arguments.quantize)
    name = speaker.template.name if speaker.template else "no template: it goes on with each line by itself"
    _tell(f"{saved.checkpoint or saved.path} on {speaker.device.type}, template {name}\n{HELP}")
    conversation = Conversation(speaker, sampling, system=arguments.system)
    for line in _lines(sys.stdin):
        with contextlib.suppress(EOFError):
            conversation.hear(line, sys.stdout)
            continue
        break
    return 0


def _tell(text: str) -> None:
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def _lines(stdin: TextIO) -> Iterator[str]:
    """Lines as they are typed or piped, Korean whatever LANG says."""
    if not stdin.isatty():
        if hasattr(stdin, "reconfigure"):
            stdin.reconfigure(encoding="utf-8", errors="replace")
        yield from (line.rstrip("\r\n") for line in stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - makes input() edit whole characters, and remember
    while True:
        try:
            yield input(PROMPT)
        except (EOFError, KeyboardInterrupt):
            print()
            return


class Conversation:
    """The turns so far, and what a line does to them."""

    def __init__(self, speaker: Speaker, sampling: Sampling, *, system: str | None = None) -> None:
        self._speaker = speaker
        self._sampling = sampling
        self._system = system
        self._num_answers = 0
        self.turns: list[Message] = []

    def hear(self, line: str, out: TextIO) -> None:
        """Answer a question on `out`, or do what a command says; EOFError: the person has done."""
        command, _, rest = line.strip().partition(" ")
        if not command:
            return
        if command in ("/quit", "/exit"):
            raise EOFError
        if command == "/reset":
            self.turns = []
            _tell("(history forgotten · 대화를 처음부터 시작합니다)")
        elif command == "/system":
            self._system, self.turns = rest.strip() or None, []
            _tell("(system turn set, history forgotten)" if self._system else "(no system turn, history forgotten)")
        elif command.startswith("/"):
            _tell(HELP if command == "/help" else f"{command}: no such command; {HELP}")
        else:
            self._answer(line, out)

    def _answer(self, line: str, out: TextIO) -> None:
        from data_pipeline.corpus.text import normalise

        if self._speaker.template is None:
            self.turns = []
        self.turns.append({"role": "user", "content": normalise(line)[0], "input": ""})
        try:
            prompt = self._prompt()
            text = self._said(prompt, out)
        except KeyboardInterrupt:
            out.write("\n")
            _tell("(stopped; this turn is forgotten · 이 질문은 잊습니다)")
            self.turns.pop()
        except (RunError, StageError) as error:  # too long, or what the template has no place for
            _tell(f"({error})")
            self.turns.pop()
        else:
            self.turns.append({"role": "assistant", "content": text, "input": ""})

    def _said(self, prompt: list[int], out: TextIO) -> str:
        """Stream an answer; what it said, whole."""
        started, num_tokens, text = time.perf_counter(), 0, ""
        row, self._num_answers = self._num_answers, self._num_answers + 1
        for piece, count in self._speaker.stream(prompt, sampling=self._sampling, row=row):
            text, num_tokens = text + piece, count
            out.write(piece)
            out.flush()
        out.write("\n")
        out.flush()
        seconds = time.perf_counter() - started
        end = self._cut(len(prompt), num_tokens)
        _tell(f"[{num_tokens:,} tokens, {seconds:.2f} s, {num_tokens / seconds:,.1f} tokens/s{end}]")
        return text

    def _cut(self, num_asked: int, num_said: int) -> str:
        """What ended an answer that did not end itself; "" of one that did."""
        if num_said >= self._sampling.max_new_tokens:
            return f"; cut at --max-new-tokens {self._sampling.max_new_tokens}"
        positions = self._speaker.max_positions
        is_full = positions is not None and num_asked + num_said >= positions
        return f"; cut where the model's {positions:,} positions are full" if is_full else ""

    def _prompt(self) -> list[int]:
        """The ids of the turns; the oldest go, and that is said, where an answer would have no room."""
        dropped = 0
        while True:
            ids = self._speaker.prompt_ids(self._with_system())
            if len(ids) <= self._room() or len(self.turns) < 3:
                break
            del self.turns[:2]
            dropped += 1
        if dropped:
            _tell(f"(no longer fit, and are forgotten: the oldest questions with their answers, {dropped})")
        return ids

    def _with_system(self) -> list[Message]:
        system: list[Message] = [{"role": "system", "content": self._system, "input": ""}] if self._system else []
        return [*system, *self.turns]

    def _room(self) -> float:
        """Positions for a prompt: what an answer leaves, and never less than three quarters."""
        positions = self._speaker.max_positions
        if positions is None:
            return float("inf")
        return positions - min(self._sampling.max_new_tokens, positions // 4)
