"""`dure corpus build`: inputs -> a folder of Parquet, rejects and a manifest. Composes; reads nothing itself.

Three waves: read the inputs into parts, find repeated texts over all parts, write the parts without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from data_pipeline import disk, stage
from data_pipeline.config import Config, to_tree
from data_pipeline.corpus import hub, staging
from data_pipeline.corpus.archive import ExpansionLimits
from data_pipeline.corpus.packages import check_packages
from data_pipeline.corpus.pieces import Piece, cut_files, piece_bytes
from data_pipeline.corpus.read import FileRange
from data_pipeline.corpus.records import RecordName
from data_pipeline.corpus.sources import InputConfig, InputFile, find_files, paths_as_inputs
from data_pipeline.corpus.staging import Staging
from data_pipeline.corpus.tally import Tally
from data_pipeline.stage import Manifest, StageError, Task

FORMAT_VERSION = 1  # of the code that turns equal inputs into equal bytes; one more rebuilds every corpus
STAGING = ".staging"
BUCKET_INPUT_BYTES = 256 << 20  # of compressed input; at 25 bytes a document its digests stay below 1 GB


class CorpusConfig(Config):
    """What `corpus build` reads and where it writes."""

    inputs: tuple[InputConfig, ...] = Field(min_length=1)
    output: Path
    record: RecordName = Field(
        default="document", description="what a row is: a text, or turns of questions and answers"
    )
    task_bytes: int = Field(
        default=256 << 20, gt=0, description="input bytes a task; a larger zip or JSONL file is split"
    )
    limits: ExpansionLimits = ExpansionLimits()
    min_text_share: float = Field(
        default=0.02, ge=0, le=1, description="of an AIHub package's label bytes; less is an error"
    )
    accept_thin_packages: bool = False

    @field_validator("inputs", mode="before")
    @classmethod
    def _paths_are_inputs(cls, value: Any) -> Any:
        return paths_as_inputs(value)

    @model_validator(mode="after")
    def _inputs_fit_the_record(self) -> CorpusConfig:
        faults = [fault for index, item in enumerate(self.inputs) for fault in _unfit_keys(self.record, index, item)]
        if faults:
            raise ValueError("; ".join(faults))
        return self


def _unfit_keys(record: RecordName, index: int, options: InputConfig) -> Iterator[str]:
    """The keys of an input that mean nothing to records of this kind, each with what to set instead."""
    if record == "document":
        if options.columns is not None:
            yield f"inputs.{index}.columns is for record: instruction, but record is document; set record: instruction"
        return
    for key, instead in (("text_column", "columns"), ("id_column", "columns.id")):
        if getattr(options, key) != InputConfig.model_fields[key].default:
            yield f"inputs.{index}.{key} is for documents, but record is {record}; set inputs.{index}.{instead}"
    if options.format == "text":
        yield f"inputs.{index}.format is text, which has no rows, but record is {record}; give JSON, JSONL or a table"


@dataclass(frozen=True)
class CorpusBuild:
    """The stage. Its staging folder lies in the output and is named by the hash of the inputs."""

    config: CorpusConfig

    @property
    def output(self) -> Path:
        return self.config.output

    @cached_property
    def files(self) -> list[InputFile]:
        """Every file of the inputs; raises StageError where there is none."""
        for index, options in enumerate(self.config.inputs):
            if self.output.resolve().is_relative_to(options.path.resolve()):
                raise StageError(
                    f"output: {self.output} lies inside inputs.{index}.path {options.path}; write elsewhere"
                )
        files = find_files(self.config.inputs)
        if not any(not file.skip_reason for file in files):
            named = ", ".join(str(options.path) for options in self.config.inputs)
            raise StageError(
                f"inputs: no file to read in {named} (빈 말뭉치), {len(files):,} files of other kinds; "
                "give a folder with .zip, .json, .jsonl, .csv, .tsv, .parquet, .txt or .md, or set format"
            )
        return files

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What decides the result, without a path of this machine: names, sizes, times and the config."""
        tree = to_tree(self.config)
        options = [{key: value for key, value in item.items() if key != "path"} for item in tree.pop("inputs")]
        tree.pop("output")
        files = [file.identity for file in self.files]
        return {"format_version": FORMAT_VERSION, "files": files, "options": options, "config": tree}

    @cached_property
    def inputs_sha256(self) -> str:
        return stage.fingerprint(self.inputs)

    def is_done(self) -> bool:
        return stage.is_done(self.output, kind="corpus", inputs_sha256=self.inputs_sha256)

    def plan(self) -> list[Task]:
        self._prepare()
        parts = self._parts()
        num_buckets = self._num_buckets()
        tasks = []
        for part, pieces in enumerate(parts):
            spec = {"part": part, "pieces": pieces}
            tasks.append(
                Task(f"read-{part:05d}", 0, spec, piece_bytes(self.files, pieces, task_bytes=self.config.task_bytes))
            )
        for bucket in range(num_buckets):
            spec = {"bucket": bucket, "num_parts": len(parts), "num_buckets": num_buckets}
            tasks.append(Task(f"repeats-{bucket:05d}", 1, spec))
        for part in range(len(parts)):
            tasks.append(
                Task(f"write-{part:05d}", 2, {"part": part, "num_buckets": num_buckets}, tasks[part].num_bytes)
            )
        return tasks

    def run(self, task: Task) -> None:
        kind, _, number = task.name.partition("-")
        spec, places = task.spec, self._staging
        if places.marker(kind, int(number)).is_file():
            return
        match kind:
            case "read":
                pieces = [FileRange(self.files[index], start, stop) for index, start, stop in spec["pieces"]]
                limits, record = self.config.limits, self.config.record
                staging.read_part(places, spec["part"], pieces, self.config.inputs, limits=limits, record=record)
            case "repeats":
                sizes = {"num_parts": spec["num_parts"], "num_buckets": spec["num_buckets"]}
                staging.find_repeats(places, spec["bucket"], **sizes)
            case "write":
                sizes = {"num_buckets": spec["num_buckets"]}
                staging.write_part(places, spec["part"], **sizes, record=self.config.record)

    def finish(self) -> Manifest:
        parts = range(len(self._parts()))
        self._check_all_done(len(parts))
        tally = Tally()
        for part in parts:
            tally.add(self._staging.result("read", part)["tally"])
        if not self.config.accept_thin_packages:
            names = {str(index): str(options.path) for index, options in enumerate(self.config.inputs)}
            check_packages(tally.packages, names, min_text_share=self.config.min_text_share)
        written = [self._staging.result("write", part) for part in parts]
        manifest = self._manifest(tally, written)
        disk.sync_folder(self.output)
        manifest = stage.write_manifest(self.output, manifest)
        disk.remove_tree(self.output / STAGING)
        return manifest

    def _manifest(self, tally: Tally, written: list[dict[str, Any]]) -> Manifest:
        num_records = sum(result["counts"].get("num_records", 0) for result in written)
        num_duplicates = sum(result["counts"].get("duplicate", 0) for result in written)
        tally.records.update(kept=num_records, dropped=num_duplicates)
        tally.dropped.update(duplicate=num_duplicates)
        tally.changed.update(repeated_id=sum(result["counts"].get("repeated_id", 0) for result in written))
        account = tally.to_tree()
        counts = {"kept": num_records, "dropped": account["dropped"], "rejected": account["rejected"]}
        counts |= {"passed_over": account["passed_over"], "changed": account["changed"]}
        if num_records == 0:
            raise StageError(
                f"{self.output}: not one {self.config.record} was kept (빈 말뭉치): {counts}; "
                f"see {self.output}/rejects for files, offsets and errors"
            )
        rejects = [self._staging.result("read", part)["rejects"] for part in range(len(written))]
        return {
            "kind": "corpus",
            "record": self.config.record,
            "files": [_file_entry(result) for result in written if result["file"]],
            "reject_files": [entry for entry in rejects if entry],
            "num_records": num_records,
            "num_text_bytes": sum(result["counts"].get("num_text_bytes", 0) for result in written),
            "counts": counts,
            "accounting": {key: account[key] for key in ("items", "item_bytes", "records")},
            "sources": _add_sources(written),
            "config": to_tree(self.config),
            "inputs": self.inputs["files"],
            "inputs_sha256": self.inputs_sha256,
            **({"forms": account["forms"]} if account["forms"] else {}),
            **({"hub": datasets} if (datasets := list(self._hub_datasets())) else {}),
        }

    def _hub_datasets(self) -> Iterator[dict[str, Any]]:
        """What was read from the hub, and the commit that each revision stood for."""
        commits = {file.input_index: file.commit for file in self.files}
        for index, options in enumerate(self.config.inputs):
            dataset = hub.dataset_of(options.path, where=f"inputs.{index}.path")
            if dataset is not None:
                yield {"input": index, **asdict(dataset), "commit": commits[index]}

    @property
    def _staging(self) -> Staging:
        return Staging(self.output / STAGING / self.inputs_sha256[:16], self.output)

    def _prepare(self) -> None:
        """Make the staging folder; what lies in the output from other inputs is removed, from others' work refused."""
        if self._staging.folder.is_dir():
            return
        output, root = self.output, self.output / STAGING
        names = {path.name for path in output.iterdir()} if output.is_dir() else set()
        ours = {"data", "rejects", stage.MANIFEST_NAME, stage.MANIFEST_NAME + disk.PARTIAL_SUFFIX}
        foreign = {name for name in names - ours if not name.startswith(".")}
        if foreign or (names and not {STAGING, stage.MANIFEST_NAME} & names):
            held = ", ".join(sorted(foreign or names))
            raise StageError(f"output: {output} holds {held}, which no corpus build wrote; give an empty folder")
        if stage.MANIFEST_NAME in names:
            stage.read_manifest(output, kind="corpus")  # another kind of folder is refused
        root.mkdir(parents=True, exist_ok=True)  # from here on the folder is known as ours, wherever a kill falls
        if stage.MANIFEST_NAME in names:
            (output / stage.MANIFEST_NAME).unlink()
            disk.sync_folder(output)
        for folder in (output / "data", output / "rejects", *root.iterdir()):
            if folder.is_dir():
                disk.remove_tree(folder)
        (output / "data").mkdir()
        self._staging.folder.mkdir()

    def _check_all_done(self, num_parts: int) -> None:
        numbers = {"read": num_parts, "repeats": self._num_buckets(), "write": num_parts}
        missing = [
            f"{kind}-{number:05d}"
            for kind, count in numbers.items()
            for number in range(count)
            if not self._staging.marker(kind, number).is_file()
        ]
        if missing:
            raise StageError(
                f"{self.output}: {len(missing)} tasks are not done, first {missing[0]}; run the build again"
            )

    def _num_buckets(self) -> int:
        return 1 + sum(file.num_bytes for file in self.files) // BUCKET_INPUT_BYTES

    def _parts(self) -> list[list[Piece]]:
        return cut_files(self.files, task_bytes=self.config.task_bytes)


def _file_entry(result: dict[str, Any]) -> dict[str, Any]:
    counts = result["counts"]
    return result["file"] | {key: counts[key] for key in ("num_records", "num_text_bytes")}


def _add_sources(written: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    total: dict[str, dict[str, int]] = {}
    for result in written:
        for name, counts in result["sources"].items():
            source = total.setdefault(name, {"num_records": 0, "num_text_bytes": 0})
            for key in source:
                source[key] += counts[key]
    return dict(sorted(total.items()))
