"""`dure config show`: the resolved tree of a config file."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from typing import Any

from data_pipeline.config import Config, ConfigError, load, read_tree, to_yaml

_CLASSES = {
    "train": "trainer.config:TrainConfig",
    "corpus": "data_pipeline.corpus.build:CorpusConfig",
    "tokenizer": "data_pipeline.tokenizer.train:TokenizerConfig",
    "shards": "data_pipeline.shards.build:ShardsConfig",
    "pipeline": "launch.pipeline:PipelineConfig",
    "tasks": "trainer.task_groups:TaskGroupConfig",
}
# The first kind one of whose keys stands in the file; each kind has a key that none before it has.
_TELLING_KEYS = {
    "train": ("stage", "run", "model", "train", "engine", "data"),
    "pipeline": ("links",),
    "tasks": ("tasks",),
    "corpus": ("inputs",),
    "shards": ("tokenizer",),
    "tokenizer": ("corpus",),
}


def show(arguments: argparse.Namespace) -> int:
    """Print the file, its parents, the overrides and every default as one YAML tree."""
    kind = arguments.kind or kind_of(read_tree(arguments.config, arguments.overrides), where=arguments.config)
    config = load(arguments.config, arguments.overrides, class_of(kind))
    print(to_yaml(config), end="")
    if kind == "train":
        from trainer.config import TrainConfig, unread_keys

        assert isinstance(config, TrainConfig)
        print("".join(f"{arguments.config}: {line}\n" for line in unread_keys(config)), end="", file=sys.stderr)
    return 0


def kind_of(tree: dict[str, Any], *, where: str) -> str:
    """Which config class the keys of a tree belong to; raises ConfigError where none tells."""
    for kind, keys in _TELLING_KEYS.items():
        if any(key in tree for key in keys):
            return kind
    found = ", ".join(map(str, tree)) or "none"
    raise ConfigError(f"{where}: its keys ({found}) tell no kind of config; give --kind {'|'.join(_CLASSES)}")


def class_of(kind: str) -> type[Config]:
    """The config class of a kind; raises ConfigError for a word that is none."""
    if kind not in _CLASSES:
        close = difflib.get_close_matches(kind, _CLASSES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"give one of {', '.join(_CLASSES)}"
        raise ConfigError(f"--kind: {kind!r} is no kind of config; {hint}")
    module, _, name = _CLASSES[kind].partition(":")
    found: type[Config] = getattr(importlib.import_module(module), name)
    return found
