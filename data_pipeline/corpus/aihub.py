"""AIHub's JSON -> documents, by a table: a further corpus is a row of `SCHEMAS`, not code.

A path is `key.key[].key`: `[]` stands for every element of a list; an absent key gives nothing. Elements of the array
at `root` stream one by one, the rest of a row works inside one element.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from data_pipeline.corpus.json_stream import dumps, iterate_values
from data_pipeline.corpus.records import Document, Reject
from data_pipeline.corpus.sources import InputConfig

MAX_GROUP_CHARS = 16 << 20  # of one document; a group that never ends is cut here


class UnknownSchemaError(ValueError):
    """A JSON file that no row of the table describes."""


_INFO_FILE = re.compile(r"_INFO\.json$", re.IGNORECASE)
_DOTTED_ID = re.compile(rb"(\xef\xbb\xbf)?[\w-]+(\.[\w-]+)+\t")
_SOURCE_PACKAGE = re.compile(r"원천|(^|/)(TS|VS)[_\d.][^/]*\.zip", re.IGNORECASE)


@dataclass(frozen=True)
class Schema:
    """Where one AIHub corpus keeps its text.

    `root`: key of the array under the root ("" = the root is the array). `unit`: path inside an element to what may be
    a document ("" = the element). `text`: path inside a unit; its pieces are joined by `joiner`. `group`: path whose
    equal consecutive values make one document of several units, joined by `group_joiner` ("" = never). `metadata`:
    name -> path inside a unit.
    """

    name: str
    title: str
    root: str
    text: str
    unit: str = ""
    joiner: str = "\n"
    group: str = ""
    group_joiner: str = "\n"
    metadata: dict[str, str] = field(default_factory=dict)


SCHEMAS: tuple[Schema, ...] = (
    Schema(
        name="aihub_653",
        title="대규모 구매도서 기반 한국어 말뭉치",
        root="paragraphs",
        text="sentences[].text",
        joiner=" ",
        # No title and no book id: a book ends where the author changes (notes/aihub.md).
        group="info.author",
        metadata={
            "kdc": "info.kdc",
            "class": "info.class",
            "author": "info.author",
            "published_year": "info.published_year",
        },
    ),
)


def skip_reason(path: str) -> str:
    """Why AIHub's file at `path` (folders, archive and member) holds no text of its own; "" where it may."""
    if _INFO_FILE.search(path):
        return "info_file"
    if path.lower().endswith(".tsv") and _SOURCE_PACKAGE.search(path):
        return "source_tsv"
    return ""


def is_source_tsv(stream: BinaryIO) -> bool:
    """Whether a TSV begins, without a header, with a dotted sentence id, as 653's 원천 does; leaves it at its start."""
    head = stream.read(256)
    stream.seek(0)
    return bool(_DOTTED_ID.match(head))


def read_aihub(
    stream: BinaryIO, options: InputConfig, *, schemas: Sequence[Schema] = SCHEMAS
) -> Iterator[Document | Reject]:
    """The documents of one JSON file, by the schema that its elements have, or one reject if none has.

    Raises:
        JsonError: not JSON; what was yielded before must then be dropped.
        UnknownSchemaError: JSON of no known corpus.
    """
    keys: list[str] = []
    groups = _Groups(options.aihub_unit)
    for key, offset, element in iterate_values(stream):
        if key not in keys:
            keys.append(key)
        schema = schema_of(key, element, schemas)
        if schema is not None:
            for unit in select(element, schema.unit):
                yield from groups.take(unit, schema)
        elif groups.schema is not None and key == groups.schema.root:
            yield Reject("unknown_element", f"{groups.schema.name}: no {groups.schema.text} in it", offset=offset)
    yield from groups.close()
    if groups.schema is None:
        found = ", ".join(repr(key) for key in keys) or "nothing"
        known = ", ".join(schema.name for schema in schemas)
        raise UnknownSchemaError(f"the root holds {found}: no known corpus ({known}); for rows set format: jsonl")


def schema_of(key: str, element: Any, schemas: Sequence[Schema] = SCHEMAS) -> Schema | None:
    """The first schema whose root is `key` and whose text path leads somewhere in `element`."""
    for schema in schemas:
        if schema.root == key and any(_leads(unit, schema.text) for unit in select(element, schema.unit)):
            return schema
    return None


def select(node: Any, path: str) -> Iterator[Any]:
    """Every value at `path` below `node`; none where a key is absent or a list is none.

    >>> list(select({"a": [{"b": 1}, {}, {"b": 2}]}, "a[].b"))
    [1, 2]
    """
    if not path:
        yield node
        return
    step, _, rest = path.partition(".")
    key = step.rstrip("[]")
    if key:
        if not isinstance(node, dict) or key not in node:
            return
        node = node[key]
    nodes = [node]
    for _ in range(step.count("[]")):
        nodes = [item for inner in nodes if isinstance(inner, list) for item in inner]
    for inner in nodes:
        yield from select(inner, rest)


def _leads(node: Any, path: str) -> bool:
    """Whether the keys of `path` are there as far as lists are not empty (a paragraph may have no sentence)."""
    step, _, rest = path.partition(".")
    key = step.rstrip("[]")
    if key and (not isinstance(node, dict) or key not in node):
        return False
    node = node[key] if key else node
    for _ in range(step.count("[]")):
        if not isinstance(node, list):
            return False
        if not node:
            return True
        node = node[0]
    return _leads(node, rest) if rest else True


class _Groups:
    """Joins units into documents: consecutive ones with an equal group value, all of a member, or none."""

    def __init__(self, unit: str) -> None:
        self.schema: Schema | None = None
        self._unit = unit
        self._num_documents = 0
        self._value: Any = None
        self._pieces: list[str] = []
        self._num_chars = 0
        self._metadata: dict[str, Any] = {}

    def take(self, unit: Any, schema: Schema) -> Iterator[Document]:
        self.schema = schema
        value = next(select(unit, schema.group), None) if schema.group else None
        if self._pieces and not self._continues(value, schema):
            yield from self.close()
        if not self._pieces:
            self._value = value
            self._metadata = {name: next(select(unit, path), None) for name, path in schema.metadata.items()}
        text = schema.joiner.join(piece for piece in select(unit, schema.text) if isinstance(piece, str))
        self._pieces.append(text)
        self._num_chars += len(text)

    def close(self) -> Iterator[Document]:
        if self.schema is None or not self._pieces:
            return
        text = self.schema.group_joiner.join(piece for piece in self._pieces if piece)
        position = self._num_documents
        yield Document(str(position), text, position, source=self.schema.name, metadata=self._metadata)
        self._num_documents += 1
        self._pieces, self._num_chars = [], 0

    def _continues(self, value: Any, schema: Schema) -> bool:
        if self._num_chars > MAX_GROUP_CHARS or self._unit == "paragraph":
            return False
        if self._unit == "member":
            return True
        return bool(schema.group) and dumps(value) == dumps(self._value)
