"""A folder as one node's client of a network file system shows it: late, and remembering what was missing.

What other nodes make is not found by its name for `late_seconds`. A name that was asked for while it was missing stays
missing for `remember_seconds`, or until its folder is listed again: a client holds what it knows until it looks anew.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar


class NetworkPath(type(Path())):  # type: ignore[misc]  # the class of this machine's paths
    """A path of this view; those made from it are of the view too. The view is the process's: it is forked per rank."""

    late_seconds = 0.0
    remember_seconds = 60.0
    _missing: ClassVar[dict[str, float]] = {}
    _ours: ClassVar[set[str]] = set()
    _refused: ClassVar[dict[str, list[int]]] = {}

    @classmethod
    def refuse(cls, name: str, *errors: int) -> None:
        """The next reads of files called `name` end with these error numbers, one after the other."""
        cls._refused[name] = list(errors)

    def stat(self, **keys: Any) -> os.stat_result:
        self._look_up()
        self._check_refused()
        return super().stat(**keys)  # type: ignore[no-any-return]

    def open(self, mode: str = "r", *arguments: Any, **keys: Any) -> Any:
        if any(letter in mode for letter in "wax"):
            type(self)(self.parent)._look_up()
            self._ours.add(str(self))
            self._missing.pop(str(self), None)
        else:
            self._look_up()
            self._check_refused()
        return super().open(mode, *arguments, **keys)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if not parents:
            type(self)(self.parent)._look_up()
        super().mkdir(mode, parents, exist_ok)
        self._ours.add(str(self))
        self._missing.pop(str(self), None)

    def replace(self, target: Any) -> Any:
        self._ours.add(str(target))
        self._missing.pop(str(target), None)
        return super().replace(target)

    def iterdir(self) -> Iterator[Any]:
        self._look_up()
        for name in os.listdir(self):  # noqa: PTH208  (iterdir is this)
            found = self / name
            self._missing.pop(str(found), None)
            if not found._is_late():
                yield found

    def _look_up(self) -> None:
        """Raise where some part of the path is not known here yet."""
        for place in (self, *self.parents):
            name = str(place)
            is_remembered = time.monotonic() < self._missing.get(name, 0.0)
            if is_remembered or NetworkPath(name)._is_late() or not os.path.lexists(name):
                if not is_remembered:
                    self._missing[name] = time.monotonic() + self.remember_seconds
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    def _is_late(self) -> bool:
        if str(self) in self._ours or not os.path.lexists(self):
            return False
        return time.time() - os.lstat(self).st_ctime < self.late_seconds

    def _check_refused(self) -> None:
        if left := self._refused.get(self.name, []):
            number = left.pop(0)
            raise OSError(number, os.strerror(number), str(self))
