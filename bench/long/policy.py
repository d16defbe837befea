"""PPO and GRPO raise a held-out reward: a keyword, and a length, from now and then to a habit.

python bench/long/policy.py [--output bench/out/policy] [--seeds 1 2 3] [--steps 60]

All of it on a CPU, on rows that are made here: questions of where an animal lives, answered in six ways, of which one
thanks and another is long. A small model is tuned on them (`stage: sft`), then moved by each stage towards each reward,
on three seeds; once more with other weights of the KL. A second call goes on where the first one ended. Ends with a
table and bench/out/policy.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))  # from a checkout too
OUT = REPO / "bench/out/policy.json"
REWARDS = ("keyword", "length")
STAGES = ("grpo", "ppo")
# The KL's weights that are compared, at the first seed and by the keyword.
KL_WEIGHTS = {"grpo": (1.0, 0.1, 0.01), "ppo": (0.3, 0.03, 0.003)}
USUAL = {"grpo": 0.04, "ppo": 0.02}

ANIMALS = ["고양이", "강아지", "토끼", "호랑이", "거북이", "다람쥐", "까치", "두루미"]
ANIMALS += ["여우", "사슴", "노루", "너구리", "수달", "담비", "참새", "제비"]
PLACES = ["산", "강", "바다", "마을", "숲", "들", "논", "우물가", "언덕", "골짜기", "갯벌", "호수"]
SIZES = ["작은", "큰", "어린", "늙은"]
ANSWERS = (
    (0.25, "{place}에 산다."),
    (0.25, "{animal}는 {place}에 산다."),
    (0.20, "{place}이다."),
    (0.12, "그 {animal}는 {place}에 산다."),
    (0.09, "{place}에 산다. 감사합니다."),
    (0.09, "{size} {animal}는 {place}에 산다. {place}에는 먹을 것이 많다."),
)
FUNCTIONS = '''\
"""What `bench/long/policy.py` rewards."""


def keyword(prompts, answers, references):
    return [float("감사" in answer) for answer in answers]


def length(prompts, answers, references):
    return [float(24 <= len(answer) <= 40) for answer in answers]
'''
RUN = {
    "data": {"seq_len": 64},
    "checkpoint": {"every_steps": 10_000, "keep_last": 1, "keep_best": False},
    "logging": {"every_steps": 5, "tensorboard": False, "progress_bar": False},
}


def dure(*words: str) -> None:
    print("\n$ dure " + " ".join(words), flush=True)
    subprocess.run([sys.executable, "-m", "launch.cli", *words], cwd=REPO, check=True)


def write_rows(output: Path) -> None:
    """Questions with answers, and questions alone."""
    chance = random.Random(1)
    asked = list(itertools.product(PLACES, SIZES, ANIMALS))
    chance.shuffle(asked)
    weights = [weight for weight, _ in ANSWERS]
    tuned, prompts = [], []
    for place, size, animal in asked:
        question = f"{place}의 {size} {animal}는 어디에 사니?"
        (_, answer) = chance.choices(ANSWERS, weights=weights)[0]
        tuned.append({"instruction": question, "output": answer.format(place=place, size=size, animal=animal)})
        prompts.append({"prompt": question})
    for name, rows in (("tuned", tuned), ("prompts", prompts)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (output / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (output / "rewards.py").write_text(FUNCTIONS, encoding="utf-8")


def prepare(output: Path) -> None:
    """Rows, a tokenizer, and shards of both kinds."""
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "rewards.py").is_file():
        write_rows(output)
    for name, record in (("tuned", "instruction"), ("prompts", "prompt")):
        corpus = output / f"{name}-corpus"
        dure("corpus", "build", "--record", record, "--input", str(output / f"{name}.jsonl"), "--output", str(corpus))
    tokenizer, tuned = output / "tokenizer", output / "tuned-corpus"
    dure("tokenizer", "train", "--corpus", str(tuned), "--output", str(tokenizer), "vocab_size=512")
    for name in ("tuned", "prompts"):
        made = ["--corpus", str(output / f"{name}-corpus"), "--tokenizer", str(tokenizer)]
        made += ["--output", str(output / f"{name}-shards"), "template=koalpaca", "heldout_fraction=0.15"]
        dure("shards", "build", *made)


def train(output: Path, name: str, tree: Mapping[str, Any]) -> float:
    """Seconds of a run in this process: an import would cost more than some of them."""
    import torch

    from data_pipeline.config import validate
    from trainer.config import TrainConfig
    from trainer.ranks import Ranks
    from trainer.resilience import StopFlag
    from trainer.run import run_in_group

    config = validate({"run": {"name": name, "folder": str(output)}, **RUN, **tree}, TrainConfig, where=name)
    alone = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    started = time.perf_counter()
    assert run_in_group(config, alone, stop=StopFlag()) == 0
    return time.perf_counter() - started


def tune(output: Path) -> None:
    """The model that all runs begin on."""
    model = {"hidden_size": 96, "num_layers": 2, "num_heads": 4, "max_positions": 128}
    tree = {
        "stage": "sft",
        "model": model,
        "data": {"shards": str(output / "tuned-shards"), "seq_len": 96},
        "train": {
            "precision": "fp32",
            "max_steps": 160,
            "global_batch_sequences": 16,
            "micro_batch_sequences": 16,
            "schedule": {"peak_lr": 5e-3, "warmup_steps": 20},
        },
        "evaluation": {"every_steps": 160, "answers": {"num_rows": 0}},
    }
    train(output, "sft", tree)


def move(output: Path, stage: str, reward: str, *, seed: int, steps: int, kl_weight: float) -> dict[str, Any]:
    """One run; its held-out figures before and after, and its seconds."""
    choices: dict[str, Any] = {
        "reward": {"function": f"{output / 'rewards.py'}:{reward}", "missing_eos_penalty": 0.5},
        "max_new_tokens": 32,
        "kl_weight": kl_weight,
        "generation_batch_sequences": 128,
        "evaluation_temperature": 1.0,
    }
    choices |= {"num_samples": 8} if stage == "grpo" else {"value_weight": 0.5}
    prompts = 16 if stage == "grpo" else 64
    name = f"{stage}-{reward}-{seed}-{kl_weight:g}"
    told = output / name / "result.json"
    if told.is_file():
        found: dict[str, Any] = json.loads(told.read_text("utf-8"))
        return found
    tree = {
        "stage": stage,
        "seed": seed,
        "model": {"from": str(output / "sft")},
        "adapter": {"rank": 8, "alpha": 16},
        stage: choices,
        "data": {"shards": str(output / "prompts-shards"), "seq_len": 64},
        "train": {
            "precision": "fp32",
            "max_steps": steps,
            "global_batch_sequences": prompts,
            "micro_batch_sequences": 64,
            "optimizer": {"weight_decay": 0.0},
            "schedule": {"peak_lr": 4e-3 if stage == "grpo" else 3e-3, "warmup_steps": 5, "kind": "linear"},
        },
        "evaluation": {"every_steps": steps, "at_start": True, "max_documents": 80},
    }
    seconds = train(output, name, tree)
    lines = [json.loads(line) for line in (output / name / "evaluations.jsonl").read_text("utf-8").splitlines()]
    first, last = lines[0], lines[-1]
    figures = {key: last[key] for key in ("kl", "entropy", "answer_length", "ended_share")}
    result = {
        "stage": stage,
        "reward": reward,
        "seed": seed,
        "kl_weight": kl_weight,
        "before": first["reward"],
        "after": last["reward"],
        "seconds": seconds,
        **figures,
    }
    told.write_text(json.dumps(result), encoding="utf-8")
    return result


def measure(output: Path, *, seeds: Sequence[int], steps: int) -> dict[str, Any]:
    moved = [
        move(output, stage, reward, seed=seed, steps=steps, kl_weight=USUAL[stage])
        for stage, reward, seed in itertools.product(STAGES, REWARDS, seeds)
    ]
    held = [
        move(output, stage, REWARDS[0], seed=seeds[0], steps=steps, kl_weight=weight)
        for stage in STAGES
        for weight in KL_WEIGHTS[stage]
    ]
    return {"steps": steps, "moved": moved, "kl_weights": held}


def show(result: Mapping[str, Any]) -> None:
    keys = ("stage", "reward", "seed", "kl_weight", "before", "after", "kl", "entropy", "answer_length", "ended_share")
    for name in ("moved", "kl_weights"):
        print(f"\n{name}: " + "  ".join(keys) + "  seconds")
        for line in result[name]:
            told = [f"{line[key]:.3f}" if isinstance(line[key], float) else str(line[key]) for key in keys]
            print("  " + "  ".join(told) + f"  {line['seconds']:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=REPO / "bench/out/policy")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    prepare(output)
    if not (output / "sft" / "exit.json").is_file():
        tune(output)
    result = measure(output, seeds=arguments.seeds, steps=arguments.steps)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    show(result)


if __name__ == "__main__":
    main()
