"""`dure VERB`: find the verb, parse its words, call its function, and turn errors into one message and an exit code.

Imports nothing heavy: `dure --help` is done in a fraction of a second. What a verb does is not known here.

Exit codes: 0 done, 1 failed, 2 bad input, 85 stopped by a signal with everything saved, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from launch.verb_table import GROUPS, VERBS, Flag, Verb

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
# Errors that a person can act on, by class name so that their packages need not be imported here. A class may say
# otherwise by an attribute `exit_code`.
_EXIT_CODES = {
    "ConfigError": BAD_INPUT,
    "StageError": BAD_INPUT,
    "ResumeError": BAD_INPUT,
    "RunError": BAD_INPUT,
    "TrainingStopped": FAILED,
    "DiskError": FAILED,
}
_OVERRIDE = re.compile(r"[^\W\d][\w-]*(\.[\w-]+)*=")
HEADER = "dure (두레) trains Korean language models on your own machines, from the archive to the model."
FOOTER = "`dure VERB --help` tells about one verb. DURE_TRACEBACK=1 shows where an error arose."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that `argv` names; returns the exit code."""
    _write_utf8()
    words = list(sys.argv[1:] if argv is None else argv)
    code = DONE
    try:
        with contextlib.suppress(_Answered):
            verb, rest = _find_verb(words)
            code = _call(verb, parse_words(verb, rest))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) is gone; the interpreter's own flush at exit must not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    return code


class _Answered(Exception):  # noqa: N818 - not an error: the question was answered by printing
    """`--help` or `--version` was printed."""


def _write_utf8() -> None:
    """Korean is printed as it is whatever LANG says; what can't be encoded never ends a run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def help_text(prefix: str = "") -> str:
    """The verbs, all or those that begin with a word ("corpus"), each with its usage and help."""
    lines = [HEADER, "", "usage: dure VERB [CONFIG] [--flags] [key.sub=value …]", "       dure --help | --version"]
    for title, verbs in GROUPS:
        shown = [verb for verb in verbs if verb.name.startswith(prefix)]
        if shown:
            lines += ["", title]
        for verb in shown:
            lines += [f"  {verb.usage}", f"      {verb.help}"]
    return "\n".join([*lines, "", FOOTER])


def _find_verb(words: list[str]) -> tuple[Verb, list[str]]:
    """The verb that the first one or two words name, and the words after it."""
    for count in (2, 1):
        if (verb := VERBS.get(" ".join(words[:count]))) is not None:
            return verb, words[count:]
    first = words[0] if words else ""
    groups = {name.partition(" ")[0] for name in VERBS if " " in name}
    if first in ("-h", "--help", "help") or (first in groups and words[1:2] in (["-h"], ["--help"])):
        print(help_text(f"{first} " if first in groups else ""))
        raise _Answered
    if first == "--version":
        print(_version())
        raise _Answered
    if not words:
        print(help_text(), file=sys.stderr)
        raise SystemExit(BAD_INPUT)
    _refuse(_unknown_verb(words, groups))


def _unknown_verb(words: list[str], groups: set[str]) -> str:
    first = words[0]
    if first in groups and len(words) == 1:
        verbs = [name for name in VERBS if name.startswith(f"{first} ")]
        return f"dure {first}: one word more is needed: {', '.join(f'`dure {name}`' for name in verbs)}"
    given = " ".join(words[:2]) if first in groups or words[1:] else first
    candidates = [given, " ".join(words[:1])]
    close = next((found for text in candidates for found in difflib.get_close_matches(text, VERBS, n=1)), None)
    hint = f"did you mean `dure {close}`?" if close else "`dure --help` lists the verbs"
    return f"dure {given if first in groups else first}: no such verb; {hint}"


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"dure {version('dure')}"
    except PackageNotFoundError:
        return "dure, from a checkout that is not installed (pip install -e .)"


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(BAD_INPUT)


class _Parser(argparse.ArgumentParser):
    """Speaks in the form of our errors, and knows what a mistyped flag was meant to be."""

    flag_names: tuple[str, ...] = ()

    def error(self, message: str) -> NoReturn:
        words = [word.rstrip(":,") for word in message.split()]
        unknown = [word for word in words if word.startswith("--") and word not in self.flag_names]
        close = difflib.get_close_matches(unknown[0].partition("=")[0], self.flag_names, n=1) if unknown else []
        hint = f"did you mean {close[0]}?" if close else f"`{self.prog} --help` lists its flags"
        _refuse(f"{self.prog}: {message}; {hint}")


def _parser(verb: Verb) -> _Parser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog=f"dure {verb.name}",
        usage=verb.usage,
        description=verb.help,
        epilog=verb.more or None,
        allow_abbrev=False,
        formatter_class=formatter,
    )
    parser.flag_names = tuple(flag.name for flag in verb.flags)
    parser.add_argument("words", nargs="*", metavar=verb.positional or "", help=_words_help(verb))
    exclusive = parser.add_mutually_exclusive_group()
    excluded = {flag.excludes for flag in verb.flags}
    for flag in verb.flags:
        _add_flag(exclusive if flag.excludes or flag.name in excluded else parser, flag)
    return parser


def _words_help(verb: Verb) -> str:
    if not verb.positional:
        return argparse.SUPPRESS
    return "a YAML file, and overrides of its keys" if verb.takes_config else "what to look at"


def _add_flag(parser: argparse._ActionsContainer, flag: Flag) -> None:
    if flag.is_switch:
        parser.add_argument(flag.name, help=flag.help, action="store_true")
        return
    default = f" (default: {flag.default})" if flag.default is not None else ""
    parser.add_argument(
        flag.name,
        metavar=flag.metavar,
        help=flag.help + default,
        nargs="+" if flag.is_list else None,
        type=str if flag.minimum is None else _integer(flag.minimum),
        choices=flag.choices or None,
        default=flag.default,
    )


def _integer(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of {minimum} or more")
        return int(text)

    return parse


def parse_words(verb: Verb, words: list[str]) -> argparse.Namespace:
    """What the verb's function gets: its flags, and `config` and `overrides`, `path` or `paths`, as they were typed."""
    parser = _parser(verb)
    arguments = parser.parse_intermixed_args(words)
    plain = arguments.words
    del arguments.words
    overrides: list[str] = []
    if verb.takes_config:
        overrides = [*_flags_as_overrides(verb, arguments), *(word for word in plain if _OVERRIDE.match(word))]
        plain = [word for word in plain if not _OVERRIDE.match(word)]
        arguments.overrides = overrides
    is_optional = not verb.positional or verb.positional.startswith("[")
    if len(plain) > bool(verb.positional) and not verb.takes_several:
        what = "a config" if verb.takes_config else verb.positional or "no word"
        parser.error(f"takes {what} and its flags, got {' '.join(plain)!r}")
    if not plain and not is_optional:
        parser.error(f"{verb.positional} is missing")
    if verb.takes_several:
        arguments.paths = plain
    elif verb.positional:
        setattr(arguments, "config" if verb.takes_config else "path", plain[0] if plain else None)
    return arguments


def _flags_as_overrides(verb: Verb, arguments: argparse.Namespace) -> Iterator[str]:
    """`--output DIR` as `output="DIR"`. JSON is YAML that needs no guess about quotes.

    What stands behind the paths of a list and looks like an override is one, unless it is a file.
    """
    for flag in verb.flags:
        value = getattr(arguments, flag.name[2:].replace("-", "_"))
        if not flag.key or value is None or value is False:  # a switch that was not given says nothing
            continue
        late = [item for item in value if _OVERRIDE.match(item) and not Path(item).exists()] if flag.is_list else []
        kept = [item for item in value if item not in late] if flag.is_list else value
        yield f"{flag.key}={json.dumps(kept, ensure_ascii=False)}"
        yield from late


def _call(verb: Verb, arguments: argparse.Namespace) -> int:
    module, _, name = verb.function.partition(":")
    try:
        code: int = getattr(importlib.import_module(module), name)(arguments)
        return code
    except KeyboardInterrupt:
        print("\ninterrupted (중단됨); what is finished stays, and the same command goes on from it", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        code_of_error = exit_code_of(error)
        if code_of_error is None or os.environ.get("DURE_TRACEBACK") == "1":
            raise
        print(message_of(error), file=sys.stderr)
        return code_of_error


def exit_code_of(error: BaseException) -> int | None:
    """The exit code of an error that a person can act on; None for a fault of our own, which needs its traceback."""
    own = getattr(error, "exit_code", None)
    if isinstance(own, int):
        return own
    for parent in type(error).__mro__:
        if parent.__name__ in _EXIT_CODES:
            return _EXIT_CODES[parent.__name__]
    return FAILED if isinstance(error, OSError) and error.filename else None


def message_of(error: BaseException) -> str:
    """`error: ` and what the exception says; several faults each on a line of their own."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        is_ours = type(error).__name__ == "DiskError"
        text = error.strerror if is_ours else f"{error.filename}: {error.strerror}; check the path and its permissions"
    return f"error:\n{text}" if "\n" in text else f"error: {text}"


if __name__ == "__main__":
    sys.exit(main())
