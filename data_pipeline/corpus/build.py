"""`dure corpus build`: inputs -> a folder of Parquet, rejects and a manifest. Composes; reads nothing itself.

Three waves: read the inputs into parts, find repeated texts over all parts, write the parts without them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import Field, field_validator, model_validator

from data_pipeline import disk, stage
from data_pipeline.config import Config, to_tree
from data_pipeline.corpus import hub, staging
from data_pipeline.corpus.archive import ExpansionLimits
from data_pipeline.corpus.input_keys import deciding_keys, unfit_keys
from data_pipeline.corpus.listing import Lister, Listing, list_inputs
from data_pipeline.corpus.packages import check_archives, check_packages
from data_pipeline.corpus.pieces import cut_files, read_pieces, write_pieces
from data_pipeline.corpus.read import MAX_LOST_NAMED
from data_pipeline.corpus.records import RecordName
from data_pipeline.corpus.sources import InputConfig, paths_as_inputs
from data_pipeline.corpus.staging import Staging
from data_pipeline.corpus.tally import Tally
from data_pipeline.stage import Manifest, StageError, Task

FORMAT_VERSION = 3  # of the code that turns equal inputs into equal bytes; one more rebuilds every corpus
STAGING = ".staging"
_OUR_FILES = (staging.LISTING_NAME, stage.MANIFEST_NAME)
BUCKET_INPUT_BYTES = 256 << 20  # of compressed input; at 25 bytes a document its digests stay below 1 GB


class CorpusConfig(Config):
    """What `corpus build` reads and where it writes."""

    inputs: tuple[InputConfig, ...] = Field(min_length=1)
    output: Path
    record: RecordName = Field(
        default="document",
        description="what a row is: a text, turns of questions and answers, texts with a label, texts that belong "
        "together, a better and a worse answer, an answer that was judged, or a question alone",
    )
    task_bytes: int = Field(
        default=256 << 20, gt=0, description="input bytes a task; a larger zip or JSONL file is split"
    )
    duplicates: Literal["drop", "keep"] = Field(
        default="drop", description="rows that train repeats, or that are held out too; what is held out always stays"
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
        faults = [fault for index, item in enumerate(self.inputs) for fault in unfit_keys(self.record, index, item)]
        if faults:
            raise ValueError("; ".join(faults))
        return self


@dataclass(frozen=True)
class CorpusBuild:
    """The stage. Its staging folder lies in the output and is named by the hash of the inputs.

    A finished corpus of other inputs is refused, never overwritten. No list of files is held in memory: `plan` writes
    it, and a slice of it for each task.
    """

    config: CorpusConfig

    @property
    def output(self) -> Path:
        return self.config.output

    @cached_property
    def listing(self) -> Listing:
        """Of every file of the inputs; raises StageError where there is none to read."""
        for index, options in enumerate(self.config.inputs):
            if self.output.resolve().is_relative_to(options.path.resolve()):
                raise StageError(
                    f"output: {self.output} lies inside inputs.{index}.path {options.path}; write elsewhere"
                )
        listing = list_inputs(self.config.inputs)
        if not listing.num_to_read:
            named = ", ".join(str(options.path) for options in self.config.inputs)
            raise StageError(
                f"inputs: no file to read in {named} (빈 말뭉치), {listing.num_files:,} files of other kinds; "
                "give a folder with .zip, .json, .jsonl, .csv, .tsv, .parquet, .txt or .md, or set format"
            )
        return listing

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What decides the result, without a path of this machine: the files in three figures, and the config."""
        tree = to_tree(self.config)
        options = [deciding_keys(item) for item in tree.pop("inputs")]
        tree.pop("output")
        return {"format_version": FORMAT_VERSION, "files": self.listing.identity, "options": options, "config": tree}

    @cached_property
    def inputs_sha256(self) -> str:
        return stage.fingerprint(self.inputs)

    def is_done(self) -> bool:
        return stage.is_done(self.output, kind="corpus", inputs_sha256=self.inputs_sha256)

    def plan(self) -> list[Task]:
        """Three waves of tasks, none where all is done; raises StageError where another corpus stands there."""
        if self.is_done():
            return []
        self._prepare()
        part_bytes = self._planned()["part_bytes"]
        num_parts, num_buckets = len(part_bytes), self._num_buckets()
        staging_name = self._staging.folder.name
        tasks = []
        for part, num_bytes in enumerate(part_bytes):
            tasks.append(Task(f"read-{part:05d}", 0, {"staging": staging_name, "part": part}, num_bytes))
        for bucket in range(num_buckets):
            spec = {"staging": staging_name, "bucket": bucket, "num_parts": num_parts, "num_buckets": num_buckets}
            tasks.append(Task(f"repeats-{bucket:05d}", 1, spec))
        for part, num_bytes in enumerate(part_bytes):
            spec = {"staging": staging_name, "part": part, "num_buckets": num_buckets}
            tasks.append(Task(f"write-{part:05d}", 2, spec, num_bytes))
        return tasks

    def is_task_done(self, task: Task) -> bool:
        kind, _, number = task.name.partition("-")
        return self._staging_of(task.spec["staging"]).marker(kind, int(number)).is_file()

    def run(self, task: Task) -> None:
        kind = task.name.partition("-")[0]
        spec, places = task.spec, self._staging_of(task.spec["staging"])
        if self.is_task_done(task):
            return
        match kind:
            case "read":
                pieces = read_pieces(places.pieces(spec["part"]))
                limits, record = self.config.limits, self.config.record
                staging.read_part(places, spec["part"], pieces, self.config.inputs, limits=limits, record=record)
            case "repeats":
                sizes = {"num_parts": spec["num_parts"], "num_buckets": spec["num_buckets"]}
                staging.find_repeats(places, spec["bucket"], **sizes, record=self.config.record)
            case "write":
                staging.write_part(
                    places,
                    spec["part"],
                    num_buckets=spec["num_buckets"],
                    record=self.config.record,
                    keeps_duplicates=self.config.duplicates == "keep",
                )

    def finish(self) -> Manifest:
        if self.is_done():
            self._remove_staging()
            return stage.read_manifest(self.output, kind="corpus")
        parts = range(len(self._planned()["part_bytes"]))
        self._check_all_done(len(parts))
        tally = Tally()
        for part in parts:
            tally.add(self._staging.result("read", part)["tally"])
        names = {str(index): str(options.path) for index, options in enumerate(self.config.inputs)}
        rejects = f"{self.output}/rejects"
        if not self.config.accept_thin_packages:
            share = self.config.min_text_share
            check_packages(tally.packages, names, min_text_share=share, rejects=rejects)
        written = [self._staging.result("write", part) for part in parts]
        manifest = self._manifest(tally, written)
        if not self.config.accept_thin_packages:
            check_archives(tally.packages, names, rejects=rejects)
        if self._staging.listing.exists():
            disk.rename(self._staging.listing, self.output / staging.LISTING_NAME)
        disk.sync_folder(self.output)
        manifest = stage.write_manifest(self.output, manifest)
        self._remove_staging()
        return manifest

    def _manifest(self, tally: Tally, written: list[dict[str, Any]]) -> Manifest:
        num_records = sum(result["counts"].get("num_records", 0) for result in written)

        def total(name: str) -> int:
            return sum(result["counts"].get(name, 0) for result in written)

        # The second is told only where there are any.
        repeats = {"duplicate": total("duplicate"), staging.ALSO_HELD_OUT: total(staging.ALSO_HELD_OUT)}
        repeats = {name: count for name, count in repeats.items() if count or name == "duplicate"}
        is_dropped = self.config.duplicates == "drop"
        tally.records.update(kept=num_records, dropped=sum(repeats.values()) if is_dropped else 0)
        (tally.dropped if is_dropped else tally.changed).update(repeats)
        for change in ("repeated_id", *staging.contradictions(self.config.record)):
            tally.changed.update({change: total(change)})
        if again := total(staging.AGAIN):
            tally.changed.update({staging.AGAIN: again})
        account = tally.to_tree()
        counts = {"kept": num_records, "dropped": account["dropped"], "rejected": account["rejected"]}
        counts |= {"passed_over": account["passed_over"], "changed": account["changed"]}
        if num_records == 0:
            raise StageError(
                f"{self.output}: not one {self.config.record} was kept (빈 말뭉치): {counts}; "
                f"see {self.output}/rejects for files, offsets and errors{_advice(account['passed_over'])}"
            )
        read = [self._staging.result("read", part) for part in range(len(written))]
        rejects = [result["rejects"] for result in read]
        lost = [reject for result in read for reject in result["lost"]]
        num_lost = sum(package.get("num_lost_archive", 0) for package in tally.packages.values())
        num_archives = num_lost + sum(package.get("num_archive", 0) for package in tally.packages.values())
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
            **({"heldout": _heldout_of(account, num_records=held)} if (held := total("heldout")) else {}),
            "config": to_tree(self.config),
            "encodings": account["encodings"],
            "archives": {"num_found": num_archives, "num_lost": num_lost},
            "lost": lost[:MAX_LOST_NAMED],
            "input_list": self._planned()["listing"] | {"num_files": self.listing.num_files},
            "inputs": self.inputs,
            "inputs_sha256": self.inputs_sha256,
            **({"forms": account["forms"]} if account["forms"] else {}),
            **({"hub": datasets} if (datasets := list(self._hub_datasets())) else {}),
        }

    def _hub_datasets(self) -> Iterator[dict[str, Any]]:
        """What was read from the hub, and the commit that each revision stood for."""
        commits = self.listing.commits
        for index, options in enumerate(self.config.inputs):
            dataset = hub.dataset_of(options.path, where=f"inputs.{index}.path")
            if dataset is not None:
                yield {"input": index, **asdict(dataset), "commit": commits[index]}

    @property
    def _staging(self) -> Staging:
        return self._staging_of(self.inputs_sha256[:16])

    def _staging_of(self, name: str) -> Staging:
        return Staging(self.output / STAGING / name, self.output)

    def _prepare(self) -> None:
        """Make the staging folder; unfinished work on other inputs is removed, what is finished or foreign refused."""
        output, root = self.output, self.output / STAGING
        names = {path.name for path in output.iterdir()} if output.is_dir() else set()
        if stage.MANIFEST_NAME in names:
            self._refuse_other(stage.read_manifest(output, kind="corpus"))
        if self._staging.folder.is_dir():
            return
        ours = {"data", "rejects", *(name + end for name in _OUR_FILES for end in ("", disk.PARTIAL_SUFFIX))}
        foreign = {name for name in names - ours if not name.startswith(".")}
        if foreign or (names and STAGING not in names):
            held = ", ".join(sorted(foreign or names))
            raise StageError(f"output: {output} holds {held}, which no corpus build wrote; give an empty folder")
        root.mkdir(parents=True, exist_ok=True)  # from here on the folder is known as ours, wherever a kill falls
        for folder in (output / "data", output / "rejects", *root.iterdir()):
            if folder.is_dir():
                disk.remove_tree(folder)
        (output / staging.LISTING_NAME).unlink(missing_ok=True)
        (output / "data").mkdir()
        self._staging.folder.mkdir()

    def _refuse_other(self, manifest: Manifest) -> NoReturn:
        """A finished corpus is hours of work: what differs is told, nothing is touched."""
        theirs = manifest["inputs"] if isinstance(manifest["inputs"], dict) else {"format_version": 1}
        differing = "; ".join(stage.differences(theirs, self.inputs))
        raise StageError(
            f"{self.output}: holds a corpus of other inputs ({manifest['inputs_sha256'][:12]}…, now "
            f"{self.inputs_sha256[:12]}…): {differing}; give another output folder, or remove this one"
        )

    def _planned(self) -> dict[str, Any]:
        """The sizes of the parts and the listing's file; the first call goes through the inputs and writes them."""
        places = self._staging
        if not places.plan.is_file():
            with disk.durable_file(places.listing) as file:
                lister = Lister(self.config.inputs, on_line=file.write)
                part_bytes = []
                for number, part in enumerate(cut_files(lister.files(), task_bytes=self.config.task_bytes)):
                    write_pieces(places.pieces(number), part.pieces)
                    part_bytes.append(part.num_bytes)
            if lister.listing() != self.listing:
                raise StageError(
                    f"inputs: the files changed while they were listed ({self.listing.identity}, then "
                    f"{lister.listing().identity}); start again when nothing writes there"
                )
            entry = asdict(file.record(staging.LISTING_NAME))
            disk.write_json(places.plan, {"part_bytes": part_bytes, "listing": entry})
        tree: dict[str, Any] = json.loads(places.plan.read_text(encoding="utf-8"))
        return tree

    def _remove_staging(self) -> None:
        if (self.output / STAGING).is_dir():
            disk.remove_tree(self.output / STAGING)

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
        return 1 + self.listing.num_bytes // BUCKET_INPUT_BYTES


def _heldout_of(account: dict[str, Any], *, num_records: int) -> dict[str, Any]:
    """What is never trained on: the records that were kept, and by why the files and the records that were read."""
    files = account["heldout_files"]
    reasons = {why: {"num_files": files.get(why, 0), "num_records": count} for why, count in account["heldout"].items()}
    return {"num_records": num_records, "reasons": reasons}


def _advice(passed_over: dict[str, int]) -> str:
    return "; a table that is called .txt needs its format (tsv or csv)" if "text_has_no_rows" in passed_over else ""


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
