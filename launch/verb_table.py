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
        return self.positional.rstrip("]").endswith("…")

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
RECORDS = ("document", "instruction", "label", "pair", "preference", "feedback", "prompt")
CORPUS = Flag("--corpus", "DIR", "the folder that `corpus build` wrote", key="corpus")
WORKERS = Flag("--workers", "N", "processes (default: one a core)", minimum=1)
# Which checkpoint of a run: trainer/locate.py chooses.
CHECKPOINT = Flag(
    "--checkpoint", "WHICH", "of a run: best, last or a step (default: best of classify and embed, last of others)"
)
# How an answer is made. The numbers with a point are read by launch/sampling_flags.py.
TABLES = ("json", "jsonl", "csv", "tsv", "parquet", "xlsx")
QUANTIZE = Flag("--quantize", "KIND", "hold the base in 4 bits or not (default: as trained)", choices=("nf4", "none"))

SAMPLING = (
    Flag("--max-new-tokens", "N", "an answer is cut there", minimum=1, default=256),
    Flag("--temperature", "X", "0 takes the likeliest token each time (greedy)", default="0"),
    Flag("--top-p", "X", "only of the likeliest tokens that make up so much", default="1"),
    Flag("--top-k", "N", "only of so many tokens; 0: of all", minimum=0, default=0),
    Flag("--repetition-penalty", "X", "above 1 shuns what was said", default="1"),
    Flag("--seed", "N", "of the sampling", minimum=0, default=0),
    Flag("--template", "NAME", "another than its own: a name, a file, or none to go on with a text"),
    QUANTIZE,
    CHECKPOINT,
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
                    Flag("--dpo", "", "then prefer: DPO on pairs of answers, evaluated, exported and talked to"),
                    Flag("--preference", "PATH", "your own pairs of answers instead of made-up ones; means --dpo"),
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
                "AIHub archives, JSONL, CSV, Parquet, text → documents, instructions, pairs, preferences … (말뭉치)",
                "launch.verb_corpus:build",
                "[CONFIG]",
                (
                    Flag("--input", "PATH", "files, folders or hf:NAME@REVISION", key="inputs", is_list=True),
                    Flag("--record", "KIND", "what a row is", key="record", choices=RECORDS),
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
                "tokenizer audit",
                "what a tokenizer does to a corpus and a field's words, beside others: keep, extend or retrain (진단)",
                "launch.verb_tokenizer:audit",
                "TOKENIZER",
                (
                    Flag("--corpus", "PATH", "a corpus that `corpus build` wrote, or files and folders of text"),
                    Flag("--terms", "FILE", "the words of a field: one a line, or a CSV or TSV"),
                    Flag("--against", "OTHER", "tokenizers to measure beside it", is_list=True),
                    Flag("--output", "DIR", "where the page and its figures go (audit.html, audit.json)"),
                    Flag("--max-bytes", "N", "of text that are measured", minimum=1, default=16 << 20),
                    Flag("--text-column", "NAME", "of tables and JSONL that are read as they are", default="text"),
                    Flag("--term-column", "NAME", "of a table of terms", default="term"),
                    Flag("--hidden-size", "N", "H of the model that costs are told for", minimum=1, default=2048),
                    Flag("--layers", "N", "its layers", minimum=1, default=24),
                    Flag("--seq-len", "N", "inputs a row", minimum=1, default=2048),
                ),
                more="TOKENIZER and OTHER: a tokenizer, a model or a run folder, or a tokenizer.json.",
            ),
            Verb(
                "tokenizer extend",
                "new tokens beside a tokenizer's own; texts without them keep their ids (토큰 추가)",
                "launch.verb_extend:extend",
                "TOKENIZER",
                (
                    Flag("--tokens", "FILE", "a list of new tokens, one a line"),
                    Flag("--spaced", "", "each term of the list also with a space before it"),
                    Flag("--corpus", "DIR", "the corpus to choose on and to measure on"),
                    Flag("--count", "N", "how many to choose by the tokens that they save", minimum=1),
                    Flag("--min-count", "N", "a word seen less often is not chosen (default: 10)", minimum=1),
                    Flag("--dry-run", "", "show the choice, write it for a look, and no tokenizer"),
                    Flag("--model", "MODEL", "write this model, with rows for the new tokens, and the tokenizer"),
                    Flag("--init", "NAME", "with --model: what the rows begin from (default: mean_of_subtokens)"),
                    Flag("--accept-rounding", "", "with --model: write it though old texts are not equal to the bit"),
                    Flag("--output", "DIR", "the folder to write"),
                ),
            ),
            Verb(
                "shards build",
                "documents, instructions, labels or pairs → token ids in Arrow files, train and heldout (샤드)",
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
                    Flag(
                        "--ledger", "", "write down which rows each rank trains on in each step", key="logging.ledger"
                    ),
                    Flag(
                        "--debug",
                        "",
                        "a try on one device: few steps, a small model, its first batch, everything watched",
                    ),
                    Flag("--profile", "", "with --debug: a torch.profiler trace of some steps"),
                ),
                more="Exit code 85: a signal stopped it, and everything is saved; the same command goes on.",
            ),
            Verb(
                "evaluate",
                "the loss and the stage's figures of a run, a checkpoint or a model folder over held-out rows (평가)",
                "launch.verb_evaluate:evaluate",
                "RUN|MODEL",
                (
                    Flag("--shards", "DIR", "other shards than those of the run"),
                    CHECKPOINT,
                    Flag(
                        "--dtype",
                        "TYPE",
                        "to compute in (default: the run's on a GPU, fp32 on a CPU)",
                        choices=("fp32", "bf16", "fp16"),
                    ),
                    Flag("--tasks", "NAMES", "tasks of lm-eval instead: kobest,haerae,kmmlu,click, its own, FILE.yaml"),
                    Flag("--num-fewshot", "N", "examples before each question (default: the task's)", minimum=0),
                    Flag("--limit", "N", "questions of each task, for a try", minimum=1),
                    Flag("--batch", "N", "questions at once", minimum=1, default=8),
                    Flag("--output", "DIR", "where figures go (default: the run's folder)"),
                ),
                more="--num-fewshot, --limit and --batch are of --tasks.",
            ),
            Verb(
                "evaluate compare",
                "both models answer the prompts of a file, a reward model says whose answers are better (비교)",
                "launch.evaluate_compare:compare",
                "RUN|MODEL…",
                (
                    Flag("--prompts", "FILE", "JSONL rows of prompt, instruction, question or messages"),
                    Flag("--judge", "JUDGE", "a run of stage reward, a model with one output, or FILE.py:FUNCTION"),
                    Flag("--output", "DIR", "where it goes (default: comparisons/ in the first RUN)"),
                    Flag("--batch", "N", "rows at once", minimum=1, default=16),
                    *(flag for flag in SAMPLING if flag is not CHECKPOINT),
                ),
                more="Takes two: A and B. Each may be a run, a checkpoint, or a model or an adapter folder.",
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
                    Flag(
                        "--task", "NAME", "rows to be asked so, AIHub's too", choices=("qa", "summarize", "translate")
                    ),
                    Flag("--batch", "N", "rows at once", minimum=1, default=16),
                    *SAMPLING,
                ),
            ),
            Verb(
                "predict",
                "a class with its probabilities, or a vector, for each row of a file of texts (예측)",
                "launch.verb_predict:predict",
                "RUN|MODEL",
                (
                    Flag("--input", "FILE", "CSV, TSV, JSONL, JSON or Parquet rows, or hf:NAME"),
                    Flag("--output", "FILE", ".jsonl, .csv; of vectors .parquet, .npy (default: beside the input)"),
                    Flag("--text-a", "COLUMN", "the text, or the first of two (default: by the columns' names)"),
                    Flag("--text-b", "COLUMN", "the second text"),
                    Flag("--format", "KIND", "of the input", choices=TABLES),
                    Flag("--batch", "N", "rows at once", minimum=1, default=32),
                    QUANTIZE,
                    CHECKPOINT,
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
                    Flag("--base-name", "NAME", "what to call the base for others, such as its hub name"),
                    CHECKPOINT,
                ),
            ),
            Verb(
                "report",
                "one page on what was trained, and how well: a run, several in order, or rivals abreast (보고서)",
                "launch.verb_report:report",
                "RUN…",
                (Flag("--output", "FILE", "the page to write (default: report.html in the first RUN)"),),
            ),
        ),
    ),
    (
        "Cluster and runs (클러스터)",
        (
            Verb(
                "submit",
                "the run that a config describes, or a pipeline of stages, as a job of a SLURM cluster (작업 제출)",
                "launch.verb_submit:submit",
                "[CONFIG]",
                (
                    Flag("--cluster", "FILE", "the cluster profile, such as slurm/clusters/a100-modules.yaml"),
                    Flag("--nodes", "N", "another number of nodes than the profile's", minimum=1),
                    Flag("--pipeline", "FILE", "a list of stages instead of one run, each after the one before"),
                    Flag("--dry-run", "", "print the sbatch script; write and submit nothing"),
                ),
                more="The script and the resolved profile stay in RUN/submit/, the job's number in RUN/jobs.jsonl.",
            ),
            Verb(
                "status",
                "what the runs here and their jobs are doing: state, step, loss, speed, and why one waits (상태)",
                "launch.verb_status:status",
                "[RUN…]",
                (Flag("--json", "", "for a program: an array with one object a run"),),
            ),
            Verb(
                "logs",
                "what a run printed, by its last start; to its end with -f (출력)",
                "launch.verb_logs:logs",
                "RUN",
                (
                    Flag("-f", "", "go on with what comes, until the run ends"),
                    Flag("--rank", "N", "what this rank printed (default: what the console showed)", minimum=0),
                    Flag("--lines", "N", "the last so many lines; 0: all of them", minimum=0, default=200),
                ),
            ),
            Verb(
                "cancel",
                "stop a run with a save, wherever it runs, and keep its job out of the queue (취소)",
                "launch.verb_cancel:cancel",
                "RUN",
                (Flag("--now", "", "at once, without a save: the last complete checkpoint stands"),),
                more="The same command, or `dure submit`, goes on from the step that stands.",
            ),
            Verb(
                "watch",
                "a live view of runs: loss, throughput, memory, ranks, events; one frame through a pipe (지켜보기)",
                "launch.verb_watch:watch",
                "[RUN…]",
                more="Ctrl-C leaves the view; the run goes on.",
            ),
            Verb(
                "doctor",
                "what this machine has for training, whether it fits together, and what to do where it does not (점검)",
                "launch.doctor:doctor",
                flags=(Flag("--json", "", "for a program: one object with all findings"),),
            ),
            Verb(
                "checkpoint list",
                "what a run has saved: step, ranks, engine, size; which is the newest and the best (체크포인트)",
                "launch.verb_checkpoint:list_",
                "RUN|CHECKPOINT",
            ),
            Verb(
                "checkpoint verify",
                "every file of a run's checkpoints, or of one, against its hash; 1 if one is not as it was saved",
                "launch.verb_checkpoint:verify",
                "RUN|CHECKPOINT",
            ),
            Verb(
                "checkpoint prune",
                "remove all but the last checkpoints and the best one",
                "launch.verb_checkpoint:prune",
                "RUN",
                (
                    Flag("--keep", "N", "how many of the last (default: checkpoint.keep_last of the run)", minimum=1),
                    Flag("--damaged", "", "those too that a start has set aside as damaged"),
                ),
            ),
            Verb(
                "checkpoint reshape",
                "cut a ZeRO checkpoint for another number of ranks beforehand; a start does it by itself (재분할)",
                "launch.verb_checkpoint:reshape",
                "RUN|CHECKPOINT",
                (Flag("--ranks", "N", "how many ranks are to go on from it", minimum=1),),
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
                (Flag("--kind", "KIND", "train, corpus, tokenizer, shards, pipeline or tasks (default: by its keys)"),),
            ),
        ),
    ),
)

VERBS: dict[str, Verb] = {verb.name: verb for _, verbs in GROUPS for verb in verbs}
