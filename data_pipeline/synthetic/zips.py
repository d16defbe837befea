"""Documents written as AIHub ships dataset 653: a tree of zips, with the oddities that real downloads have.

Per split and KDC group there is a label zip (one JSON member a document, and an INFO member without text) and a source
zip (a headerless TSV of six columns). Member names are CP949 without the UTF-8 flag, flagged UTF-8, or bare UTF-8;
every fifth member starts with a BOM. Equal configs give equal bytes.
"""

from __future__ import annotations

import io
import json
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_pipeline import disk
from data_pipeline.disk import FileRecord
from data_pipeline.synthetic.config import SyntheticConfig
from data_pipeline.synthetic.documents import Document, document
from data_pipeline.synthetic.facts import Split

DATASET_FOLDER = "653.대규모 구매도서 기반 한국어 말뭉치 데이터"
_SPLIT_FOLDERS: dict[Split, str] = {"train": "1.Training", "heldout": "2.Validation"}
_ZIP_PREFIXES: dict[Split, tuple[str, str]] = {"train": ("TL", "TS"), "heldout": ("VL", "VS")}
_TIMESTAMP = (2022, 12, 1, 0, 0, 0)
_BOM = "\ufeff"
_BOM_EVERY = 5
_COMPRESS_LEVEL = 1  # zlib's fastest: the text is read once or twice and thrown away
_CREATED_ON_WINDOWS = 0
_UTF8_FLAG = 0x800

NameEncoding = Callable[[str], tuple[bytes, int]]


@dataclass(frozen=True)
class Made653:
    """What was written below `folder`. Counts are of sound documents, planted duplicates and NFD ones included."""

    folder: Path
    files: tuple[FileRecord, ...]
    num_documents: int
    num_heldout_documents: int
    num_characters: int


@dataclass(frozen=True)
class _Group:
    """A KDC group, and how its zips spell member names."""

    kdc: str
    number: int
    name: str
    encode: NameEncoding


_GROUPS = (
    _Group("810", 8, "한국문학", lambda name: (name.encode("cp949"), 0)),
    _Group("330", 3, "사회학", lambda name: (name.encode(), _UTF8_FLAG)),
    _Group("590", 5, "생활과학", lambda name: (name.encode(), 0)),
)


@dataclass(frozen=True)
class _Book:
    """A document on its way into a zip: its member number, its text, and whether it is written in NFD."""

    number: int
    document: Document
    is_nfd: bool = False


class _Member(zipfile.ZipInfo):
    """A member whose name is written as its group spells it; zipfile itself knows ASCII and flagged UTF-8 only."""

    def __init__(self, name: str, encode: NameEncoding) -> None:
        super().__init__(name, _TIMESTAMP)
        self.create_system = _CREATED_ON_WINDOWS
        self.compress_type = zipfile.ZIP_DEFLATED
        self._encode = encode

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802
        name, flag = self._encode(self.filename)
        return name, self.flag_bits | flag


def make_653(config: SyntheticConfig, output: Path) -> Made653:
    """Write the tree of dataset 653 below `output`; files that stood there under the same names are replaced."""
    folder = output / DATASET_FOLDER
    files: list[FileRecord] = []
    counts: dict[Split, int] = {}
    num_characters = 0
    for split in _SPLIT_FOLDERS:
        books = list(_books(config, split))
        counts[split] = len(books)
        num_characters += sum(len(book.document.text) for book in books)
        for place, group in enumerate(_GROUPS):
            members = list(_label_members(books[place :: len(_GROUPS)], group))
            if split == "train" and place == 0:
                members += _spoiled_members(config, group)
            files += _write_group(folder, split, group, members, books[place :: len(_GROUPS)])
    return Made653(folder, tuple(files), counts["train"], counts["heldout"], num_characters)


def _books(config: SyntheticConfig, split: Split) -> Iterator[_Book]:
    """The documents of a split; the planted ones come last, so that they move none of the others."""
    if split == "heldout":
        yield from (_Book(i, document(config, split=split, index=i)) for i in range(config.num_heldout_documents))
        return
    count, faults = config.num_documents, config.faults
    yield from (_Book(index, document(config, split=split, index=index)) for index in range(count))
    for extra in range(faults.num_duplicate_documents):
        yield _Book(count + extra, document(config, split=split, index=extra % count))
    for extra in range(faults.num_nfd_documents):
        number = count + faults.num_duplicate_documents + extra
        yield _Book(number, document(config, split=split, index=count + extra), is_nfd=True)


def _write_group(
    folder: Path, split: Split, group: _Group, members: Iterable[tuple[str, bytes]], books: list[_Book]
) -> Iterator[FileRecord]:
    labels, sources = _ZIP_PREFIXES[split]
    data = folder / "01.데이터" / _SPLIT_FOLDERS[split]
    rows = "".join(row for book in books for row in _source_rows(book, group))
    yield _write_zip(data / "라벨링데이터" / f"{labels}_{group.kdc}.zip", members, group)
    yield _write_zip(data / "원천데이터" / f"{sources}_{group.kdc}.zip", [(f"{group.name}.tsv", rows.encode())], group)


def _write_zip(path: Path, members: Iterable[tuple[str, bytes]], group: _Group) -> FileRecord:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members:
            archive.writestr(_Member(name, group.encode), data, compresslevel=_COMPRESS_LEVEL)
    path.parent.mkdir(parents=True, exist_ok=True)
    return disk.write_bytes(path, buffer.getvalue())


def _label_members(books: list[_Book], group: _Group) -> Iterator[tuple[str, bytes]]:
    info = {"name": group.name, "kdc": group.kdc, "books": len(books)}
    yield f"{group.name}_INFO.json", _json_bytes(info)
    for book in books:
        bom = _BOM if book.number % _BOM_EVERY == 0 else ""
        yield f"{group.name}_{book.number:07d}.json", bom.encode() + _json_bytes(_book_tree(book, group))


def _spoiled_members(config: SyntheticConfig, group: _Group) -> Iterator[tuple[str, bytes]]:
    """Members that hold no document: JSON that ends in the middle of a text, and members of no bytes."""
    for number in range(config.faults.num_broken_members):
        whole = _json_bytes(_book_tree(_Book(number, document(config, split="train", index=number)), group))
        yield f"{group.name}_깨진파일_{number:03d}.json", whole[: len(whole) // 2]
    for number in range(config.faults.num_empty_members):
        yield f"{group.name}_빈파일_{number:03d}.json", b""


def _json_bytes(tree: Any) -> bytes:
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()


def _book_tree(book: _Book, group: _Group) -> dict[str, Any]:
    """The member of one document: the published schema, the same author in each of its paragraphs."""
    info = _info(book, group)
    return {
        "paragraphs": [
            {"id": _dotted(group, book, place), "info": info, "sentences": _sentences(book, group, place)}
            for place in range(len(book.document.paragraphs))
        ]
    }


def _info(book: _Book, group: _Group) -> dict[str, Any]:
    # Birth years step by 7 in a cycle of 50, so neighbouring books in a zip never share their author.
    birth_year = 1940 + book.number * 7 % 50
    age = 30 + book.number % 25
    author = {"birth_year": birth_year, "write_age": age, "jobs": ["작가", "교사"][: 1 + book.number % 2]}
    return {"kdc": group.kdc, "class": group.number, "author": author, "published_year": birth_year + age}


def _sentences(book: _Book, group: _Group, place: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{_dotted(group, book, place)}.{number:03d}",
            "text": text,
            "original_text": text,
            "char_count": len(text),
            "word_count": len(text.split()),
            "noise_ratio": 0.0,
        }
        for number, text in enumerate(_texts(book, place))
    ]


def _source_rows(book: _Book, group: _Group) -> Iterator[str]:
    for place in range(len(book.document.paragraphs)):
        for number, text in enumerate(_texts(book, place)):
            sentence_id = f"{_dotted(group, book, place)}.{number:03d}"
            year = _info(book, group)["published_year"]
            yield f"{sentence_id}\t{text}\t{len(text)}\t{len(text.split())}\t0.0\t{year}\n"


def _texts(book: _Book, place: int) -> list[str]:
    form: Literal["NFC", "NFD"] = "NFD" if book.is_nfd else "NFC"
    return [unicodedata.normalize(form, text) for text in book.document.paragraphs[place]]


def _dotted(group: _Group, book: _Book, place: int) -> str:
    return f"{group.kdc}.{book.number:07d}.{place:03d}"
