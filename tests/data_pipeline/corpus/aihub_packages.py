"""Small packages in AIHub 653's format, sound and broken, and a plain runner of stages. Text made up here."""

from __future__ import annotations

import json
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

from data_pipeline.corpus.build import CorpusBuild, CorpusConfig
from data_pipeline.corpus.records import iterate_records
from data_pipeline.stage import Manifest


def author(number: int) -> dict[str, Any]:
    return {"birth_year": 1950 + number, "write_age": 40, "jobs": ["작가"]}


def paragraph(sentences: list[str], *, by: int = 0, number: int = 0) -> dict[str, Any]:
    texts = [
        {
            "id": f"P{number}.{at}",
            "text": text,
            "original_text": text,
            "char_count": len(text),
            "word_count": 1,
            "noise_ratio": 0.0,
        }
        for at, text in enumerate(sentences)
    ]
    info = {"kdc": "813", "class": 1, "author": author(by), "published_year": 2001}
    return {"id": f"P{number}", "info": info, "sentences": texts}


def label_json(paragraphs: list[dict[str, Any]], *, bom: bool = False) -> bytes:
    text = json.dumps({"paragraphs": paragraphs}, ensure_ascii=False).encode()
    return b"\xef\xbb\xbf" + text if bom else text


def book(*sentences: str, by: int = 0, bom: bool = False) -> bytes:
    """A label member of one paragraph."""
    return label_json([paragraph(list(sentences), by=by)], bom=bom)


class RawName(zipfile.ZipInfo):
    """An entry whose name is written as the given bytes, without the UTF-8 flag."""

    def __init__(self, raw: bytes) -> None:
        super().__init__("placeholder", date_time=(2022, 1, 1, 0, 0, 0))
        self.raw = raw

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802 (zipfile's own name)
        return self.raw, self.flag_bits & ~0x800


def write_zip(path: Path, entries: list[tuple[str | bytes, bytes]], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of (name, bytes); a name in bytes is written raw."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries:
            info = RawName(name) if isinstance(name, bytes) else zipfile.ZipInfo(name, date_time=(2022, 1, 1, 0, 0, 0))
            archive.writestr(info, data, compress_type=method)
    return path


def data_start(path: Path, name: str) -> int:
    """Where the packed bytes of a member begin."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    head = path.read_bytes()[info.header_offset : info.header_offset + 30]
    name_bytes, extra_bytes = struct.unpack("<HH", head[26:30])
    return info.header_offset + 30 + name_bytes + extra_bytes


def flip_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def set_method(path: Path, name: str, method: int) -> None:
    """Say of a member, in both of its headers, that it is packed by `method`."""
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo(name).header_offset
    data = bytearray(path.read_bytes())
    data[offset + 8 : offset + 10] = struct.pack("<H", method)
    at = data.find(b"PK\x01\x02")
    while struct.unpack("<I", data[at + 42 : at + 46])[0] != offset:
        at = data.find(b"PK\x01\x02", at + 4)
    data[at + 10 : at + 12] = struct.pack("<H", method)
    path.write_bytes(data)


def stage_of(output: Path, *inputs: Any, **options: Any) -> CorpusBuild:
    return CorpusBuild(CorpusConfig.model_validate({"inputs": list(inputs), "output": output, **options}))


def run(stage: CorpusBuild, *, shuffle: int | None = None) -> Manifest:
    """Run a stage as one process would, or its waves in any order within."""
    tasks = stage.plan()
    if shuffle is not None:
        random.Random(shuffle).shuffle(tasks)
        tasks.sort(key=lambda task: task.wave)
    for task in tasks:
        stage.run(task)
    return stage.finish()


def build(output: Path, *inputs: Any, **options: Any) -> Manifest:
    """Build from texts of a few characters, in which JSON's own bytes weigh more than in any book."""
    return run(stage_of(output, *inputs, **{"min_text_share": 0.001, **options}))


def rows(output: Path) -> list[dict[str, Any]]:
    return [row for batch in iterate_records(output) for row in batch.to_pylist()]


def texts(output: Path) -> list[str]:
    return [row["text"] for row in rows(output)]


def rejects(output: Path) -> list[dict[str, Any]]:
    lines = [line for path in sorted(output.glob("rejects/*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
