"""AIHub's JSON -> documents, by a table: a further corpus is a row of `SCHEMAS`, not code.

A path is `key.key[].key`: `[]` stands for every element of a list; an absent key gives nothing. Elements of the array
at `root` stream one by one, the rest of a row works inside one element.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn

from data_pipeline.corpus.encoding import encoding_of
from data_pipeline.corpus.json_stream import dumps, iterate_values
from data_pipeline.corpus.records import Document, Reject
from data_pipeline.corpus.sources import InputConfig

MAX_SHOWN_CHARS = 100
MAX_GROUP_CHARS = 16 << 20  # of one document; a group that never ends is cut here


class UnknownSchemaError(ValueError):
    """A JSON file that no row of the table describes."""


class EmptyFileError(ValueError):
    """A JSON file of a known corpus with an empty list where its texts would be."""


_INFO_FILE = re.compile(r"_INFO\.json$", re.IGNORECASE)
_DOTTED_ID = re.compile(rb"[\w-]+(\.[\w-]+)+\t")
# Of lines of any text, which may well begin with the number of a chapter.
_DOTTED_NUMBER = re.compile(rb"[\w-]+(\.[\w-]+)*\.\d+[\t ,;|]")
_SOURCE_COLUMNS = 6
_LOOK_BYTES, _LOOK_LINES = 1 << 14, 4
_SOURCE_PACKAGE = re.compile(r"원천|(^|/)(TS|VS)[_\d.][^/]*\.zip", re.IGNORECASE)


@dataclass(frozen=True)
class Schema:
    """Where one AIHub corpus keeps its text.

    `root`: key of the array under the root ("" = the root is the array). `unit`: path inside an element to what may be
    a document ("" = the element). `text`: path inside a unit; its pieces are joined by `joiner`. `instead`: the key
    beside the last one of `text` where a piece without a text has it ("" = none). `group`: path whose equal consecutive
    values make one document of several units, joined by `group_joiner` ("" = never). `metadata`: name -> path inside a
    unit.
    """

    name: str
    title: str
    root: str
    text: str
    unit: str = ""
    joiner: str = "\n"
    instead: str = ""
    group: str = ""
    group_joiner: str = "\n"
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """The paths where a text may stand."""
        return [self.text, f"{self.pieces}.{self.instead}".lstrip(".")] if self.instead else [self.text]

    @property
    def pieces(self) -> str:
        """The path to what holds one piece of text under `key`."""
        return self.text.rpartition(".")[0] if self.key else self.text

    @property
    def key(self) -> str:
        """The last key of `text`; "" where the last step is a list of the pieces themselves."""
        last = self.text.rpartition(".")[2]
        return "" if last.endswith("[]") else last


SCHEMAS: tuple[Schema, ...] = (
    Schema(
        name="aihub_653",
        title="대규모 구매도서 기반 한국어 말뭉치",
        root="paragraphs",
        text="sentences[].text",
        instead="original_text",
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


def is_source_text(stream: BinaryIO, path: str, *, is_tsv: bool) -> bool:
    """Whether lines begin, without a header, with a dotted sentence id, as 653's 원천 does; leaves it at its start.

    What is not called TSV must have its columns too, or lie in a 원천데이터 package (`path`) with ids on the lines that
    follow.
    """
    head = stream.read(_LOOK_BYTES)
    stream.seek(0)
    lines = [line for line in head.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    # The last line of the look may be cut off, inside its id at worst.
    lines = lines[:_LOOK_LINES] if len(head) < _LOOK_BYTES else lines[:-1][:_LOOK_LINES] or lines
    if not lines:
        return False
    if _DOTTED_ID.match(lines[0]) and (is_tsv or lines[0].count(b"\t") == _SOURCE_COLUMNS - 1):
        return True
    return bool(_SOURCE_PACKAGE.search(path)) and all(_DOTTED_NUMBER.match(line) for line in lines)


def read_aihub(
    stream: BinaryIO, options: InputConfig, *, schemas: Sequence[Schema] = SCHEMAS
) -> Iterator[Document | Reject]:
    """The documents of one JSON file, by the schema that its elements have, or one reject if none has.

    Raises:
        JsonError: not JSON; what was yielded before must then be dropped.
        UnknownSchemaError: JSON of no known corpus.
        EmptyFileError: of a known one, without an element.
    """
    arrays: list[str] = []
    odd: dict[str, list[int]] = {}  # offsets of what has not the schema's keys, while no schema is known
    groups = _Groups(options.aihub_unit)
    for key, offset, element in iterate_values(stream, encoding=encoding_of(stream, options), on_array=arrays.append):
        schema = schema_of(key, element, schemas)
        if schema is not None:
            yield from (_unknown_element(schema, at) for at in odd.pop(key, ()))
            for unit in select(element, schema.unit):
                yield from groups.take(unit, schema, offset)
        elif groups.schema is not None and key == groups.schema.root:
            yield _unknown_element(groups.schema, offset)
        else:
            odd.setdefault(key, []).append(offset)
    yield from groups.close()
    if groups.schema is None:
        _refuse(arrays, list(odd), schemas)


def _unknown_element(schema: Schema, offset: int) -> Reject:
    return Reject("unknown_element", f"{schema.name}: no {schema.text} in it", offset=offset)


def _refuse(arrays: list[str], keys: list[str], schemas: Sequence[Schema]) -> NoReturn:
    """Raise for a file in which nothing fits a schema. `keys`: of what it holds; `arrays`: the empty ones too."""
    empty = next((schema for schema in schemas if schema.root in arrays and schema.root not in keys), None)
    if empty is not None:
        raise EmptyFileError(f"{empty.name}: {empty.root or 'the root'} is an empty list")
    found = ", ".join(map(repr, dict.fromkeys([*arrays, *keys]))) or "nothing"
    known = ", ".join(schema.name for schema in schemas)
    raise UnknownSchemaError(f"the root holds {found}: no known corpus ({known}); for rows set format: jsonl")


def schema_of(key: str, element: Any, schemas: Sequence[Schema] = SCHEMAS) -> Schema | None:
    """The first schema whose root is `key` and one of whose text paths leads somewhere in `element`."""
    for schema in schemas:
        if schema.root == key and any(
            _leads(unit, path) for unit in select(element, schema.unit) for path in schema.texts
        ):
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
    """Whether the keys of `path` are there for one element of each list at least (a paragraph may have no sentence)."""
    step, _, rest = path.partition(".")
    key = step.rstrip("[]")
    if key and (not isinstance(node, dict) or key not in node):
        return False
    nodes = [node[key] if key else node]
    for _ in range(step.count("[]")):
        lists = [inner for inner in nodes if isinstance(inner, list)]
        if not lists:
            return False
        nodes = [item for inner in lists for item in inner]
        if not nodes:
            return True
    return any(_leads(inner, rest) for inner in nodes) if rest else True


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
        self._changes: list[str] = []

    def take(self, unit: Any, schema: Schema, offset: int) -> Iterator[Document | Reject]:
        """Add a unit of the element at `offset`; gives the document that ends before it, and a reject a lost piece."""
        self.schema = schema
        value = next(select(unit, schema.group), None) if schema.group else None
        if self._pieces and not self._continues(value, schema):
            yield from self.close()
        if not self._pieces:
            self._value = value
            self._metadata = {name: next(select(unit, path), None) for name, path in schema.metadata.items()}
        texts = []
        for number, piece in enumerate(select(unit, schema.pieces)):
            text = self._text_of(piece, schema)
            if text is None:
                error = f"{schema.name}: piece {number} of {schema.pieces or schema.text} has no text: {_shown(piece)}"
                yield Reject("no_text", error, offset=offset)
            else:
                texts.append(text)
        self._pieces.append(schema.joiner.join(texts))
        self._num_chars += len(self._pieces[-1])

    def close(self) -> Iterator[Document]:
        if self.schema is None or not self._pieces:
            return
        text = self.schema.group_joiner.join(piece for piece in self._pieces if piece)
        position = self._num_documents
        yield Document(
            str(position),
            text,
            position,
            source=self.schema.name,
            metadata=self._metadata,
            changes=tuple(self._changes),
        )
        self._num_documents += 1
        self._pieces, self._num_chars, self._changes = [], 0, []

    def _text_of(self, piece: Any, schema: Schema) -> str | None:
        """The text of one piece; None where it has none, not even an empty one."""
        if not schema.key:
            return piece if isinstance(piece, str) else None
        text, instead = (piece.get(key) if isinstance(piece, dict) else None for key in (schema.key, schema.instead))
        if isinstance(text, str) and text.strip():
            return text
        if schema.instead and isinstance(instead, str) and instead.strip():
            self._changes.append(f"{schema.instead}_instead")
            return instead
        return text if isinstance(text, str) else None

    def _continues(self, value: Any, schema: Schema) -> bool:
        if self._num_chars > MAX_GROUP_CHARS or self._unit == "paragraph":
            return False
        if self._unit == "member":
            return True
        return bool(schema.group) and dumps(value) == dumps(self._value)


def _shown(piece: Any) -> str:
    text = dumps(piece)
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "…"
