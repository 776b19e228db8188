"""Files that survive `kill -9` and a full disk: write beside the target, fsync, rename.

A reader sees the old content or the new, never half of it. What a killed process leaves behind is named `.tmp-<pid>-...`,
so that `sweep` knows whose it was.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import shutil
import socket
import sys
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

TEMPORARY = ".tmp-"
_MOVED = "-was-"  # a temporary name that ends so is the old content of a folder that was being replaced
_NAME = re.compile(rf"{re.escape(TEMPORARY)}(?P<pid>\d+)-(?P<host>[0-9a-f]{{8}})-[0-9a-f]{{8}}(?:{_MOVED}(?P<name>.+))?")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(UserError):
    """There is no room to write; whatever existed before is intact."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that the disk or the quota is full; safetensors says so only in the text of its own exception."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(f"os error {code}" in str(error) for code in _FULL)


@contextmanager
def explain_full_disk(path: Path) -> Generator[None]:
    """Turn ENOSPC and EDQUOT from the body into `DiskFull` that names `path` and the free bytes."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        there = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
        free = shutil.disk_usage(there).free
        raise DiskFull(
            f"{path} was not written because the disk or your quota is full ({free} bytes free); make room and run the same "
            "command again, earlier files are intact"
        ) from error


def _host_tag() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _temporary(folder: Path, was: str = "") -> Path:
    """A free name in `folder`; `was` names the folder whose old content it is going to hold."""
    tail = f"{_MOVED}{was}" if was else ""
    return folder / f"{TEMPORARY}{os.getpid()}-{_host_tag()}-{os.urandom(4).hex()}{tail}"


def _alive(pid: int) -> bool:
    if sys.platform == "win32":  # os.kill(pid, 0) would end the process there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(path: Path) -> None:
    """Remove a file or folder; failing to is no reason to hide the error that led here."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def atomic_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step: a kill leaves the old content or the new.

    The file is synced, its folder is not: after a power cut the old name may be back, with its old content whole.

    Raises:
        DiskFull: no room; the old content is still there.
    """
    temporary = _temporary(path.parent)
    with explain_full_disk(path):
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(handle, rest) :]
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)
        except BaseException:
            _discard(temporary)
            raise


def atomic_text(path: Path, text: str) -> None:
    """Write UTF-8 text in one step; see `atomic_bytes`."""
    atomic_bytes(path, text.encode())


def plain(value: Any, where: str = "") -> Any:
    """`value` as JSON types: mappings with text keys, lists, text, numbers, booleans, None.

    Args:
        value: the value; NumPy scalars become Python numbers, tuples become lists.
        where: the dotted path of the value, for the error.

    Raises:
        UserError: a type or a key that JSON does not have.
    """
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):  # the constructor strips subclasses such as numpy.float64
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        items = cast(Mapping[Any, Any], value).items()
        bad = [key for key, _ in items if not isinstance(key, str)]
        if bad:
            raise UserError(f"the key {bad[0]!r} in {where or 'the top level'} is no text; write it in quotes")
        return {str(key): plain(item, f"{where}.{key}" if where else str(key)) for key, item in items}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(cast(list[Any], value))]
    if type(value).__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return plain(value.item(), where)
    raise UserError(f"{where or 'the value'} is {value!r} of type {type(value).__name__}; use text, numbers, lists or mappings")


def canonical_json(value: Any) -> str:
    """One text for all equal values: keys sorted, 1 and 1.0 the same number, as are 0.0 and -0.0.

    Raises:
        UserError: NaN, an infinity, or something that JSON does not have.
    """

    def canonical(item: Any, where: str) -> Any:
        if isinstance(item, dict):
            return {key: canonical(below, f"{where}.{key}") for key, below in cast(dict[str, Any], item).items()}
        if isinstance(item, list):
            return [canonical(below, where) for below in cast(list[Any], item)]
        if isinstance(item, float) and not math.isfinite(item):
            raise UserError(f"{where.lstrip('.')} is {item}; use a finite number")
        return int(item) if isinstance(item, float) and item.is_integer() else item

    return json.dumps(canonical(plain(value), ""), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in cast(dict[str, Any], value).items()}
    return [_finite(item) for item in cast(list[Any], value)] if isinstance(value, list) else value


def atomic_json(path: Path, obj: Any) -> None:
    """Write strict JSON in one step; NaN and infinities become null, as JSON has neither.

    Raises:
        DiskFull: no room; the old content is still there.
        UserError: `obj` holds what JSON does not have.
    """
    atomic_text(path, json.dumps(_finite(plain(obj)), indent=1, allow_nan=False) + "\n")


def atomic_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write a table in one step, with page checksums so that `runs verify` sees a flipped bit.

    Raises:
        DiskFull: no room; the old content is still there.
    """
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, write_page_checksum=True)
    atomic_bytes(path, buffer.getvalue())


@contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """A temporary sibling folder that becomes `path`, in place of what was there, when the body succeeds.

    The old folder is moved aside for an instant; a kill in that instant is mended by `sweep`, which moves it back.

    Yields:
        The empty temporary folder.

    Raises:
        DiskFull: the body or the writing out ran out of room; the old folder is still there.
    """
    temporary = _temporary(path.parent)
    old: Path | None = None
    with explain_full_disk(path):
        try:
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):  # delayed allocation: a full disk may show only here
                if file.is_file() and not file.is_symlink():
                    _sync(file)
            if path.is_symlink() or path.exists():
                old = _temporary(path.parent, was=path.name)
                os.rename(path, old)
            os.rename(temporary, path)
            with suppress(OSError):  # some network file systems cannot sync a folder
                _sync(path.parent)
        except BaseException:
            if old is not None and old.exists() and not path.exists():
                os.rename(old, path)
            _discard(temporary)
            raise
    if old is not None:
        _discard(old)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill on the way leaves no half folder under its name."""
    temporary = _temporary(path.parent)
    os.rename(path, temporary)
    shutil.rmtree(temporary)


def folder_bytes(path: Path) -> int:
    """Size of all files below a folder in bytes; links count as themselves."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with suppress(OSError):  # a live run replaces its files
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def sweep(folder: Path, everything: bool = False) -> int:
    """Remove what dead processes of this host left in `folder`, and put back a folder whose replacement was cut short.

    Args:
        folder: where to look, not below; it need not exist.
        everything: also what other hosts and recycled process ids seem to own; for a caller that holds the folder's lock.

    Returns:
        How many leftovers there were.
    """
    swept = 0
    for path in sorted(folder.glob(f"{TEMPORARY}*")) if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        if not everything and (match["host"] != _host_tag() or _alive(int(match["pid"]))):
            continue
        target = folder / match["name"] if match["name"] else None
        if target is not None and not target.exists():
            os.rename(path, target)
        else:
            _discard(path)
        swept += 1
    return swept


def safetensors_problem(path: Path) -> str | None:
    """What is wrong with a safetensors file, from its header and size alone, or None; no tensor is read.

    The format: 8 bytes of header length, a JSON header with each tensor's byte range, then the bytes without gaps.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            return f"truncated: {size} bytes, its header alone needs {length + 8}"
        raw = file.read(length)
    try:
        header = cast(dict[str, Any], json.loads(raw))
        spans = sorted(tuple(map(int, item["data_offsets"])) for name, item in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its header is not readable ({type(error).__name__})"
    end = 0
    for first, last in spans:
        if first != end or last < first:
            return "corrupt: the byte ranges of its tensors overlap or leave gaps"
        end = last
    if 8 + length + end != size:
        return f"{'truncated' if size < 8 + length + end else 'corrupt'}: {size} bytes, its header announces {8 + length + end}"
    return None
