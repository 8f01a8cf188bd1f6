"""Power loss: what a command has put in place is on disk before it can be seen, and its name before the command ends.

Every system call of a command and its programs is recorded, and played back on a disk that keeps only what was flushed:
a file's content by fsync of the file, a directory's names by fsync of the directory. No file system forgets more.
"""

import dataclasses
import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_kernel
from hosts import LIBRARY, VMM, Host, sh

pytestmark = pytest.mark.system

WRITES = (
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "ftruncate",
    "fallocate",
    "copy_file_range",
    "sendfile",
    "splice",
)
NAMES = ("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "mkdir", "mkdirat")
FLUSHES = ("fsync", "fdatasync")
CALLS = (*WRITES, *NAMES, *FLUSHES, "openat", "truncate", "ioctl")
# FICLONE as strace names it: it fills a file without a write.
CLONE = "FICLONE"


@dataclasses.dataclass(frozen=True)
class Call:
    """A system call that succeeded; `paths` are those of its descriptors and its arguments, in order."""

    name: str
    paths: tuple[str, ...]
    text: str


def recorded(host: Host, log: Path, *arguments: str) -> list[Call]:
    """Run vmm and return the calls of it and its programs, in the order in which they ended."""
    argv = [
        "strace",
        "-f",
        "-y",
        "-qq",
        "-s",
        "4096",
        "-o",
        str(log),
        "-e",
        f"trace={','.join(CALLS)}",
        *VMM,
        *arguments,
    ]
    done = host.run(*argv, check=False, env=host.environment, timeout=180)
    assert done.returncode == 0, done.stderr
    return list(calls(log.read_text(errors="replace")))


def calls(text: str) -> Iterator[Call]:
    begun: dict[str, str] = {}
    for line in text.splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.endswith("<unfinished ...>"):
            begun[pid] = rest.removesuffix("<unfinished ...>")
            continue
        if match := re.match(r"<\.\.\. \w+ resumed>(.*)", rest):
            rest = begun.pop(pid) + match[1]
        match = re.match(r"(\w+)\((.*)\)\s+= (\d+)", rest)
        if match is not None and "(deleted)" not in match[2]:
            yield Call(match[1], tuple(paths(match[1], match[2])), match[2])


def paths(name: str, arguments: str) -> Iterator[str]:
    """Give the absolute paths in a call's arguments: those in quotes, or where a name is none of them, of descriptors."""
    if name in NAMES or name in ("openat", "truncate"):
        at = ""
        for descriptor, quoted in re.findall(r'(?:AT_FDCWD|\d+)<([^>]*)>|"((?:[^"\\]|\\.)*)"', arguments):
            if descriptor:
                at = descriptor
            elif quoted or not descriptor:
                yield quoted if quoted.startswith("/") else f"{at}/{quoted}"
    else:
        # What is written comes after the descriptor, and may look like one.
        yield from re.findall(r"^\d+<(/[^>]*)>", arguments)


class Disk:
    """What names and contents a strict disk holds, and what only memory does."""

    def __init__(self, top: Path) -> None:
        self.top = str(top)
        self._next = 0
        self.nodes = {self.top: self._new()}  # path: node, as programs see it
        self.kept: dict[int, dict[str, int]] = {}  # directory's node: the names in it that are on disk
        self.dirty: set[int] = set()

    def _new(self) -> int:
        self._next += 1
        return self._next

    def play(self, call: Call) -> None:
        if not any(path.startswith(self.top) for path in call.paths):
            return
        if call.name in WRITES or call.name == "truncate" or (call.name == "ioctl" and CLONE in call.text):
            self.dirty.add(self.node(call.paths[0]))
        elif call.name == "openat":
            self._opened(call)
        elif call.name in FLUSHES:
            self._flushed(call.paths[0])
        elif call.name in NAMES:
            self._named(call)

    def node(self, path: str) -> int:
        """Return what has a path; what was there before the recording is on disk."""
        if path not in self.nodes:
            self.nodes[path] = self._new()
            parent, _, name = path.rpartition("/")
            self.kept.setdefault(self.node(parent), {})[name] = self.nodes[path]
        return self.nodes[path]

    def _opened(self, call: Call) -> None:
        path = call.paths[0]
        if "O_CREAT" in call.text and path not in self.nodes:
            self.nodes[path] = self._new()
            self.dirty.add(self.nodes[path])
        if "O_TRUNC" in call.text:
            self.dirty.add(self.node(path))

    def _flushed(self, path: str) -> None:
        self.dirty.discard(self.node(path))
        below = {other.rpartition("/"): node for other, node in self.nodes.items()}
        self.kept[self.node(path)] = {name: node for (parent, _, name), node in below.items() if parent == path}

    def _named(self, call: Call) -> None:
        if call.name.startswith("mkdir"):
            self.nodes[call.paths[0]] = self._new()
        elif call.name.startswith("unlink"):
            self._take(call.paths[0])
        elif call.name.startswith("link"):
            self.nodes[call.paths[1]] = self.node(call.paths[0])
        else:
            old, new = call.paths
            self.node(old)
            moved, replaced = self._take(old), self._take(new)
            self._put(new, moved)
            if "RENAME_EXCHANGE" in call.text:
                self._put(old, replaced)

    def _take(self, path: str) -> dict[str, int]:
        """Take a path and all below it away; return it by what follows the path."""
        taken = {key: node for key, node in self.nodes.items() if key == path or key.startswith(f"{path}/")}
        for key in taken:
            del self.nodes[key]
        return {key[len(path) :]: node for key, node in taken.items()}

    def _put(self, path: str, taken: dict[str, int]) -> None:
        self.nodes.update({path + rest: node for rest, node in taken.items()})

    def lacks(self, path: Path) -> str:
        """Return what is not on disk of a file and its names, nothing when all of it is."""
        at = self.top
        for name in path.relative_to(self.top).parts:
            below = f"{at}/{name}"
            if self.kept.get(self.nodes[at], {}).get(name) != self.nodes[below]:
                return f"the name {name} in {at}"
            at = below
        return "the content" if self.nodes[at] in self.dirty else ""

    def half_made(self, path: str) -> list[str]:
        """Return what is not on disk below a path: content of files, names in directories."""
        lacking = []
        for key, node in self.nodes.items():
            if key == path or key.startswith(f"{path}/"):
                parent, _, name = key.rpartition("/")
                if node in self.dirty or (key != path and self.kept.get(self.nodes[parent], {}).get(name) != node):
                    lacking.append(key)
        return lacking


def assert_durable(top: Path, seen: list[Call], *finals: Path) -> None:
    """Assert that each file is on disk at the end, and was so below whatever name made it visible."""
    disk = Disk(top)
    visible: set[str] = set()
    for call in seen:
        disk.play(call)
        if call.name.startswith("rename"):
            new = call.paths[1]
            if any(str(final) == new or str(final).startswith(f"{new}/") for final in finals):
                visible.add(new)
                assert disk.half_made(new) == [], f"{new} was made visible too early"
    assert visible, "nothing was put in place by a rename"
    assert {str(final): disk.lacks(final) for final in finals if disk.lacks(final)} == {}
    assert all(final.is_file() for final in finals)


@pytest.fixture
def fresh(host: Host, tmp_path: Path) -> Host:
    """A host whose data directory is empty: the directories above what is put in place are new as well."""
    (tmp_path / "fresh").mkdir()
    return Host(namespace=host.namespace, data_dir=tmp_path / "fresh")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree") / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/hostname").write_text("guest\n")
    (root / "data").write_bytes(hashlib.sha512(b"x").digest() * 5000)
    return root


def a_source(tree: Path, directory: Path, form: str) -> Path:
    path = directory / f"it.{form}"
    match form:
        case "directory":
            return tree
        case "ext4":
            sh("mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(path), "32M")
        case _:
            sh("tar", "-C", str(tree), "-caf", str(path), ".")
    return path


@pytest.mark.fault(12)
@pytest.mark.parametrize("form", ["ext4", "directory", "tar", "tar.zst"])
def test_an_imported_image_is_on_disk(fresh: Host, tree: Path, tmp_path: Path, form: str) -> None:
    source = a_source(tree, tmp_path, form)
    item = fresh.data_dir / "images/rootfs/own"
    finals = (item / "rootfs.ext4", item / "image.json")
    seen = recorded(fresh, tmp_path / "log", "image", "import", str(source), "--name", "own")
    assert_durable(fresh.data_dir, seen, *finals)
    # The new one takes the place of the old in one step: at no time is there none.
    seen = recorded(fresh, tmp_path / "log", "image", "import", str(source), "--name", "own", "--force")
    assert_durable(fresh.data_dir, seen, *finals)
    moves = [call for call in seen if call.name.startswith("rename") and str(item) in call.paths]
    assert len(moves) == 1
    assert "RENAME_EXCHANGE" in moves[0].text
    # Deleted is deleted: it cannot come back without half of its files.
    seen = recorded(fresh, tmp_path / "log", "image", "delete", "own")
    (gone,) = [at for at, call in enumerate(seen) if call.name.startswith("rename") and call.paths[0] == str(item)]
    flushed = [at for at, call in enumerate(seen) if call.name in FLUSHES and call.paths == (str(item.parent),)]
    removed = [
        at for at, call in enumerate(seen) if call.name.startswith("unlink") and call.paths[0].endswith("rootfs.ext4")
    ]
    assert gone < flushed[0] < removed[0]


@pytest.mark.fault(12)
@pytest.mark.parametrize("form", ["vmlinux", "bzImage"])
def test_an_imported_kernel_is_on_disk(fresh: Host, tmp_path: Path, form: str) -> None:
    kernel = tmp_path / form
    plain = tiny_kernel.build()
    kernel.write_bytes(plain)
    if form == "bzImage":
        payload = subprocess.run(["zstd", "-q", "-c", str(kernel)], capture_output=True, check=True).stdout
        payload += len(plain).to_bytes(4, "little")
        head = bytearray(1024)
        head[0x1F1] = 1
        head[0x202:0x206] = b"HdrS"
        head[0x24C:0x250] = len(payload).to_bytes(4, "little")
        kernel.write_bytes(bytes(head) + payload)
    item = fresh.data_dir / "images/kernels/own"
    seen = recorded(fresh, tmp_path / "log", "kernel", "import", str(kernel), "--name", "own")
    assert_durable(fresh.data_dir, seen, item / "vmlinux", item / "kernel.json", item / "stage1.cpio.gz")


@pytest.mark.fault(12)
def test_the_engines_programs_are_on_disk(fresh: Host, tmp_path: Path) -> None:
    given = str(LIBRARY / "bin" / "firecracker")
    argv = ("setup", "--no-kernel", "--no-image", "--no-network", "--firecracker", given)
    seen = recorded(fresh, tmp_path / "log", *argv)
    installed = fresh.data_dir / "bin"
    finals = (installed / "firecracker", installed / "jailer", installed / "firecracker.json")
    assert_durable(fresh.data_dir, seen, *finals)
    # The description, by which they are believed, comes after them.
    order = [call.paths[1] for call in seen if call.name.startswith("rename") and Path(call.paths[1]) in finals]
    assert order[-1] == str(finals[-1])


@pytest.mark.fault(12)
def test_what_the_database_has_committed_is_on_disk(host: Host, tmp_path: Path) -> None:
    """Each transaction: the journal on disk, then the database, on disk too, then the journal's end, on disk as well."""
    seen = recorded(host, tmp_path / "log", "create", "m")
    directory = host.data_dir / "state"
    database, journal = str(directory / "vmm.db"), str(directory / "vmm.db-journal")
    # A letter for each kind of step: the same kind several times in a row is one.
    kinds = {("write", journal): "J", ("flush", journal): "j", ("flush", str(directory)): "n", ("write", database): "D",
             ("flush", database): "d", ("unlink", journal): "u"}  # fmt: skip
    steps = "".join(kinds.get((kind_of(call), call.paths[0]), "") for call in seen if call.paths)
    transactions = re.findall("J[^u]*un?", re.sub(r"(.)\1+", r"\1", steps))
    assert len(transactions) >= 2
    assert [each for each in transactions if not re.fullmatch("Jjn(Jj)*Ddun", each)] == []


def kind_of(call: Call) -> str:
    if call.name in FLUSHES:
        return "flush"
    return "write" if call.name in WRITES else call.name
