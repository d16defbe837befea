"""The decorator of every compiled kernel.

`cache=True` keeps the machine code beside the source (or below NUMBA_CACHE_DIR, or the user's cache folder), so that
ranks after the first start don't compile again. Where none of these can be written (a read-only image without a home),
numba raises when the function is decorated, which would end the program on import: there the kernel compiles anew in
each process, which costs seconds and nothing else. numba watches only the file that holds the kernel, so a
kernel never calls a kernel of another module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """`function` compiled at its first call, without the interpreter's lock."""
    try:
        kernel: Function = numba.njit(function, cache=True, nogil=True, boundscheck=False)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        kernel = numba.njit(function, nogil=True, boundscheck=False)
    return kernel
