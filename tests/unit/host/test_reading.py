"""Files that vmm did not just write: plain ones alone, to a bound, and never waiting."""

import ast
import errno
import json
import os
import re
import socket
from pathlib import Path

import pytest

from vmm.host import reading

SOURCE = Path(__file__).parents[3] / "src" / "vmm"


def test_a_plain_file_is_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("grüße\n")
    assert reading.read_text(file) == "grüße\n"
    assert reading.read_bytes(file, most=8) == "grüße\n".encode()
    link = tmp_path / "link"
    link.symlink_to(file)
    assert reading.read_text(link) == "grüße\n"
    with pytest.raises(OSError, match="link"):
        reading.read_bytes(link, follow=False)


@pytest.mark.fault(49)
@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a socket", "a directory"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    """A FIFO without a writer would keep an ordinary open(2) for ever."""
    path = tmp_path / "it"
    match kind:
        case "a FIFO":
            os.mkfifo(path)
        case "a device":
            path.symlink_to("/dev/zero")
        case "a socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path))
        case _:
            path.mkdir()
    with pytest.raises(OSError, match=r"no plain file|No such device") as caught:
        reading.read_bytes(path)
    # open(2) itself refuses a socket.
    assert caught.value.errno in (errno.EINVAL, errno.ENXIO)
    assert kind == "a socket" or kind in str(caught.value)


def test_what_is_larger_than_its_bound_is_refused_and_not_read(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    os.truncate(file, 1 << 40)
    with pytest.raises(OSError, match="more than 1048576 bytes") as caught:
        reading.read_bytes(file)
    assert caught.value.errno == errno.EFBIG


def test_a_nul_in_a_path_and_bytes_that_are_no_text_are_errors_of_the_system_s_kind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="NUL"):
        reading.read_bytes(Path("a\0b"))
    file = tmp_path / "f"
    file.write_bytes(b"abc\xff")
    with pytest.raises(OSError, match=r"no text \(UTF-8\): byte 4 is 0xff"):
        reading.read_text(file)
    assert reading.read_text(file, errors="replace") == "abc\ufffd"


@pytest.mark.parametrize("text", ["", "[", "[]", "7", "null", '"x"', "[" * 100_000, '{"a":' * 100_000, "{'a': 1}"])
def test_what_is_no_json_object_is_a_value_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "f"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"."):
        reading.read_object(file)
    file.write_text('{"a": [1]}')
    assert reading.read_object(file) == {"a": [1]}


# Where a file is opened all the same, and why that cannot wait or be without end.
ALLOWED = {
    ("app/supervisor.py", "fdopen"), ("engines/launch.py", "open"), ("engines/launch.py", "fdopen"),  # logs that vmm writes
    ("storage/machine_files.py", "open"), ("storage/machine_files.py", "fdopen"),  # the same, and their bounded tails
    ("cli/commands/console.py", "open"), ("cli/commands/foreground.py", "open"),  # bounded tails of consoles
    ("host/ceilings.py", "fdopen"), ("host/ceilings.py", "read_bytes"), ("host/ceilings.py", "read_text"),  # /proc, cgroups
    ("host/own_group.py", "read_text"), ("host/cgroups.py", "read_text"), ("host/memory.py", "read_text"),  # /proc, cgroups
    ("host/identity.py", "read_text"), ("host/identity.py", "read_bytes"), ("engines/firecracker/engine.py", "read_text"),  # /proc
    ("network/links.py", "read_text"), ("engines/choice.py", "read_text"), ("engines/qemu/engine.py", "read_text"),  # /proc
    ("engines/emulation.py", "open"),  # /proc
    ("host/process.py", "fdopen"),  # memory of our own
    ("__main__.py", "fdopen"),  # what is written to
    ("host/accounts.py", "open"),  # the host's own table of users
    ("network/managers.py", "read_text"),  # settings of services, which vmm lays down
    ("storage/readable.py", "read_bytes"),  # the database itself, damaged, which SQLite has opened
    ("storage/readable.py", "open"),  # the copy of the database that vmm writes
    ("app/database.py", "read_text"),  # /proc
    ("engines/firecracker/jail.py", "fdopen"),  # what vmm has just made
    ("engines/firecracker/acquire.py", "open"), ("engines/firecracker/acquire.py", "read_bytes"),  # in staging
    ("engines/firecracker/download.py", "open"),  # the same
    ("guest/facts.py", "read_bytes"),  # stage-1's own scripts
    ("guest/keys.py", "fdopen"), ("images/lacks.py", "open"),  # plain files alone, to a bound
    ("images/kernel_words.py", "open"), ("images/kernel_parts.py", "open"),  # in staging
    ("guest/stage1.py", "read_bytes"),  # programs of the host's, found by fixed paths
    ("images/library.py", "open"), ("images/shelf.py", "open"), ("images/vmlinux.py", "open"),  # in staging
    ("images/packed.py", "fdopen"),  # pipes
    ("host/files.py", "fdopen"), ("host/files.py", "open"),  # new files
}  # fmt: skip
READS = {"read_text", "read_bytes", "open", "fdopen"}
# Their arguments are descriptors of `open_plain`, new files, or directories.
HARMLESS = re.compile(
    r"open_plain\(|os\.open\(|os\.pidfd_open|O_CREAT|tarfile\.|zipfile\.|\bopened\.|_firewall\.|build_opener"
)


def test_every_other_read_is_known_and_says_why_it_is_bounded() -> None:
    """Whoever opens a file that others may have put there does it by `host.reading`."""
    found: set[tuple[str, str]] = set()
    for path in sorted(SOURCE.rglob("*.py")):
        name = str(path.relative_to(SOURCE))
        if name == "host/reading.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            text = ast.unparse(node)
            if called not in READS or HARMLESS.search(text) or re.match(r"(reading\.)?read_(text|bytes)\(", text):
                continue
            if re.match(r"Path\(f?'/(proc|sys)/", text):
                continue
            found.add((name, called))
    assert found <= ALLOWED, found - ALLOWED


def test_descriptions_are_read_by_the_same_way(tmp_path: Path) -> None:
    from vmm.images.shelf import Shelf

    shelf = Shelf(root=tmp_path, staging=tmp_path / "s", what="image", description="image.json")
    (tmp_path / "x").mkdir()
    os.mkfifo(tmp_path / "x" / "image.json")
    from vmm.errors import ImageError

    with pytest.raises(ImageError, match="damaged") as caught:
        shelf.read("x")
    assert "FIFO" in caught.value.details
    (tmp_path / "x" / "image.json").unlink()
    (tmp_path / "x" / "image.json").write_text(json.dumps({"a": 1}))
    assert shelf.read("x") == {"a": 1}
