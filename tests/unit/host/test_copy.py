"""Copies of disks by several threads; what they copy is shown by the tests of files."""

import os
import threading
from pathlib import Path

import pytest

from vmm.host import copy


@pytest.mark.fault(31)
def test_an_interrupted_copy_writes_into_no_file_that_has_its_descriptor_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the command waits for the last piece of another thread's."""
    (tmp_path / "image").write_bytes(b"x" * 3 * copy._BUFFER_BYTES)
    main, real, join = threading.current_thread(), os.pwrite, threading.Thread.join
    writes, go_on = threading.Event(), threading.Event()
    others: list[threading.Thread] = []

    def write(fd: int, data: memoryview, offset: int) -> int:
        if threading.current_thread() is main:
            assert writes.wait(10)
        else:
            writes.set()
            assert go_on.wait(10)
        return real(fd, data, offset)

    def interrupted(thread: threading.Thread) -> None:
        others.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(copy, "reflink", lambda _source, _destination: False)
    monkeypatch.setattr(os, "pwrite", write)
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    source = os.open(tmp_path / "image", os.O_RDONLY)
    destination = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    with pytest.raises(KeyboardInterrupt):
        copy.copy_content(source, destination)
    os.close(destination)
    precious = os.open(tmp_path / "precious", os.O_RDWR | os.O_CREAT)
    assert precious == destination
    go_on.set()
    (other,) = others
    join(other, 10)
    assert not other.is_alive()
    assert os.fstat(precious).st_size == 0
    for fd in (source, precious):
        os.close(fd)
