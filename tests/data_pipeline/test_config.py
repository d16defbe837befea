"""A YAML file and overrides become one frozen tree, or one error that names every fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, field_validator, model_validator

from data_pipeline.config import Config, ConfigError, load, read_tree, to_tree, to_yaml, validate


class ScheduleConfig(Config):
    kind: Literal["cosine", "WSD"] = "cosine"
    peak_lr: float = Field(default=1e-3, gt=0)
    warmup_steps: int = 0


class SourceConfig(Config):
    path: str
    weight: float = 1.0


class RootConfig(Config):
    name: str = "run"
    steps: int = 1
    schedule: ScheduleConfig = ScheduleConfig()
    sources: tuple[SourceConfig, ...] = ()
    labels: dict[str, float] = Field(default_factory=dict)
    base: str | None = Field(default=None, alias="from")

    @model_validator(mode="after")
    def _warmup_fits(self) -> RootConfig:
        if self.schedule.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.schedule.warmup_steps} exceed steps {self.steps}; shorten them")
        return self


class InputConfig(Config):
    plain_key: ClassVar[str] = "path"

    path: str
    weight: float = 1.0


class WithInputs(Config):
    inputs: tuple[InputConfig, ...]

    @field_validator("inputs", mode="before")
    @classmethod
    def _plain_values(cls, value: Any) -> Any:
        return [{"path": item} if isinstance(item, str) else item for item in value]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(path: Path | None, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, RootConfig)
    return str(caught.value).splitlines()


def test_numbers_with_an_exponent_are_numbers(folder: Path) -> None:
    path = written(folder, "a.yaml", "schedule: {peak_lr: 3e-4}\nlabels: {a: 1e6}\n")

    config = load(path, ["schedule.peak_lr=2e-5"], RootConfig)

    assert load(path, [], RootConfig).schedule.peak_lr == 3e-4
    assert config.schedule.peak_lr == 2e-5
    assert config.labels == {"a": 1e6}


def test_a_config_is_frozen() -> None:
    config = RootConfig()

    with pytest.raises(ValidationError, match="frozen"):
        config.steps = 3  # type: ignore[misc]


def test_the_later_wins_parent_before_file_before_override(folder: Path) -> None:
    written(folder, "base/first.yaml", "name: first\nsteps: 10\nschedule: {peak_lr: 0.1, warmup_steps: 1}\n")
    written(folder, "base/second.yaml", "name: second\nschedule: {peak_lr: 0.2}\n")
    path = written(
        folder, "run.yaml", "extends: [base/first.yaml, base/second.yaml]\nname: run\nschedule: {kind: WSD}\n"
    )

    config = load(path, ["schedule.warmup_steps=2", "schedule.warmup_steps=3"], RootConfig)

    assert config.name == "run"
    assert config.steps == 10
    assert config.schedule == ScheduleConfig(kind="WSD", peak_lr=0.2, warmup_steps=3)


def test_a_parent_is_found_beside_the_file_that_names_it(folder: Path) -> None:
    written(folder, "base/deep/root.yaml", "steps: 7\n")
    written(folder, "base/middle.yaml", "extends: deep/root.yaml\n")
    path = written(folder, "runs/run.yaml", "extends: ../base/middle.yaml\n")

    assert load(path, [], RootConfig).steps == 7


def test_files_that_extend_each_other_in_a_circle_are_refused(folder: Path) -> None:
    written(folder, "a.yaml", "extends: b.yaml\n")
    path = written(folder, "b.yaml", "extends: a.yaml\n")

    (fault,) = faults_of(path)

    assert "extend each other in a circle" in fault
    assert "b.yaml -> " in fault and "a.yaml -> " in fault


def test_the_same_parent_by_two_ways_is_no_circle(folder: Path) -> None:
    written(folder, "root.yaml", "steps: 7\n")
    written(folder, "left.yaml", "extends: root.yaml\n")
    written(folder, "right.yaml", "extends: root.yaml\nname: right\n")
    path = written(folder, "run.yaml", "extends: [left.yaml, right.yaml]\n")

    assert load(path, [], RootConfig).name == "right"


@pytest.mark.parametrize("value", ["3", "{a: 1}", "[a.yaml, 3]"])
def test_extends_of_another_kind_is_refused(folder: Path, value: str) -> None:
    path = written(folder, "run.yaml", f"extends: {value}\n")

    assert faults_of(path)[0].endswith("give one path or a list of paths")


def test_a_parent_that_is_missing_is_named(folder: Path) -> None:
    path = written(folder, "run.yaml", "extends: none.yaml\n")

    assert faults_of(path)[0].startswith(f"{path}: extends: {folder / 'none.yaml'}: cannot be read")


def test_a_key_that_stands_twice_is_refused(folder: Path) -> None:
    path = written(folder, "run.yaml", "steps: 1\nname: a\nsteps: 2\n")

    (fault,) = faults_of(path)

    assert 'duplicate key "steps"' in fault
    assert "line 3" in fault
    assert "http" not in fault


def test_broken_yaml_is_one_line_with_its_place(folder: Path) -> None:
    (fault,) = faults_of(written(folder, "run.yaml", "schedule: {kind: [cosine}\n"))

    assert fault.startswith(f"{folder / 'run.yaml'}: not valid YAML:")
    assert "line 1" in fault


def test_a_top_level_that_is_no_mapping_is_refused(folder: Path) -> None:
    (fault,) = faults_of(written(folder, "run.yaml", "- a\n- b\n"))

    assert fault == f"{folder / 'run.yaml'}: the top level is a list; it must be a mapping of keys"


def test_a_file_of_another_encoding_is_refused(folder: Path) -> None:
    path = folder / "run.yaml"
    path.write_bytes("name: 한국어".encode("cp949"))

    assert faults_of(path)[0].endswith("give the path of a UTF-8 YAML file")


def test_a_byte_order_mark_and_an_empty_file_are_read(folder: Path) -> None:
    marked = folder / "marked.yaml"
    marked.write_bytes(b"\xef\xbb\xbfsteps: 4\n")

    assert load(marked, [], RootConfig).steps == 4
    assert load(written(folder, "empty.yaml", ""), [], RootConfig) == RootConfig()
    assert load(None, [], RootConfig) == RootConfig()


def test_every_fault_is_told_at_once_with_the_file_that_holds_it(folder: Path) -> None:
    base = written(folder, "base.yaml", "schedule: {peek_lr: 1}\nsteps: many\n")
    path = written(folder, "run.yaml", "extends: base.yaml\nsources: [{weight: 2}]\n")

    faults = faults_of(path, "schedule.kind=wsd", "warmup_steps=3")

    assert sorted(faults) == sorted(
        [
            f"{base}: schedule.peek_lr: unknown key; did you mean 'peak_lr'?",
            f"{base}: steps: input should be a valid integer, unable to parse string as an integer, got 'many'",
            f"{path}: sources.0.path: missing; it has no default, so the config must set it",
            "override: schedule.kind: input should be 'cosine' or 'WSD', got 'wsd'",
            "override: warmup_steps: unknown key; did you mean 'schedule.warmup_steps'?",
        ]
    )


def test_an_unknown_key_like_none_other_lists_the_keys_there(folder: Path) -> None:
    path = written(folder, "run.yaml", "schedule: {zzz: 1}\n")

    assert faults_of(path) == [
        f"{path}: schedule.zzz: unknown key; the keys here are kind, peak_lr, warmup_steps",
    ]


def test_a_misspelt_key_inside_a_list_is_recognised(folder: Path) -> None:
    path = written(folder, "run.yaml", "sources: [{path: a, wieght: 2}]\n")

    assert faults_of(path) == [f"{path}: sources.0.wieght: unknown key; did you mean 'weight'?"]


def test_a_key_is_named_as_the_yaml_spells_it(folder: Path) -> None:
    path = written(folder, "run.yaml", "form: a\n")

    assert faults_of(path) == [f"{path}: form: unknown key; did you mean 'from'?"]
    assert to_tree(load(None, ["from=folder"], RootConfig))["from"] == "folder"


def test_a_rule_over_several_keys_speaks_in_its_own_words(folder: Path) -> None:
    path = written(folder, "run.yaml", "schedule: {warmup_steps: 5}\n")

    assert faults_of(path) == [f"{path}: warmup_steps 5 exceed steps 1; shorten them"]


def test_faults_without_a_file_are_those_of_the_command_line() -> None:
    class NeedsPath(Config):
        path: str

    with pytest.raises(ConfigError, match=r"^command line: path: missing; it has no default"):
        load(None, [], NeedsPath)
    with pytest.raises(ConfigError, match=r"^manifest: path: missing"):
        validate({}, NeedsPath, where="manifest")


@pytest.mark.parametrize("override", ["steps", "=3", ".steps=3", "schedule..kind=a"])
def test_an_override_of_another_form_is_refused(override: str) -> None:
    assert faults_of(None, override) == [f"override {override!r}: not of the form key.sub=value"]


def test_every_faulty_override_is_told_at_once() -> None:
    faults = faults_of(None, "steps", "name: a", "labels={a: ]", "steps=1\nname: b")

    assert len(faults) == 4
    assert "not valid YAML" in faults[2]
    assert faults[3].endswith("sets more than one key; give each key an override of its own")


def test_an_override_reaches_into_a_list(folder: Path) -> None:
    path = written(folder, "run.yaml", "sources: [{path: a}, {path: b}]\n")

    config = load(path, ["sources.1.weight=0.5", "sources.0={path: c}"], RootConfig)

    assert config.sources == (SourceConfig(path="c"), SourceConfig(path="b", weight=0.5))
    assert "'2' is no place in a list of 2" in faults_of(path, "sources.2.weight=1")[0]
    assert "'first' is no place in a list of 2" in faults_of(path, "sources.first=1")[0]


@pytest.mark.parametrize("spelt", ["[{path: a}, b]", "[a, b]"])
def test_an_override_goes_into_a_plain_value_by_the_key_that_it_stands_for(folder: Path, spelt: str) -> None:
    path = written(folder, "run.yaml", f"inputs: {spelt}\n")

    config = load(path, ["inputs.1.weight=0.5"], WithInputs)

    assert config.inputs == (InputConfig(path="a"), InputConfig(path="b", weight=0.5))
    single = load(None, ["inputs=c", "inputs.0.weight=2"], WithInputs)
    assert single.inputs == (InputConfig(path="c", weight=2),)


@pytest.mark.parametrize(("value", "quoted"), [("2024", "2024"), ("2024-01-02", "2024-01-02"), ("true", "true")])
def test_a_text_that_yaml_reads_as_another_value_is_to_be_quoted(folder: Path, value: str, quoted: str) -> None:
    (fault,) = faults_of(written(folder, "run.yaml", f"name: {value}\n"))
    (of_override,) = faults_of(None, f"name={value}")

    assert fault.endswith(f'; quote it: "{quoted}"')
    assert of_override.endswith(f"""; quote it: name='"{quoted}"'""")
    assert load(None, [f'name="{quoted}"'], RootConfig).name == value


def test_an_override_makes_the_mappings_above_it() -> None:
    assert read_tree(None, ["a.b.c=1", "a.d="]) == {"a": {"b": {"c": 1}, "d": None}}


texts = st.text(st.characters(codec="utf-8"))
configs = st.builds(
    RootConfig.model_construct,
    name=texts,
    steps=st.integers(min_value=10),
    schedule=st.builds(
        ScheduleConfig,
        peak_lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
        warmup_steps=st.integers(max_value=9),
    ),
    sources=st.lists(st.builds(SourceConfig, path=texts, weight=st.floats(allow_nan=False))).map(tuple),
    labels=st.dictionaries(texts, st.floats(allow_nan=False)),
    base=st.none() | texts,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(config=configs)
def test_the_resolved_tree_is_read_back_equal(config: RootConfig, folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_bytes(to_yaml(config).encode())

    assert load(path, [], RootConfig) == config


@pytest.mark.parametrize("text", ["3e-4", "yes", "null", "2020-01-01", "- a", "a: b", "#", "\x85", "\r\n", "한 글\t"])
def test_text_that_looks_like_something_else_stays_text(folder: Path, text: str) -> None:
    path = folder / "config.yaml"
    path.write_bytes(to_yaml(RootConfig(name=text)).encode())

    assert load(path, [], RootConfig).name == text


def test_korean_is_written_as_it_is() -> None:
    assert "name: 두레" in to_yaml(RootConfig(name="두레"))
