# ruff: noqa: PT012 - what happens inside a context manager when its body fails is the subject here
from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from workbench import files
from workbench.errors import UserError
from workbench.files import DiskFull, atomic_folder, atomic_json, atomic_parquet, atomic_text, safetensors_problem, sweep


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".tmp-")]


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def full_disk(monkeypatch):
    """After a few bytes os.write takes no more, as on a full disk."""
    real = os.write

    def write(handle, data):
        if len(data) > 10:
            return real(handle, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)


def test_text_and_json_round_trip(tmp_path):
    atomic_text(tmp_path / "a", "größer\n")
    assert (tmp_path / "a").read_text() == "größer\n"
    atomic_json(tmp_path / "b", {"x": np.float32(0.5), "n": np.int64(3), "nan": float("nan"), "t": (True, None)})
    assert json.loads((tmp_path / "b").read_text()) == {"x": 0.5, "n": 3, "nan": None, "t": [True, None]}
    assert leftovers(tmp_path) == []


def test_json_refuses_what_it_cannot_hold(tmp_path):
    with pytest.raises(UserError, match=r"a\.b\[1\] is .*type set"):
        atomic_json(tmp_path / "x", {"a": {"b": [0, {1}]}})
    with pytest.raises(UserError, match="True in a is no text"):  # YAML's `on:`
        atomic_json(tmp_path / "x", {"a": {True: 1}})
    assert list(tmp_path.iterdir()) == []


def test_parquet_round_trip_and_a_flipped_bit_is_seen(tmp_path):
    import pyarrow.parquet as parquet

    frame = pd.DataFrame({"step": np.arange(1000), "value": np.random.default_rng(0).random(1000)})
    path = tmp_path / "t.parquet"
    atomic_parquet(path, frame)
    pd.testing.assert_frame_equal(pd.read_parquet(path), frame)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        parquet.read_table(path, page_checksum_verification=True)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, code):
    path = tmp_path / "status.json"
    atomic_text(path, "old")

    def refuse(handle, data):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(DiskFull, match=r"status\.json.* \(\d+ bytes free\)") as caught:
        atomic_text(path, "new")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_short_writes_are_completed_and_cut_ones_discarded(tmp_path, full_disk):
    with pytest.raises(DiskFull):
        atomic_text(tmp_path / "a", "x" * 35)
    assert list(tmp_path.iterdir()) == []


def test_the_rename_is_the_only_moment_of_change_and_follows_the_sync(tmp_path, monkeypatch):
    path = tmp_path / "a"
    atomic_text(path, "old")
    seen: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(f"sync {path.read_text()}"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(f"replace {path.read_text()}"), replace(a, b)))
    atomic_text(path, "new")
    assert seen == ["sync old", "replace old"]
    assert path.read_text() == "new"


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic_text(tmp_path / "none" / "a", "x")


def test_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "step-5"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
        assert folder.name.startswith(f".tmp-{os.getpid()}-")
    assert (target / "a").read_text() == "1"
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "a").write_text("2")
        raise RuntimeError
    assert (target / "a").read_text() == "1"
    with atomic_folder(target) as folder:
        (folder / "b").write_text("3")
    assert [p.name for p in target.iterdir()] == ["b"]
    assert leftovers(tmp_path) == []


def test_folder_survives_a_failing_rename(tmp_path, monkeypatch):
    target = tmp_path / "step-5"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
    real = os.rename
    calls: list[Path] = []

    def rename(a, b):
        calls.append(a)
        if len(calls) == 2:  # the old folder has moved aside, the new one cannot take its place
            raise OSError(errno.ENOSPC, "No space left on device")
        real(a, b)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(DiskFull), atomic_folder(target) as folder:
        (folder / "a").write_text("2")
    assert (target / "a").read_text() == "1"
    assert leftovers(tmp_path) == []


def test_full_disk_as_safetensors_words_it(tmp_path):
    class SafetensorError(Exception):
        pass

    with pytest.raises(DiskFull, match="step-1"), atomic_folder(tmp_path / "step-1"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert list(tmp_path.iterdir()) == []


def test_real_full_file_system(tmp_path):
    """A tiny tmpfs, where the machine lets us mount one."""
    place = tmp_path / "tiny"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        with atomic_folder(place / "step-1") as folder:
            save_file({"w": np.zeros(2000, np.float32)}, folder / "model.safetensors")
        atomic_text(place / "status.json", "old")
        with pytest.raises(DiskFull, match="bytes free"), atomic_folder(place / "step-1") as folder:
            save_file({"w": np.ones(50_000, np.float32)}, folder / "model.safetensors")
        with pytest.raises(DiskFull):
            atomic_text(place / "status.json", "x" * 100_000)
        assert (place / "status.json").read_text() == "old"
        assert safetensors_problem(place / "step-1" / "model.safetensors") is None
        assert leftovers(place) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_sweep_takes_the_dead_and_leaves_the_living(tmp_path):
    tag = files._host_tag()
    dead = tmp_path / f".tmp-{dead_pid()}-{tag}-00000000"
    dead.mkdir()
    (dead / "x").write_text("x")
    living = tmp_path / f".tmp-{os.getpid()}-{tag}-00000000"
    elsewhere = tmp_path / f".tmp-{dead_pid()}-{'0' * 8}-00000000"
    other = tmp_path / ".tmp-notes"
    for path in (living, elsewhere, other):
        path.write_text("x")
    assert sweep(tmp_path) == 1
    assert sorted(tmp_path.iterdir()) == sorted([living, elsewhere, other])
    assert sweep(tmp_path, everything=True) == 2
    assert list(tmp_path.iterdir()) == [other]
    assert sweep(tmp_path / "none") == 0


def test_sweep_puts_back_a_folder_whose_replacement_was_cut_short(tmp_path):
    stem = f".tmp-{dead_pid()}-{files._host_tag()}-0000000"
    for number in (1, 2):
        old = tmp_path / f"{stem}{number}-was-step-{number}"
        old.mkdir()
        (old / "a").write_text("old")
    (tmp_path / "step-2").mkdir()
    sweep(tmp_path)
    assert (tmp_path / "step-1" / "a").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1", "step-2"]
    assert list((tmp_path / "step-2").iterdir()) == []


KILLED = """
import sys
from pathlib import Path
from workbench.files import atomic_folder, atomic_text
place = Path(sys.argv[1])
print("ready", flush=True)
while True:
    for letter in "ab":
        atomic_text(place / "text", letter * 20_000)
        with atomic_folder(place / "folder") as folder:
            for part in range(3):
                (folder / str(part)).write_text(letter * 20_000)
"""


def test_kill_9_in_the_middle_of_writes(tmp_path):
    for wait in (0.03, 0.071, 0.113):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout:
            process.stdout.readline()
            deadline = time.monotonic() + 20
            while not ((tmp_path / "text").exists() and (tmp_path / "folder").exists()) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            process.wait()
        sweep(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "text"]
        assert (tmp_path / "text").read_text() in ("a" * 20_000, "b" * 20_000)
        parts = [p.read_text() for p in sorted((tmp_path / "folder").iterdir())]
        assert parts in (["a" * 20_000] * 3, ["b" * 20_000] * 3)


def weights(path: Path) -> Path:
    save_file({"a": np.arange(12, dtype=np.float32), "b": np.zeros((2, 3), np.float16)}, path)
    return path


@given(cut=st.integers(0, 1000))
def test_every_truncation_of_safetensors_is_seen(tmp_path_factory, cut):
    path = weights(tmp_path_factory.mktemp("st") / "m.safetensors")
    data = path.read_bytes()
    assert safetensors_problem(path) is None
    path.write_bytes(data[: cut % len(data)])
    assert safetensors_problem(path) is not None


def test_corrupt_safetensors(tmp_path):
    path = weights(tmp_path / "m.safetensors")
    data = path.read_bytes()
    path.write_bytes(data + b"\0")
    assert "corrupt" in (safetensors_problem(path) or "")
    path.write_bytes(data[:8] + b"[" + data[9:])
    assert "not readable" in (safetensors_problem(path) or "")
    path.write_bytes(struct.pack("<Q", 2**63) + data[8:])
    assert "truncated" in (safetensors_problem(path) or "")
    header = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    assert "gaps" in (safetensors_problem(path) or "")
