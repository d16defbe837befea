"""Rows of named columns -> records, by a table of forms: which one a row has is told by its keys, or by the config.

A `FormTable` is all that readers know of a kind of record. What its rows become is said by the function that it holds.
"""

from __future__ import annotations

import codecs
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, BinaryIO

from data_pipeline.corpus.aihub import UnknownSchemaError, select
from data_pipeline.corpus.columns import MissingColumnError, RowShape, missing_column
from data_pipeline.corpus.encoding import encoding_of
from data_pipeline.corpus.json_stream import iterate_values
from data_pipeline.corpus.mapping import Columns
from data_pipeline.corpus.records import Found, Reject
from data_pipeline.corpus.sources import InputConfig
from data_pipeline.corpus.turns import FaultyRowError

MAX_FORMS_NAMED = 12
MAX_ROOT_BYTES = 16 << 20  # of a JSON file that is one row; a larger one is none
_OPTIONAL_KEYS = ("input", "system", "id")  # of the columns: what a row may do without


@dataclass(frozen=True)
class Form:
    """One way in which rows spell a record. It fits a row that has every column but the optional ones.

    `root`: only for elements of the array under this key of a JSON file ("" = anywhere). `metadata`: name -> path.
    `expand`: makes the rows that `columns` are of out of an element that has `keys`.
    """

    name: str
    columns: Columns
    root: str = ""
    source: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    expand: Callable[[Mapping[str, Any]], Iterator[Mapping[str, Any]]] | None = None

    def fits(self, keys: Iterable[str], root: str = "") -> bool:
        """Whether a row of these keys, found under `root`, has all that the form must have."""
        names = set(keys)
        return self.root in ("", root) and all(first_key(name, names) in names for _, name in self.needed)

    @functools.cached_property
    def needed(self) -> list[tuple[str, str]]:
        """(config key, column) of what a row can't do without."""
        if self.keys:
            return [("keys", name) for name in self.keys]
        return [(key, name) for key, name in self.columns if name and key not in _OPTIONAL_KEYS]


@dataclass(frozen=True)
class FormTable:
    """The forms of one kind of record, the first that fits first, and what a row of a form becomes.

    `make`: (row, form, options, position) -> the record; raises FaultyRowError. `what`, `korean` and `columns`: for
    messages; what a row holds, and which columns of the config name it.
    """

    forms: tuple[Form, ...]
    make: Callable[[Mapping[str, Any], Form, InputConfig, int], Found]
    row: str
    what: str
    korean: str
    columns: str

    @property
    def shape(self) -> RowShape:
        return RowShape(check=self.check_columns, make=self.to_record)

    def form_of(self, keys: Iterable[str], options: InputConfig, *, root: str = "") -> Form | None:
        """The form of a row of these keys: the config's, or the first that fits; None where none does."""
        names = set(keys)
        return next((form for form in self._forms(options) if form.fits(names, root)), None)

    def check_columns(self, columns: Iterable[str], options: InputConfig) -> list[str]:
        """The columns that make records; raises MissingColumnError where no form fits, or the config's does not."""
        names = list(columns)
        mapped = [(f"columns.{key}", name) for key, name in options.columns or () if name]
        for key, name in [*mapped, *(("metadata_columns", name) for name in options.metadata_columns)]:
            if first_key(name, names) not in names:
                raise missing_column(name, key=key, columns=names)
        form = self.form_of(names, options)
        if form is None:
            raise MissingColumnError(
                f"no known form of {self.what} in the columns {', '.join(names)} ({self.korean}); "
                f"set {self.columns}, or give rows of one of {self.known_forms()}"
            )
        wanted = [name for _, name in form.columns if name] + [*form.metadata.values(), *options.metadata_columns, "id"]
        wanted += form.keys
        chosen = {key for path in wanted for key in keys_of(path, names)}
        return [name for name in names if name in chosen]

    def to_record(self, row: Mapping[str, Any], options: InputConfig, position: int, *, root: str = "") -> Found:
        """What is in `row`, or why there is nothing."""
        form = self.form_of(row, options, root=root)
        if form is None:
            return self._missing(row, options, position)
        if form.expand is not None:
            row = next(form.expand(row), {})
        return self._made(row, form, options, position)

    def _made(self, row: Mapping[str, Any], form: Form, options: InputConfig, position: int) -> Found:
        try:
            return self.make(row, form, options, position)
        except FaultyRowError as fault:
            return Reject(fault.reason, str(fault), offset=position)

    def _records(self, element: Mapping[str, Any], form: Form, options: InputConfig, position: int) -> Iterator[Found]:
        """All that is in an element of a JSON file; rows without ids of their own are told apart by their places."""
        rows = [element] if form.expand is None else form.expand(element)
        for place, row in enumerate(rows):
            named = row if form.expand is None else {"id": f"{position}-{place}", **row}
            yield self._made(named, form, options, position)

    def read_json(self, stream: BinaryIO, options: InputConfig) -> Iterator[Found]:
        """The rows of one JSON file: those of the arrays and objects under its root that hold any, or the root itself.

        Raises:
            JsonError: not JSON; what was yielded before must then be dropped.
            UnknownSchemaError: no row in it.
        """
        fitting: set[str] = set()
        unfit: dict[str, list[int]] = {}
        for key, offset, element in iterate_values(stream, encoding=encoding_of(stream, options)):
            if isinstance(element, dict) and (form := self.form_of(element, options, root=key)) is not None:
                if key not in fitting:
                    fitting.add(key)
                    yield from (_unfit(key, at) for at in unfit.pop(key, ()))
                yield from self._records(element, form, options, offset)
            elif key in fitting:
                yield _unfit(key, offset)
            else:
                unfit.setdefault(key, []).append(offset)
        if not fitting:
            yield self._root_row(stream, options, keys=list(unfit))

    def known_forms(self) -> str:
        """The keys of the first forms, for a person."""
        named = list(dict.fromkeys("/".join(name for _, name in form.needed) for form in self.forms if not form.root))
        return ", ".join(named[:MAX_FORMS_NAMED]) + (", …" if len(named) > MAX_FORMS_NAMED else "")

    def _forms(self, options: InputConfig) -> tuple[Form, ...]:
        return self.forms if options.columns is None else _form_of_config(options.columns)

    def _root_row(self, stream: BinaryIO, options: InputConfig, *, keys: list[str]) -> Found:
        """The row that a whole file is. `keys`: of its root."""
        if self.form_of(keys, options) is not None:
            stream.seek(0)
            data = stream.read(MAX_ROOT_BYTES + 1)
            if len(data) <= MAX_ROOT_BYTES:
                text = data.removeprefix(codecs.BOM_UTF8).decode(encoding_of(stream, options))
                return self.to_record(json.loads(text, strict=False), options, 0)
        found = ", ".join(map(repr, keys)) or "nothing"
        of_config = ", ".join(repr(name) for _, name in self._forms(options)[0].needed)
        wanted = self.known_forms() if options.columns is None else of_config
        raise UnknownSchemaError(
            f"the root holds {found}: no {self.row} row ({wanted}); set columns, or another record"
        )

    def _missing(self, row: Mapping[str, Any], options: InputConfig, position: int) -> Reject:
        needed = [name for _, name in self._forms(options)[0].needed] if options.columns else []
        missing = [name for name in needed if first_key(name, row) not in row]
        lacks = f"has no {' and no '.join(map(repr, missing))}" if missing else f"has no known form of {self.what}"
        return Reject("missing_column", f"the row {lacks}; its keys are {', '.join(map(str, row))}", offset=position)


@functools.lru_cache(maxsize=16)
def _form_of_config(columns: Columns) -> tuple[Form, ...]:
    return (Form("columns", columns),)


def first_key(path: str, keys: Iterable[str]) -> str:
    """The first of `keys_of`."""
    if "*" in path:
        return keys_of(path, keys)[0]
    return path if path in keys else path.partition(".")[0].rstrip("[]")


def keys_of(path: str, keys: Iterable[str]) -> list[str]:
    """The columns that `path` begins with: itself where a column is so called, and one unless there is a * in it.

    >>> keys_of("answer_*.text", ["answer_10", "answer_9", "question"])
    ['answer_9', 'answer_10']
    """
    names = list(keys)
    if path in names:
        return [path]
    head = path.partition(".")[0].rstrip("[]")
    fitting = [name for name in names if fnmatchcase(name, head)] if "*" in head else []
    return sorted(fitting, key=_by_number) or [head]


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """What stands at a column, or at a path into one; None where nothing does."""
    return row[path] if path in row else next(select(row, path), None)


def values_at(row: Mapping[str, Any], path: str) -> Any:
    """All that stands at a path with `[]` or `*` in it, as a list; at another path what `value_at` finds."""
    if path in row or not ("*" in path or "[]" in path):
        return value_at(row, path)
    if "*" not in path:
        return list(select(row, path))
    rest = path.partition(".")[2]
    held = [row.get(key) for key in keys_of(path, row)]
    return [value_at(each, rest) if rest and isinstance(each, Mapping) else each for each in held]


def _unfit(key: str, offset: int) -> Reject:
    where = f"an element of {key!r}" if key else "an element"
    return Reject("missing_column", f"{where} has not the keys of the other rows", offset=offset)
