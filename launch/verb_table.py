"""Every verb of `dure`: its name, flags and help, and the function that does it. Plain data; imports nothing heavy.

docs/commands.md describes the same verbs; a test compares them.
"""

from __future__ import annotations

from typing import NamedTuple


class Flag(NamedTuple):
    """A flag of a verb. With `key` it is a short form of the override `key=value`, else the function reads it.

    A `minimum` makes it an integer; one of `choices` is taken only as it stands there.
    """

    name: str
    metavar: str
    help: str
    key: str = ""
    is_list: bool = False
    minimum: int | None = None
    excludes: str = ""
    choices: tuple[str, ...] = ()
    default: int | str | None = None


class Verb(NamedTuple):
    """One verb. `positional`: what stands first, in brackets where it may be left out.

    A verb with a `CONFIG` also takes `key.sub=value` overrides. `function` ("module:name") is imported when the verb
    is called; it takes the argparse.Namespace and returns an exit code.
    """

    name: str
    help: str
    function: str
    positional: str = ""
    flags: tuple[Flag, ...] = ()
    more: str = ""

    @property
    def takes_config(self) -> bool:
        return "CONFIG" in self.positional

    @property
    def usage(self) -> str:
        """The verb and what it takes, in one line."""
        words = [f"dure {self.name}", self.positional, *_flag_usages(self.flags)]
        if self.takes_config:
            words.append("[key.sub=value …]")
        return " ".join(word for word in words if word)


def _flag_usages(flags: tuple[Flag, ...]) -> list[str]:
    """`[--a X]` for each flag, `[--a X | --b Y]` for two that exclude each other."""
    excluded = {flag.excludes for flag in flags}
    usages = []
    for flag in flags:
        others = [other for other in flags if other.name == flag.excludes]
        if flag.name not in excluded:
            usages.append("[" + " | ".join(_plain_usage(one) for one in (flag, *others)) + "]")
    return usages


def _plain_usage(flag: Flag) -> str:
    return f"{flag.name} {flag.metavar}{'…' if flag.is_list else ''}"


OUTPUT = Flag("--output", "DIR", "the folder to write", key="output")
CORPUS = Flag("--corpus", "DIR", "the folder that `corpus build` wrote", key="corpus")
WORKERS = Flag("--workers", "N", "processes (default: one a core)", minimum=1)

GROUPS: tuple[tuple[str, tuple[Verb, ...]], ...] = (
    (
        "Start here (시작)",
        (
            Verb(
                "demo",
                "everything once, on this machine, in minutes: archives → corpus → tokenizer → shards → model",
                "launch.demo:demo",
                flags=(
                    Flag("--corpus", "PATH", "your own archives or text files instead of made-up Korean"),
                    Flag("--output", "DIR", "where all of it goes (default: runs/demo, runs/demo-NAME with --corpus)"),
                    Flag("--seed", "N", "of the made-up Korean", minimum=0, default=1),
                ),
            ),
        ),
    ),
    (
        "Data (데이터)",
        (
            Verb(
                "corpus inspect",
                "what a build would read from a file or folder; writes nothing",
                "launch.verb_corpus:inspect",
                "PATH",
            ),
            Verb(
                "corpus build",
                "AIHub archives, JSONL, CSV and text → clean documents in Parquet (말뭉치)",
                "launch.verb_corpus:build",
                "[CONFIG]",
                (
                    Flag("--input", "PATH", "files or folders to read", key="inputs", is_list=True),
                    OUTPUT,
                    WORKERS,
                ),
            ),
            Verb(
                "tokenizer train",
                "corpus → byte-level BPE or ## BPE, with its card (토크나이저)",
                "launch.verb_tokenizer:train",
                "[CONFIG]",
                (CORPUS, OUTPUT),
            ),
            Verb(
                "shards build",
                "documents → token ids in Arrow files, train and heldout (샤드)",
                "launch.verb_shards:build",
                "[CONFIG]",
                (
                    CORPUS,
                    Flag("--tokenizer", "DIR", "the folder that `tokenizer train` wrote", key="tokenizer"),
                    OUTPUT,
                    WORKERS,
                ),
            ),
            Verb(
                "shards verify",
                "every hash, count and offset of a shards folder; 1 if one is wrong",
                "launch.verb_shards:verify",
                "DIR",
            ),
            Verb(
                "shards inspect",
                "counts, lengths and the first rows as a model sees them",
                "launch.verb_shards:inspect",
                "DIR",
                (
                    Flag("--tokenizer", "DIR", "show text instead of ids"),
                    Flag("--split", "SPLIT", "which of the two", default="train", choices=("train", "heldout")),
                    Flag("--seq-len", "N", "inputs a row", minimum=1, default=2048),
                    Flag("--packing", "PACKING", "how", default="concatenated", choices=("concatenated", "best_fit")),
                    Flag("--rows", "N", "how many rows", minimum=1, default=2),
                ),
            ),
        ),
    ),
    (
        "Model (모델)",
        (
            Verb(
                "train",
                "start or resume the run that a config describes, on the ranks of this machine (학습)",
                "launch.verb_train:train",
                "CONFIG",
                (
                    Flag("--gpus", "N", "one rank on each of N GPUs", minimum=1),
                    Flag("--cpu-ranks", "N", "N ranks on the CPU", minimum=1, excludes="--gpus"),
                ),
                more="Exit code 85: a signal stopped it, and everything is saved; the same command goes on.",
            ),
            Verb(
                "evaluate",
                "loss and bits per byte of a run, a checkpoint or a model folder over held-out documents (평가)",
                "launch.verb_evaluate:evaluate",
                "RUN|MODEL",
                (Flag("--shards", "DIR", "other shards than those of the run"),),
            ),
        ),
    ),
    (
        "Configs (설정)",
        (
            Verb(
                "config show",
                "the resolved tree of a config file, defaults included, as YAML",
                "launch.verb_config:show",
                "CONFIG",
                (Flag("--kind", "KIND", "train, corpus, tokenizer or shards (default: by the keys of the file)"),),
            ),
        ),
    ),
)

VERBS: dict[str, Verb] = {verb.name: verb for _, verbs in GROUPS for verb in verbs}
