"""Zip archives read in place: names decoded, members opened one at a time, expansion bounded, nothing unpacked.

AIHub's names are CP949 or UTF-8 without the flag that says so; aihubshell leaves archives in parts.
"""

from __future__ import annotations

import bisect
import contextlib
import gzip
import io
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipInfo

from data_pipeline.config import Config

IN_MEMORY_BYTES = 64 << 20  # a smaller member is held whole; a larger one is read once for its checksum and again
_ALWAYS_ALLOWED_BYTES = 16 << 20  # below this no ratio is a danger
_UTF8_FLAG = 0x800
_ENCRYPTED_FLAG = 0x1
_DEFLATE64 = 9
_READABLE_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}


class ExpansionLimits(Config):
    """How far compressed input may expand: what guards against a zip bomb."""

    max_member_bytes: int = 16 << 30
    max_compress_ratio: float = 200.0  # Korean JSON reaches 5 to 20; deflate's own limit is 1,032


class ArchiveError(Exception):
    """An archive or a member that can't be read. `reason` is counted, `offset` is in bytes where known."""

    def __init__(self, reason: str, message: str, *, offset: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.offset = offset


@dataclass(frozen=True)
class Member:
    """One entry: its name as a person knows it (NFC, `/`, none at the front), and where zipfile finds it."""

    name: str
    info: ZipInfo


@contextlib.contextmanager
def open_archive(paths: Sequence[Path]) -> Iterator[zipfile.ZipFile]:
    """The archive in one file, or in parts that follow each other; raises ArchiveError."""
    with paths[0].open("rb") if len(paths) == 1 else io.BufferedReader(JoinedFile(paths)) as stream:
        try:
            archive = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, OSError, ValueError) as error:
            raise _not_an_archive(stream, error) from None
        with archive:
            yield archive


def _not_an_archive(stream: BinaryIO, error: Exception) -> ArchiveError:
    stream.seek(0)
    if stream.read(512).lstrip().startswith(b"<"):
        message = (
            "an HTML page, not a zip: the download was refused (신청 전이거나 기간 만료); apply and download again"
        )
        return ArchiveError("html_answer", message)
    return ArchiveError("broken_archive", f"{error} (압축 파일 손상); download the archive again")


def members(archive: zipfile.ZipFile) -> list[Member]:
    """All entries, folders too, in the archive's order."""
    return [Member(member_name(info), info) for info in archive.infolist()]


def member_name(info: ZipInfo) -> str:
    """The entry's name: UTF-8 where the bytes are UTF-8, else CP949; NFC, without a leading slash."""
    name = info.orig_filename
    if not info.flag_bits & _UTF8_FLAG:
        name = _decode_name(name.encode("cp437"))  # what zipfile decoded it from
    return unicodedata.normalize("NFC", name.replace("\\", "/").lstrip("/"))


def _decode_name(raw: bytes) -> str:
    cp949 = raw.decode("cp949", errors="replace")
    try:
        utf8 = raw.decode("utf-8")
    except UnicodeDecodeError:
        return cp949
    # "책" in CP949 is also "å" in UTF-8. Hangul takes 3 bytes in UTF-8; 2-byte letters alone are CP949 misread.
    is_misread = max(utf8, default="") < "\u0800" and not utf8.isascii() and "\ufffd" not in cp949
    return cp949 if is_misread else utf8


def open_member(archive: zipfile.ZipFile, member: Member, limits: ExpansionLimits) -> BinaryIO:
    """A seekable stream of the member's bytes, their checksum already checked; raises ArchiveError."""
    _check_readable(member.info, limits)
    info = member.info
    try:
        if info.file_size <= IN_MEMORY_BYTES:
            return io.BytesIO(archive.read(info))
        with archive.open(info) as stream:
            while stream.read(1 << 20):
                continue
        return archive.open(info)  # type: ignore[return-value]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        message = f"{type(error).__name__}: {error}; download the archive again"
        raise ArchiveError("broken_member", message, offset=info.header_offset) from None


def _check_readable(info: ZipInfo, limits: ExpansionLimits) -> None:
    where = info.header_offset
    if info.compress_type == _DEFLATE64:
        message = "packed by Deflate64 (method 9), which Python can't read; unpack this zip with 7z and give the folder"
        raise ArchiveError("deflate64", message, offset=where)
    if info.compress_type not in _READABLE_METHODS:
        message = f"compression method {info.compress_type} can't be read; unpack this zip with 7z and give the folder"
        raise ArchiveError("unknown_compression", message, offset=where)
    if info.flag_bits & _ENCRYPTED_FLAG:
        raise ArchiveError("encrypted", "encrypted; unpack it with its password and give the folder", offset=where)
    if info.file_size > limits.max_member_bytes:
        message = f"{info.file_size:,} bytes, limits.max_member_bytes is {limits.max_member_bytes:,}"
        raise ArchiveError("too_large", message, offset=where)
    ratio = info.file_size / max(info.compress_size, 1)
    if info.file_size > _ALWAYS_ALLOWED_BYTES and ratio > limits.max_compress_ratio:
        message = f"expands {ratio:.0f} times, limits.max_compress_ratio is {limits.max_compress_ratio:g}"
        raise ArchiveError("compress_ratio", message, offset=where)


class JoinedFile(io.RawIOBase):
    """Files that follow each other, read as one; the parts stay where they are."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [path.open("rb", buffering=0) for path in paths]
        self._starts = [0]
        for path in paths:
            self._starts.append(self._starts[-1] + path.stat().st_size)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}[whence]
        if base + offset < 0:
            raise OSError(f"seek to {base + offset}, before the start")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if self._position >= self._starts[-1]:
            return 0
        index = bisect.bisect_right(self._starts, self._position) - 1
        file = self._files[index]
        file.seek(self._position - self._starts[index])
        num_read = file.readinto(memoryview(buffer)[: self._starts[index + 1] - self._position]) or 0
        self._position += num_read
        return num_read

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


class BoundedFile(io.RawIOBase):
    """A decompressed stream that raises ArchiveError once it gives more than its compressed size allows."""

    def __init__(self, stream: gzip.GzipFile, *, compressed_bytes: int, limits: ExpansionLimits) -> None:
        self._stream = stream
        by_ratio = max(_ALWAYS_ALLOWED_BYTES, int(limits.max_compress_ratio * compressed_bytes))
        self._max_bytes = min(limits.max_member_bytes, by_ratio)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        # Not read(): of a broken stream it gives nothing, read1() gives what stands before the fault.
        data = self._stream.read1(len(buffer))
        buffer[: len(data)] = data
        if self._stream.tell() > self._max_bytes:
            raise ArchiveError(
                "compress_ratio", f"expands to more than {self._max_bytes:,} bytes; raise limits if meant"
            )
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def iterate_range(found: Sequence[Member], start: int, stop: int) -> Iterator[Member]:
    """Entries [start, stop) of an archive; a stop of -1 is its end."""
    yield from found[start : len(found) if stop < 0 else stop]
