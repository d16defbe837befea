"""Cluster profiles: every file under slurm/clusters/ is sound, and what no script can carry is refused by its key."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import ConfigError, load, to_yaml
from launch.cluster import ClusterConfig, completed, in_container, read_cluster, seconds_of
from tests.launch.sbatch_jobs import CONTROLS, HOSTILE, PROFILES, WITH_BACKSLASH

IMAGE = {"kind": "pyxis", "image": "nvcr.io#a", "mounts": ("/data", "/raid:/cache:ro")}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_a_profile_is_read_and_its_resolved_text_is_itself(path: Path, tmp_path: Path) -> None:
    cluster = read_cluster(path)
    (tmp_path / "cluster.yaml").write_text(to_yaml(cluster), encoding="utf-8")

    assert load(tmp_path / "cluster.yaml", [], ClusterConfig) == cluster
    assert read_cluster(tmp_path / "cluster.yaml") == cluster


def test_the_profiles_show_each_way_to_bring_python() -> None:
    clusters = [load(path, [], ClusterConfig) for path in PROFILES]

    assert {cluster.container.kind for cluster in clusters if cluster.container} == {"pyxis", "apptainer"}
    assert any(cluster.modules and cluster.conda for cluster in clusters)
    assert any(not cluster.gpus_per_node for cluster in clusters)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("2:00:00", 7200),
        ("2-0", 172800),
        ("1-12:30", 131400),
        ("1-00:00:01", 86401),
        ("", 0),
        ("1 day", 0),
        ("-5", 0),
        ("1:2:3:4", 0),
        ("unlimited", 0),
    ],
)
def test_a_time_limit_is_read_as_slurm_reads_it(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ({"parition": "gpu"}, "parition: unknown key; did you mean 'partition'?"),
        ({"container": {"kind": "docker", "image": "x"}}, "container.kind: input should be 'pyxis' or 'apptainer'"),
        ({"time_limit": "soon"}, "time_limit: 'soon' is no time; write minutes, hours:minutes:seconds or days-"),
        ({"memory": "lots"}, "memory: string should match pattern"),
        ({"gpu_kind": "a 100", "gpus_per_node": 1}, "gpu_kind: string should match pattern"),
        ({"gpu_kind": "a100"}, "gpu_kind is 'a100', but gpus_per_node 0; set both, or none"),
        ({"venv": "a", "conda": "b"}, "venv is 'a' and conda 'b'; one of them brings python, give one"),
        ({"environment": {"A B": "x"}}, "environment: 'A B' is no name of a variable"),
        ({"environment": {"WANDB_API_KEY": "x"}}, "WANDB_API_KEY looks like a secret, and the profile is copied"),
        ({"environment": {"HF_TOKEN": "x"}}, "HF_TOKEN looks like a secret"),
        ({"modules": ["-x"]}, "'-x' would be read as a flag or as nothing; give a name"),
        ({"exclude": [" "]}, "' ' would be read as a flag or as nothing; give a name"),
        ({"extra_sbatch": ["comment=x"]}, "'comment=x' is not of the form --flag or --flag=value"),
        ({"extra_sbatch": ["--partition=x"]}, "'--partition=x': set partition instead"),
        ({"extra_sbatch": ["--output=x"]}, "'--output=x': dure sets this flag itself"),
        ({"extra_sbatch": ["--wrap"]}, "'--wrap': dure sets this flag itself"),
        ({"container": {**IMAGE, "mounts": ["/a,/b"]}}, "'/a,/b' holds a comma, which parts mounts"),
        ({"signal_seconds": 70000}, "signal_seconds: input should be less than or equal to 65535"),
    ],
)
def test_a_faulty_profile_is_refused_by_its_key(sets: dict[str, Any], says: str, tmp_path: Path) -> None:
    from ruamel.yaml import YAML

    with (tmp_path / "cluster.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump({**sets, **_plain(sets)}, file)

    with pytest.raises(ConfigError) as caught:
        read_cluster(tmp_path / "cluster.yaml")

    assert says in str(caught.value)


def _plain(sets: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, which YAML knows."""
    container = sets.get("container", {})
    return {"container": {**container, "mounts": list(container.get("mounts", ()))}} if container else {}


@pytest.mark.parametrize("key", ["account", "partition", "qos", "constraint", "reservation", "venv", "conda"])
@pytest.mark.parametrize("text", CONTROLS)
def test_a_line_break_or_control_character_is_refused(key: str, text: str) -> None:
    with pytest.raises(ValueError, match="must be one line without control characters"):
        ClusterConfig(**{key: text})


@pytest.mark.parametrize("text", [*HOSTILE, *WITH_BACKSLASH])
def test_a_text_of_one_line_is_taken_as_it_is(text: str) -> None:
    cluster = ClusterConfig(partition=text, environment={"A": text}, setup=(text,))

    assert (cluster.partition, cluster.environment["A"], cluster.setup[0]) == (text, text, text)


def test_a_profile_that_names_no_python_gets_the_one_that_submits() -> None:
    assert completed(ClusterConfig()).venv == sys.prefix
    assert completed(ClusterConfig(conda="x")).venv == ""
    assert completed(ClusterConfig(setup=("source x",))).venv == ""
    assert completed(ClusterConfig(venv="/v")).venv == "/v"


def test_paths_of_a_profile_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    container = {"kind": "apptainer", "image": "images/a.sif"}

    cluster = completed(ClusterConfig(venv="~/v", container=container))

    assert cluster.venv == "/home/me/v"
    assert cluster.container is not None
    assert cluster.container.image == str(tmp_path / "images/a.sif")
    assert completed(cluster) == cluster
    remote = completed(ClusterConfig(container={"kind": "apptainer", "image": "docker://a/b"}))
    assert remote.container is not None
    assert remote.container.image == "docker://a/b"


def test_a_profile_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"no-such\.yaml: no such file; the profiles here are .*cpu-tiny\.yaml"):
        read_cluster("no-such.yaml")


def test_pyxis_gets_its_container_by_flags_of_srun() -> None:
    flags, words = in_container(
        ClusterConfig(container=IMAGE), workdir=Path("/w"), folders=[Path("/w/runs/a"), Path("/data 2")]
    )

    assert words == []
    assert flags == [
        "--container-image=nvcr.io#a",
        "--container-mounts=/data:/data,/raid:/cache:ro,/data 2:/data 2,/w:/w",
        "--container-workdir=/w",
    ]


def test_apptainer_gets_its_container_by_words_before_the_command() -> None:
    cluster = ClusterConfig(container={**IMAGE, "kind": "apptainer", "image": "/a.sif"}, gpus_per_node=1)

    flags, words = in_container(cluster, workdir=Path("/w"), folders=[Path("/w")])

    assert flags == []
    assert " ".join(words) == ("apptainer exec --nv --pwd /w --bind /data --bind /raid:/cache:ro --bind /w /a.sif")


def test_without_a_container_nothing_stands_before_the_command() -> None:
    assert in_container(ClusterConfig(), workdir=Path("/w"), folders=[Path("/a,b")]) == ([], [])


@pytest.mark.parametrize("name", ["/a,b", "/a:b"])
def test_a_folder_that_no_mount_can_carry_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a comma or a colon parts mounts"):
        in_container(ClusterConfig(container=IMAGE), workdir=Path("/w"), folders=[Path(name)])
