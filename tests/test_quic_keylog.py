"""Key logs."""

from __future__ import annotations

import gc
import logging
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from trio_wt._quic.keylog import open_keylog


def test_no_path() -> None:
    assert open_keylog(None) is None


def test_lines_are_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    keylog = open_keylog(path)
    assert keylog is not None
    assert keylog.writable()
    assert path.read_bytes() == b""
    keylog.write("CLIENT_TRAFFIC_SECRET_0 00 11\n")
    assert path.read_bytes() == b"CLIENT_TRAFFIC_SECRET_0 00 11\n"
    keylog.flush()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    before = os.umask(0)
    try:
        open_keylog(str(path))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("old\n")
    logs = [open_keylog(path), open_keylog(str(path))]
    for number in range(4):
        log = logs[number % 2]
        assert log is not None
        log.write(f"{number}\n")
    assert path.read_text() == "old\n0\n1\n2\n3\n"


def test_threads_share_it(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    line = "x" * 100 + "\n"

    def write() -> None:
        keylog = open_keylog(path)
        assert keylog is not None
        for _ in range(50):
            keylog.write(line)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() == line * 200


def test_nothing_is_left_open(tmp_path: Path) -> None:
    """Not a descriptor, and no ResourceWarning, which would be an error here."""
    keylog = open_keylog(tmp_path / "keys")
    assert keylog is not None
    keylog.write("a\n")
    del keylog
    gc.collect()


def test_it_survives_rotation(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    keylog = open_keylog(path)
    assert keylog is not None
    keylog.write("before\n")
    path.rename(tmp_path / "old")
    keylog.write("after\n")
    assert path.read_text() == "after\n"


def test_it_is_the_same_file_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keylog = open_keylog("keys")
    assert keylog is not None
    (tmp_path / "below").mkdir()
    monkeypatch.chdir("below")
    keylog.write("a\n")
    assert (tmp_path / "keys").read_text() == "a\n"


def test_a_path_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_keylog(tmp_path / "nowhere" / "keys")
    with pytest.raises(OSError, match=tmp_path.name):
        open_keylog(tmp_path)


def test_a_write_that_fails_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    keylog = open_keylog(directory / "keys")
    assert keylog is not None
    (directory / "keys").unlink()
    directory.rmdir()
    with caplog.at_level(logging.WARNING, "trio_wt.quic"):
        for _ in range(3):
            keylog.write("secret\n")
            keylog.flush()
    assert len(caplog.records) == 1
    assert "cannot write to the key log" in caplog.text
    assert "secret" not in caplog.text
