"""Every verb of `dure`: its name, flags and help, and the function that does it. Plain data; imports nothing heavy.

docs/commands.md describes the same verbs; a test compares them.
"""

from __future__ import annotations

from typing import NamedTuple


class Flag(NamedTuple):
    """A flag of a verb. With `key` it is a short form of the override `key=value`, else the function reads it.

    A `minimum` makes it an integer; one of `choices` is taken only as it stands there; without a `metavar` it is a
    switch.
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

    @property
    def is_switch(self) -> bool:
        """Whether it stands alone, without a value."""
        return not self.metavar


class Verb(NamedTuple):
    """One verb. `positional`: what stands first, in brackets where it may be left out.

    With `…` at its end there may be several. A verb with a `CONFIG` also takes `key.sub=value` overrides. `function`
    ("module:name") is imported when the verb is called; it takes the argparse.Namespace and returns an exit code.
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
    def takes_several(self) -> bool:
        return self.positional.endswith("…")

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
    return f"{flag.name} {flag.metavar}{'…' if flag.is_list else ''}".rstrip()


OUTPUT = Flag("--output", "DIR", "the folder to write", key="output")
CORPUS = Flag("--corpus", "DIR", "the folder that `corpus build` wrote", key="corpus")
WORKERS = Flag("--workers", "N", "processes (default: one a core)", minimum=1)
# How an answer is made. The numbers with a point are read by launch/sampling_flags.py.
SAMPLING = (
    Flag("--max-new-tokens", "N", "an answer is cut there", minimum=1, default=256),
    Flag("--temperature", "X", "0 takes the likeliest token each time (greedy)", default="0"),
    Flag("--top-p", "X", "only of the likeliest tokens that make up so much", default="1"),
    Flag("--top-k", "N", "only of so many tokens; 0: of all", minimum=0, default=0),
    Flag("--repetition-penalty", "X", "above 1 shuns what was said", default="1"),
    Flag("--seed", "N", "of the sampling", minimum=0, default=0),
    Flag("--template", "NAME", "another than its own: a name, a file, or none to go on with a text"),
    Flag("--quantize", "KIND", "hold the base in 4 bits or not (default: as trained)", choices=("nf4", "none")),
)

GROUPS: tuple[tuple[str, tuple[Verb, ...]], ...] = (
    (
        "Start here (시작)",
        (
            Verb(
                "demo",
                "everything once, here, in minutes: archives → corpus → tokenizer → model → answers → report",
                "launch.demo:demo",
                flags=(
                    Flag("--corpus", "PATH", "your own archives or text files instead of made-up Korean"),
                    Flag("--sft", "PATH", "your own questions and answers instead of made-up ones"),
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
                "AIHub archives, JSONL, CSV, Parquet and text → documents or instructions in Parquet (말뭉치)",
                "launch.verb_corpus:build",
                "[CONFIG]",
                (
                    Flag("--input", "PATH", "files, folders or hf:NAME@REVISION", key="inputs", is_list=True),
                    Flag("--record", "KIND", "what a row is", key="record", choices=("document", "instruction")),
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
                "documents or instructions → token ids in Arrow files, train and heldout (샤드)",
                "launch.verb_shards:build",
                "[CONFIG]",
                (
                    CORPUS,
                    Flag("--tokenizer", "DIR", "the folder that `tokenizer train` wrote", key="tokenizer"),
                    Flag("--template", "NAME", "how instruction rows are written: a name or a file", key="template"),
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
                    Flag("--tokenizer", "DIR", "another copy of the tokenizer (default: the one in the shards)"),
                    Flag("--split", "SPLIT", "which of the two", default="train", choices=("train", "heldout")),
                    Flag("--seq-len", "N", "inputs a row", minimum=1, default=2048),
                    Flag("--packing", "PACKING", "how (default: as in training)", choices=("concatenated", "best_fit")),
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
            Verb(
                "chat",
                "talk to a run, a checkpoint, a model or an adapter folder, in a terminal or through a pipe (대화)",
                "launch.verb_chat:chat",
                "RUN|MODEL",
                (Flag("--system", "TEXT", "a system turn before the first question"), *SAMPLING),
            ),
            Verb(
                "generate",
                "an answer to each row of a file, in batches; what is answered already is not asked again (생성)",
                "launch.verb_generate:generate",
                "RUN|MODEL",
                (
                    Flag("--input", "FILE", "JSONL rows of instruction, prompt, question or messages"),
                    Flag("--output", "FILE", "where answers go (default: FILE.answers.jsonl)"),
                    Flag("--batch", "N", "rows at once", minimum=1, default=16),
                    *SAMPLING,
                ),
            ),
            Verb(
                "export",
                "a folder that transformers, peft, vLLM and others open, with tokenizer and model card (내보내기)",
                "launch.verb_export:export",
                "RUN|MODEL",
                (
                    Flag("--output", "DIR", "a folder that does not exist yet"),
                    Flag("--merge", "", "an adapter merged into its base, and measured against what was trained"),
                    Flag("--dtype", "TYPE", "of the weights (default: of training)", choices=("fp32", "bf16", "fp16")),
                    Flag("--shards", "DIR", "whose held-out rows measure a merge (default: those of the run)"),
                    Flag("--accept-merge-error", "", "write a merged model beyond the limits too"),
                ),
            ),
            Verb(
                "report",
                "one page on what was trained and how well, from one run or several that followed one another (보고서)",
                "launch.verb_report:report",
                "RUN…",
                (Flag("--output", "FILE", "the page to write (default: report.html in the first RUN)"),),
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
