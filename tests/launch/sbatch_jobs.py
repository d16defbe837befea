"""Jobs and profiles for tests, and names that break careless scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.config import load
from launch.cluster import ClusterConfig
from launch.sbatch import Job

REPO = Path(__file__).resolve().parents[2]
PROFILES = sorted((REPO / "slurm/clusters").glob("*.yaml"))

# What a person, a date or an attacker may call a run or a folder. Of one line: an #SBATCH line holds no other.
HOSTILE = (
    "a b",
    "두레 실험",
    "-x --wrap=id",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "$(touch pwned)",
    "`touch pwned`",
    "${HOME}",
    "a#b",
    "#SBATCH --qos=high",
    "100%j",
    "~",
    "*",
    "a&&touch pwned|cat;(",
    "!!",
    "mixed '\"`$(touch pwned) 한글 #%",
)
WITH_BACKSLASH = ("a\\b", "ends\\", '\\"$(touch pwned)', "\\'")
# Only words of a command and folders can be called so; a profile refuses them, and #SBATCH lines those of two lines.
CONTROLS = (
    "two\nlines",
    "x\n#SBATCH --qos=high",
    "x\n#PBS -q high\ny",
    "a\r\nb",
    "\n",
    "'\n\\",
    "\x1b[31m",
    "\ttab\t",
)


def make_job(**changes: Any) -> Job:
    """A plain job of two CPU nodes, with `changes`."""
    plain: dict[str, Any] = {
        "name": "tiny",
        "command": ("python", "-m", "launch.job", "/project/config.yaml"),
        "cluster": ClusterConfig(),
        "nodes": 2,
        "log": Path("/project/runs/tiny/logs/slurm-%j.out"),
        "workdir": Path("/project"),
        "signal_seconds": 300,
    }
    return Job(**(plain | changes))


def profile(path: Path) -> ClusterConfig:
    """As it stands in its file; a home is one for every machine, and no venv of this machine is filled in."""
    cluster = load(path, [], ClusterConfig)
    return cluster.model_copy(update={"venv": cluster.venv.replace("~", "/home/dure")})
