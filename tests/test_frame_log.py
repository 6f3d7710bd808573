"""The log of entries: torn or damaged anywhere, it gives back what was written whole."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from common.errors import StorageError
from server.frame_log import FrameLog

ENTRIES = [({"kind": "a", "n": n}, bytes(range(n * 7))) for n in range(4)]


def written_log(path: Path) -> list[int]:
    """Write ENTRIES; the file's length after each."""
    log = FrameLog.create(path, ENTRIES[0][0])
    ends = [path.stat().st_size]
    for entry, payload in ENTRIES[1:]:
        log.append(entry, payload)
        log.sync()
        ends.append(path.stat().st_size)
    log.close()
    return ends


def test_log_torn_at_every_byte(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ends = written_log(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    path = tmp_path / "torn"
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        kept = sum(end <= length for end in ends)
        if kept == 0:
            # The first entry comes with the file or not at all.
            with pytest.raises(StorageError, match="damaged"):
                FrameLog.open(path)
            continue
        caplog.clear()
        log, entries = FrameLog.open(path)
        assert [entry for entry, _ in entries] == [entry for entry, _ in ENTRIES[:kept]]
        assert [payload for _, payload in entries[1:]] == [p for _, p in ENTRIES[1:kept]]
        assert bool(caplog.records) == (length not in ends), "a cut is said, and only a cut"
        log.append({"kind": "after"}, b"more")
        log.sync()
        log.close()
        log, entries = FrameLog.open(path)
        log.close()
        assert len(entries) == kept + 1 and entries[-1] == ({"kind": "after"}, b"more")


def test_log_damaged_at_every_byte(tmp_path: Path) -> None:
    ends = written_log(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    path = tmp_path / "damaged"
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        if at < ends[-2]:
            with pytest.raises(StorageError, match="damaged"):
                FrameLog.open(path)
        else:
            # Nothing tells a damaged last entry from one that was never written whole.
            log, entries = FrameLog.open(path)
            log.close()
            assert len(entries) == len(ENTRIES) - 1


def test_a_payload_cannot_pose_as_an_entry(tmp_path: Path) -> None:
    written_log(tmp_path / "other")
    log = FrameLog.create(tmp_path / "log", {"kind": "first"})
    log.append({"kind": "update"}, (tmp_path / "other").read_bytes())
    log.sync()
    log.close()
    data = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(data[:-1])
    log, entries = FrameLog.open(tmp_path / "log")
    log.close()
    assert len(entries) == 1


def test_one_sync_writes_and_flushes_all_that_was_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = FrameLog.create(tmp_path / "log", ENTRIES[0][0])
    flushed: list[int] = []
    monkeypatch.setattr("os.fsync", flushed.append)
    size = (tmp_path / "log").stat().st_size
    for entry, payload in ENTRIES[1:]:
        log.append(entry, payload)
    assert (tmp_path / "log").stat().st_size == size and not flushed
    log.sync()
    log.sync()
    assert len(flushed) == 1, "nothing new, nothing to flush"
    log.append({"kind": "never synced"})
    log.close()
    log, entries = FrameLog.open(tmp_path / "log")
    log.close()
    assert [entry for entry, _ in entries] == [entry for entry, _ in ENTRIES]


def test_a_full_disk_is_told_once_and_leaves_a_log_that_opens(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = FrameLog.create(path, ENTRIES[0][0])
    # No file of this process may grow beyond the limit, as if the disk were full there.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log.append(*ENTRIES[1])
    log.sync()
    log.append({"kind": "too long"}, bytes(10_000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            log.sync()
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log, entries = FrameLog.open(path)
    log.close()
    assert len(entries) == 2


def test_an_open_log_is_read_back(tmp_path: Path) -> None:
    log = FrameLog.create(tmp_path / "log", ENTRIES[0][0])
    for entry, payload in ENTRIES[1:]:
        log.append(entry, payload)
    assert log.read_back()[1:] == ENTRIES[1:], "also what nobody has synced yet"
    log.append({"kind": "after"})
    assert log.read_back()[-1] == ({"kind": "after"}, b"")
    data = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(data[:-1])
    with pytest.raises(StorageError, match="damaged at byte"):
        log.read_back()
    log.close()
