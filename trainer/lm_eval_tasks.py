"""Tasks of lm-eval (EleutherAI's harness) on a saved model as it stands: in 4 bits, with its adapter beside its base.

lm-eval prompts, scores and counts; here its tasks are named, its failures explained, its figures put in order.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.errors import RunError
from trainer.saved import (
    DTYPES,
    Dtype,
    Quantize,
    Saved,
    open_model,
    quantization_of,
    tokenizer_folder,
    usual_dtype,
    vocabulary_of,
)
from trainer.saved_head import head_of_saved
from trainer.task_groups import TaskGroup

FEWSHOT_SEED = 1234  # lm-eval's own: which examples stand before a question
OLDEST = "0.4.13"  # the first whose TaskManager loads tasks, groups and files alike
_COUNTS = ("sample_len", "name", "alias")

Tree = dict[str, Any]


def require_lm_eval() -> str:
    """Its version.

    Raises:
        RunError: it is not installed, or too old.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise RunError("--tasks: lm-eval is not installed (lm-eval 없음); pip install 'dure[eval]'")
    from importlib.metadata import version

    from lm_eval.tasks import TaskManager

    if not hasattr(TaskManager, "load"):
        raise RunError(f"--tasks: lm-eval {version('lm_eval')} is installed, {OLDEST} is the oldest that will do; "
                       "pip install 'dure[eval]'")  # fmt: skip
    return version("lm_eval")


def as_lm(saved: Saved, *, batch_size: int, dtype: Dtype, quantize: Quantize | None = None) -> Any:
    """lm-eval's wrapper (`HFLM`) of the opened model with its tokenizer.

    Raises:
        RunError: a model that writes no text.
    """
    if (head := head_of_saved(saved)) != "causal_lm":
        raise RunError(
            f"--tasks: {saved.path}: a {head.replace('_', ' ')} writes no text, which lm-eval's tasks ask for"
        )
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    opened = open_model(saved, quantize=quantize, dtype=DTYPES[dtype])
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder(saved)))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = vocabulary_of(saved).in_model(opened.model).pad_id
    return HFLM(pretrained=opened.model, backend="causal", tokenizer=tokenizer, batch_size=batch_size)


def load_groups(groups: Sequence[TaskGroup], *, folders: Sequence[Path] | None = None) -> list[Mapping[str, Any]]:
    """lm-eval's tasks of each group, their data at hand.

    Args:
        folders: where lm-eval looks for names, instead of all its own, whose thousands of files it reads for seconds.

    Raises:
        RunError: names that lm-eval does not know, or data that can't be had.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    named = [spec["task"] if isinstance(spec, dict) else spec for group in groups for spec in group.specs]
    named = [name for name in named if not Path(name).is_file()]
    # A file is loaded as it is.
    manager = TaskManager(include_path=list(folders or ()), include_defaults=folders is None and bool(named))
    known = set(manager.all_tasks)
    if unknown := [name for name in named if name not in known]:
        raise RunError(f"--tasks: lm-eval knows no {', '.join(unknown)}{_near(unknown[0], known)}")
    loaded = []
    for group in groups:
        try:
            loaded.append(manager.load(list(group.specs)))
        except Exception as error:  # of datasets, the hub's client, or a task's own code
            raise RunError(_why(group, error)) from error
    return loaded


def _near(name: str, known: set[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {', '.join(close)}?" if close else "; `lm-eval ls tasks` lists its tasks"


def _why(group: TaskGroup, error: Exception) -> str:
    """Why the data of a group could not be had, and what to do."""
    told = str(error).strip().partition("\n")[0] or type(error).__name__
    names = {parent.__name__ for one in _causes(error) for parent in type(one).__mro__}
    if "scripts are no longer supported" in str(error):
        return (
            f"--tasks: {group.name}: its data set is a script, which datasets no longer runs: {told}; list its tasks "
            "in a file of your own with overrides: {dataset_kwargs: {revision: refs/convert/parquet}}, see "
            "docs/evaluate.md"
        )
    if names & {"ConnectionError", "OfflineModeIsEnabled", "HfHubHTTPError", "HTTPError", "DatasetNotFoundError"} | (
        names & {"LocalEntryNotFoundError", "ConnectError", "TimeoutException"}
    ):
        return (
            f"--tasks: {group.name}: its data set can't be downloaded (데이터셋을 받을 수 없음): {told}; connect this "
            "machine to the hub, or fill the cache (HF_HOME) on one that is and copy it here, with HF_HUB_OFFLINE=1"
        )
    return (
        f"--tasks: {group.name}: lm-eval could not load it: {type(error).__name__}: {told}; mend the task or its data"
    )


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def run_groups(
    saved: Saved,
    groups: Sequence[TaskGroup],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    dtype: Dtype | None = None,
    quantize: Quantize | None = None,
    on_group: Callable[[Tree], None] = lambda tree: None,
) -> list[Tree]:
    """The figures of each group, one tree each, told to `on_group` as they come.

    Args:
        num_fewshot: examples before each question, instead of the groups' own numbers.
        limit: questions of each task; a try, whose figures are marked by it.
        dtype: as `dure evaluate` takes it.

    Raises:
        RunError: no lm-eval, unknown tasks, or data that can't be had; before the model is opened.
    """
    version = require_lm_eval()
    loaded = load_groups(groups)
    chosen = dtype or usual_dtype(saved)
    lm = as_lm(saved, batch_size=batch_size, dtype=chosen, quantize=quantize)
    held = quantization_of(saved)
    found = []
    for group, tasks in zip(groups, loaded, strict=True):
        started = time.perf_counter()
        shots = group.num_fewshot if num_fewshot is None else num_fewshot
        results = _evaluate(lm, tasks, num_fewshot=shots, limit=limit)
        tree: Tree = {"group": group.name, "model": str(saved.checkpoint or saved.path), "step": saved.step}
        tree |= {"dtype": chosen, "quantization": _held(held, quantize), "lm_eval": version, "limit": limit}
        tree |= {"tasks": _tasks_of(results, tasks)}
        tree |= _score(tree["tasks"], group.metric)
        tree["seconds"] = round(time.perf_counter() - started, 1)
        on_group(tree)
        found.append(tree)
    return found


def _held(trained: Any, quantize: Quantize | None) -> str | None:
    if quantize is not None:
        return None if quantize == "none" else quantize
    return trained.kind if trained else None


def _evaluate(lm: Any, tasks: Mapping[str, Any], *, num_fewshot: int | None, limit: int | None) -> Mapping[str, Any]:
    """What `lm_eval.simple_evaluate` does with a model at hand, without its looks at the machine."""
    import lm_eval

    for task in tasks["tasks"].values():
        own = task.get_config("num_fewshot")
        if num_fewshot is not None and own != 0:  # 0 is how a task says that none may stand there
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    results: Mapping[str, Any] = lm_eval.evaluate(
        lm=lm, task_dict=tasks, limit=limit, log_samples=False, bootstrap_iters=0
    )
    return results


def _tasks_of(results: Mapping[str, Any], tasks: Mapping[str, Any]) -> dict[str, Tree]:
    """Of each task its version, its questions and its metrics, by their names without lm-eval's filter "none"."""
    found = {}
    for name in tasks["tasks"]:
        metrics = {
            key.removesuffix(",none"): float(value)
            for key, value in results["results"][name].items()
            if key not in _COUNTS and "_stderr" not in key and isinstance(value, (int, float))
        }
        found[name] = {
            "version": results["versions"].get(name),
            "num_fewshot": results["n-shot"].get(name, 0),
            "num_questions": results["n-samples"][name]["effective"],
            "metrics": metrics,
        }
    return found


def _score(tasks: Mapping[str, Tree], metric: str) -> Tree:
    """The group's metric, a mean over all its questions; of one that no task has, nothing."""
    if not metric:
        metric = next((name for tree in tasks.values() for name in tree["metrics"]), "")
    having = [tree for tree in tasks.values() if metric in tree["metrics"]]
    num_questions = sum(tree["num_questions"] for tree in having)
    if not num_questions:
        return {"metric": metric, "score": None, "num_questions": 0}
    mean = sum(tree["metrics"][metric] * tree["num_questions"] for tree in having) / num_questions
    return {"metric": metric, "score": mean, "num_questions": num_questions}
