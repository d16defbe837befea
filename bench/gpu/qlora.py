"""QLoRA of a random GPT-NeoX of polyglot-ko's shape on one card: our training beside trl's SFTTrainer, in turns.

python bench/gpu/qlora.py [--size tiny|1.3b|5.8b|12.8b] [--only make|ours|peer] [--cache DIR] [key.sub=value ...]

Nothing is downloaded: weights are random (26 GB on disk for 12.8b), rows synthetic, as long as KoAlpaca's. Settings are
those of configs/sft/polyglot-ko-12.8b-qlora.yaml but for what the flags say; dropout is 0, so that losses compare.
Each contender is a process of its own, whose output is kept in logs/ under the cache. Where trl is missing,
transformers' Trainer with peft stands in. `--only` splits the work over several calls: the table shows the figures of
all calls with the same settings. No contender is begun that would not end within --limit-seconds. `tiny` runs on a CPU,
in float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from bench.gpu.qlora_case import TARGETS, Case, Contender, make, measure  # noqa: E402
from bench.gpu.qlora_inputs import SIZES  # noqa: E402

OUT = Path("bench/out/gpu-qlora.json")
CACHE = Path("bench/out/qlora")
KERNELS = ("auto", "flash_attention_2", "sdpa")
COMPARED_STEPS = 5


@dataclass
class Calls:
    """Starts children, one after another, within the time that this call may take."""

    logs: Path
    limit_seconds: float
    started: float = dataclasses.field(default_factory=time.monotonic)
    longest: float = 0.0

    def run(self, part: str, case: Case, *, log: str) -> dict[str, Any]:
        """What the child found, and {"error": ...} where it failed or was not begun."""
        left = self.limit_seconds - (time.monotonic() - self.started)
        if left < self.longest:
            return {"error": f"not begun: {left:.0f} s are left of --limit-seconds, the longest so far took more"}
        self.logs.mkdir(parents=True, exist_ok=True)
        before = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, (self.logs / f"{log}.log").open("w", encoding="utf-8") as file:
            result = Path(folder) / "result.json"
            command = [sys.executable, __file__, "--child", part, json.dumps(dataclasses.asdict(case)), str(result)]
            try:
                done = subprocess.run(
                    command, cwd=REPO, env=_one_card(), stdout=file, stderr=file, timeout=max(left, 1)
                )
            except subprocess.TimeoutExpired:
                return {"error": f"ended after {left:.0f} s, when --limit-seconds was over (see {file.name})"}
            self.longest = max(self.longest, time.monotonic() - before)
            if done.returncode:
                return {"error": f"{_last_line(Path(file.name))} (exit code {done.returncode}, see {file.name})"}
            found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found


def _one_card() -> dict[str, str]:
    """This environment with the first card alone: Trainer would spread over all that it sees."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return os.environ | {"CUDA_VISIBLE_DEVICES": first}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no word"


def child(part: str, case_json: str, result: str) -> None:
    tree = json.loads(case_json)
    case = Case(**tree | {"overrides": tuple(tree["overrides"])})
    found = make(case) if part == "make" else measure(part, case)  # type: ignore[arg-type]
    Path(result).write_text(json.dumps(found), encoding="utf-8")


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    for targets, micro, attention in itertools.product(arguments.targets, arguments.micro, arguments.attention):
        yield Case(
            size=arguments.size,
            cache=str(arguments.cache.resolve()),
            seq_len=arguments.seq_len or (512 if arguments.size == "tiny" else 2048),
            steps=arguments.steps,
            warmup_steps=arguments.warmup_steps,
            global_batch_sequences=max(arguments.global_batch, micro),
            micro_batch_sequences=micro,
            rank=arguments.rank,
            targets=targets,
            attention=attention,
            overrides=tuple(arguments.overrides),
        )


def contenders(arguments: argparse.Namespace) -> list[Contender]:
    found: list[Contender] = []
    if arguments.only in (None, "ours"):
        found.append("ours")
    if arguments.only in (None, "peer"):
        found.append("peer")
        if arguments.liger:
            found.append("peer+liger")
    return found


def main() -> int:
    arguments = parse()
    if arguments.child:
        child(*arguments.child)
        return 0
    calls = Calls(logs=arguments.cache / "logs", limit_seconds=arguments.limit_seconds)
    asked = list(cases(arguments))
    for case in asked:
        if case.global_batch_sequences % case.micro_batch_sequences:
            raise SystemExit(f"--global-batch {case.global_batch_sequences}: no multiple of --micro {case.name}")
    made = calls.run("make", asked[0], log="make")
    calls.longest = 0.0
    print(f"inputs in {arguments.cache}: {json.dumps(made)}", flush=True)
    if "error" in made:
        return 1
    if arguments.only == "make":
        return 0
    if importlib.util.find_spec("trl") is None and arguments.only != "ours":
        print("trl is not installed: transformers' Trainer with peft stands in for SFTTrainer", flush=True)
    runs = take_turns(arguments, asked, calls, made)
    for case in asked:
        show(case, [run for run in runs if run["case"] == _as_json(case)])
    return 1 if any("error" in run for run in runs) else 0


def take_turns(
    arguments: argparse.Namespace, asked: list[Case], calls: Calls, made: dict[str, Any]
) -> list[dict[str, Any]]:
    """All runs of these settings, each written down as it ends."""
    runs = _kept(arguments, asked)
    for turn, case, contender in itertools.product(range(arguments.repeats), asked, contenders(arguments)):
        begun = time.monotonic()
        found = calls.run(contender, case, log=f"{len(runs):02d}-{contender}")
        took = time.monotonic() - begun
        runs.append({"case": _as_json(case), "turn": turn, "contender": contender, "seconds": took, **found})
        print(f"{contender}, {case.name}, turn {turn + 1}: {took:.0f} s{_in_short(found)}", flush=True)
        _write(arguments.output, made, runs)
    return runs


def _as_json(case: Case) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(case)))
    return tree


def _kept(arguments: argparse.Namespace, asked: list[Case]) -> list[dict[str, Any]]:
    """Runs of an earlier call of other contenders with the same settings; all others are forgotten."""
    if arguments.only is None or not arguments.output.is_file():
        return []
    wanted, now = [_as_json(case) for case in asked], contenders(arguments)
    runs = json.loads(arguments.output.read_text(encoding="utf-8"))["runs"]
    return [run for run in runs if run["case"] in wanted and run["contender"] not in now]


def _write(output: Path, made: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"inputs": made, "runs": runs}, indent=1) + "\n", encoding="utf-8")


def _in_short(found: dict[str, Any]) -> str:
    if obstacle := found.get("error") or found.get("left_out"):
        return f": {obstacle}"
    return f", {found['tokens_per_second']:,.0f} tokens/s, {found['training_gib']:.1f} GiB"


def show(case: Case, runs: list[dict[str, Any]]) -> None:
    """A table of a case's contenders, and their first losses side by side."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if "what" in run:
            by_name.setdefault(run["what"], []).append(run)
    print(f"\n{case.size}, rank {case.rank} on {case.name}, {case.global_batch_sequences} rows a step")
    head = ("tokens/s", "least", "most", "targets/s", "MFU", "GiB", "reserved", "load GiB", "to step 1")
    print(f"{'':<24}{'kernel':<19}" + "".join(f"{name:>11}" for name in head))
    for name, found in by_name.items():
        rates = [run["tokens_per_second"] for run in found]
        middle = {key: statistics.median(run[key] for run in found) for key in _MEDIANS}
        mfu = f"{statistics.median(run['mfu'] for run in found):.3f}" if found[0]["mfu"] else "-"
        print(
            f"{name:<24}{found[0]['kernel']:<19}{statistics.median(rates):>11,.0f}{min(rates):>11,.0f}"
            f"{max(rates):>11,.0f}{middle['target_tokens_per_second']:>11,.0f}{mfu:>11}"
            f"{middle['training_gib']:>11.2f}{middle['reserved_gib']:>11.2f}{middle['loading_gib']:>11.2f}"
            f"{middle['seconds_to_first_step']:>9.1f} s"
        )
    if by_name:
        print(f"{'loss of step':<24}" + "".join(f"{step:>11}" for step in range(1, COMPARED_STEPS + 1)))
    ours = by_name.get("dure", [{"losses": []}])[0]["losses"]
    for name, found in by_name.items():
        losses = found[0]["losses"]
        apart = max((abs(loss - our) / our for loss, our in zip(losses, ours, strict=False)), default=0.0)
        told = f"   largest relative difference of {len(losses)}: {apart:.1e}" if ours and losses is not ours else ""
        print(f"{name:<24}" + "".join(f"{loss:>11.4f}" for loss in losses[:COMPARED_STEPS]) + told)


_MEDIANS = ("target_tokens_per_second", "training_gib", "reserved_gib", "loading_gib", "seconds_to_first_step")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _some_of(*choices: str) -> Callable[[str], list[str]]:
    """Of an option whose value is some of `choices`, with commas between them."""

    def chosen(text: str) -> list[str]:
        words = text.split(",")
        if unknown := [word for word in words if word not in choices]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose among {', '.join(choices)}")
        return words

    return chosen


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="12.8b")
    parser.add_argument("--only", choices=("make", "ours", "peer"), help="one part; inputs that stand are not remade")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder of base and rows (default {CACHE})")
    parser.add_argument("--output", type=Path, default=OUT, help=f"JSON of all runs (default {OUT})")
    parser.add_argument("--steps", type=int, default=10, help="that are measured")
    parser.add_argument("--warmup-steps", type=int, default=2, help="before them")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seq-len", type=int, help="2048; 512 for tiny")
    parser.add_argument("--global-batch", type=int, default=8, help="rows a step; at least --micro")
    parser.add_argument("--micro", type=_numbers, default=[1], help="rows a forward pass; 1,4: both are tried")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", type=_some_of(*TARGETS), default=["query_key_value"], help=" or ".join(TARGETS))
    parser.add_argument("--attention", type=_some_of(*KERNELS), default=["auto"], help=" or ".join(KERNELS))
    parser.add_argument(
        "--liger", action="store_true", help="also the peer with liger-kernel, where it can do something"
    )
    parser.add_argument("--limit-seconds", type=float, default=530.0, help="of this call")
    parser.add_argument("--child", nargs=3, metavar=("PART", "CASE", "RESULT"), help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="of the config, for both contenders")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
