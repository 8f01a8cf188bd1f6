"""Archives, images and kernels that mean harm: contained or refused, within bounds, and nothing is left of them."""

import contextlib
import hashlib
import io
import os
import random
import re
import shutil
import struct
import subprocess
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_kernel
from hosts import VMM, Host, sh

pytestmark = pytest.mark.system

MIB = 1024 * 1024
# Far below what any of the bombs would take, and above what the interpreter and each program need.
ADDRESS_SPACE = 448 * MIB
EVIL = b"evil"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What an archive must not change: the targets of its links."""
    directory = tmp_path / "outside"
    (directory / "below").mkdir(parents=True)
    (directory / "canary").write_text("alive")
    (directory / "below/canary").write_text("alive")
    return directory


@pytest.fixture(autouse=True)
def _no_evil_stays(shared_host: Host) -> Iterator[None]:
    """What a test has let in troubles no other."""
    yield
    shutil.rmtree(shared_host.data_dir / "images/rootfs/evil", ignore_errors=True)


def tree_state(top: Path, *, leaving_out: Path | None = None) -> dict[str, object]:
    """Return content and attributes of everything below a directory, but for how many names a file of vmm's own has."""
    found: dict[str, object] = {}
    for path in [top, *top.rglob("*")]:
        if leaving_out is not None and path.is_relative_to(leaving_out):
            continue
        info = path.lstat()
        plain = path.is_file() and not path.is_symlink() and info.st_size < 16 * MIB
        content = hashlib.sha256(path.read_bytes()).hexdigest() if plain else info.st_size * (not path.is_dir())
        marks = [
            (key, os.getxattr(path, key, follow_symlinks=False)) for key in os.listxattr(path, follow_symlinks=False)
        ]
        times = 0 if path.is_dir() else info.st_mtime_ns  # vmm's own directories are worked in
        found[str(path)] = (
            info.st_mode,
            info.st_uid,
            info.st_gid,
            0 if leaving_out else info.st_nlink,
            times,
            content,
            marks,
        )
    return found


def world(host: Host, outside: Path) -> dict[str, object]:
    """Return everything that must be the same after an import, but for the one new image."""
    images = host.data_dir / "images" / "rootfs"
    own = tree_state(host.data_dir, leaving_out=images / "evil")
    counted = {str(path) for path in (images, host.data_dir / "staging", host.data_dir / "state")}
    kept = {path: state for path, state in own.items() if path not in counted}
    of_host = [
        (path.lstat().st_mode, path.lstat().st_nlink, path.lstat().st_mtime_ns)
        for path in map(Path, ("/etc/passwd", "/etc/shadow", "/dev/null"))
    ]
    return {**kept, **tree_state(outside), "host": of_host}


def bounded(host: Host, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run vmm, and all that it runs, in an address space that no bomb fits into."""
    argv = [*host.prefix, "prlimit", f"--as={ADDRESS_SPACE}", *VMM, *arguments]
    return sh(*argv, check=False, timeout=timeout, env=host.environment)


def refused(host: Host, done: subprocess.CompletedProcess[str], words: str) -> None:
    """Assert an error in three parts, said so that no terminal obeys it, and that nothing is left."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "Error: " in done.stderr
    assert "To mend it: " in done.stderr
    assert re.search(words, done.stderr), done.stderr
    assert "\x1b" not in done.stderr
    left_nothing(host)
    assert not (host.data_dir / "images/rootfs/evil").exists()


def left_nothing(host: Host) -> None:
    assert list((host.data_dir / "staging").glob("*")) == []


@contextlib.contextmanager
def room(host: Host, place: Path, size: str) -> Iterator[Host]:
    """Give the host with a data directory in memory, of that size."""
    sh("mount", "-t", "tmpfs", "-o", f"size={size}", "vmmtest", str(place))
    try:
        yield Host(namespace=host.namespace, data_dir=place / "data")
    finally:
        sh("umount", str(place))


@pytest.fixture(scope="module")
def small(shared_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with room for little."""
    with room(shared_host, tmp_path_factory.mktemp("small"), "96M") as made:
        yield made


@pytest.fixture
def roomy(shared_host: Host, tmp_path: Path) -> Iterator[Host]:
    """A host with room for much, on a file system that is quick to make files."""
    (tmp_path / "roomy").mkdir()
    with room(shared_host, tmp_path / "roomy", "1G") as made:
        yield made


# Archives (row 8)


class Tar:
    """An archive in the making, by Python's own writer: it lets everything through."""

    def __init__(self, outside: Path, form: int = tarfile.PAX_FORMAT) -> None:
        self.out = str(outside)
        self._bytes = io.BytesIO()
        self._archive = tarfile.TarFile(fileobj=self._bytes, mode="w", format=form)

    def file(self, name: str, content: bytes = EVIL, **fields: object) -> "Tar":
        return self.add(name, content, **fields)

    def link(self, name: str, target: str) -> "Tar":
        return self.add(name, type=tarfile.SYMTYPE, linkname=target)

    def hard(self, name: str, target: str) -> "Tar":
        return self.add(name, type=tarfile.LNKTYPE, linkname=target)

    def directory(self, name: str, mode: int = 0o755) -> "Tar":
        return self.add(name, type=tarfile.DIRTYPE, mode=mode)

    def add(self, name: str, content: bytes = b"", **fields: object) -> "Tar":
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in fields.items():
            setattr(info, key, value)
        self._archive.addfile(info, io.BytesIO(content))
        return self

    def done(self) -> bytes:
        self._archive.close()
        return self._bytes.getvalue()


def device(tar: Tar, name: str) -> Tar:
    return tar.add(name, type=tarfile.BLKTYPE, devmajor=8, devminor=0, mode=0o666)


def up(tar: Tar, target: str = "") -> str:
    return "../" * 20 + tar.out[1:] + target


REFUSED: dict[str, tuple[str, Callable[[Tar], Tar]]] = {
    "dots": ("leads out", lambda t: t.file("../../escaped")),
    "dots inside": ("leads out", lambda t: t.file("a/b/../../../escaped")),
    "dots in a directory": ("leads out", lambda t: t.directory("a/..", 0o777)),
    "absolute link": ("through a link", lambda t: t.link("l", t.out).file("l/escaped")),
    "relative link": ("through a link", lambda t: t.link("l", up(t)).file("l/escaped")),
    "link inside": ("through a link", lambda t: t.directory("d").link("l", "d").file("l/escaped")),
    "several hops": ("through a link", lambda t: t.link("a", t.out).link("b", "a").directory("c").link("c/d", "../b").file("c/d/canary")),
    "link above": ("through a link", lambda t: t.link("l", t.out).file("l/below/canary")),
    "directory through a link": ("through a link", lambda t: t.link("l", t.out).directory("l/below", 0o777)),
    "directory over a link": ("through a link", lambda t: t.link("l", t.out).directory("l", 0o777)),
    "directory over a file": ("through a link or a file", lambda t: t.file("f").directory("f")),
    "file over a directory": ("a directory of that name", lambda t: t.directory("d").file("d")),
    "link over a directory": ("a directory of that name", lambda t: t.directory("d").file("d/f").link("d", t.out)),
    "hard link with dots": ("leads out", lambda t: t.hard("h", "../../../../etc/passwd")),
    "hard link to an absolute path": ("not in the archive", lambda t: t.hard("h", "/etc/shadow")),
    "hard link to what is outside": ("not in the archive|through a link", lambda t: t.hard("h", f"{t.out}/canary")),
    "hard link through a link": ("through a link", lambda t: t.link("l", t.out).hard("h", "l/canary")),
    "hard link to a directory": ("cannot be made", lambda t: t.directory("d").hard("h", "d")),
    "hard link to the top": ("link to nothing", lambda t: t.hard("h", "./")),
    "top that is a link": ("no directory", lambda t: t.link("./", t.out)),
    "pax path": ("leads out", lambda t: t.file("good", pax_headers={"path": "../../escaped"})),
    "pax link path": ("leads out", lambda t: t.add("h", type=b"1", linkname="f", pax_headers={"linkpath": "../../etc/passwd"})),
    "pax path with a zero": ("zero byte", lambda t: t.file("good", pax_headers={"path": "a\0../../b"})),
    "hidden content": ("symbolic link with a size", lambda t: t.add("l", b"x" * 512, type=b"2", linkname="y")),
    "levels": ("levels", lambda t: t.file("a/" * 300 + "f")),
    "long path": ("levels", lambda t: t.file(("a" * 200 + "/") * 20 + "f")),
    "long name": ("too long", lambda t: t.file("a" * 300)),
    "owner": ("has the owner", lambda t: t.file("f", uid=2**32 - 1)),
    "words for the terminal": ("leads out", lambda t: t.file("\x1b]0;evil\x07\x1b[2J/../..")),
    "unknown kind": ("does not know", lambda t: t.add("f", type=b"M")),
    "attribute too large": ("cannot be kept", lambda t: t.file("f", pax_headers={"SCHILY.xattr.user.x": "x" * 100_000})),
}  # fmt: skip


@pytest.mark.fault(8)
@pytest.mark.parametrize("kind", REFUSED)
def test_an_archive_that_means_harm_is_refused(shared_host: Host, tmp_path: Path, outside: Path, kind: str) -> None:
    words, fill = REFUSED[kind]
    archive = tmp_path / "it.tar"
    archive.write_bytes(fill(Tar(outside)).done())
    before = world(shared_host, outside)
    refused(shared_host, shared_host.vmm("image", "import", str(archive), "--name", "evil", check=False), words)
    assert world(shared_host, outside) == before


def test_a_global_header_that_names_every_entry_is_refused(shared_host: Host, tmp_path: Path) -> None:
    archive = tmp_path / "it.tar"
    with tarfile.open(archive, "w", pax_headers={"path": "../../escaped"}) as made:
        made.addfile(tarfile.TarInfo("good"))
    refused(
        shared_host, shared_host.vmm("image", "import", str(archive), "--name", "evil", check=False), "global header"
    )


class Inside:
    """What is in an image, by debugfs."""

    def __init__(self, host: Host) -> None:
        self.path = str(host.data_dir / "images/rootfs/evil/rootfs.ext4")
        self.said = ""

    def ask(self, request: str) -> str:
        return sh("debugfs", "-R", request, self.path, errors="replace").stdout

    def content(self, path: str) -> str:
        return self.ask(f'cat "{path}"')

    def has(self, path: str) -> bool:
        return "Inode:" in self.ask(f'stat "{path}"')


CONTAINED: dict[str, tuple[Callable[[Tar], Tar], Callable[[Inside, str], object]]] = {
    "absolute": (
        lambda t: t.file(f"{t.out}/canary").file("/etc/passwd"),
        lambda i, out: i.content(f"{out}/canary") == i.content("/etc/passwd") == "evil",
    ),
    "file over a link": (
        lambda t: t.link("l", f"{t.out}/canary").file("l"),
        lambda i, _: i.content("l") == "evil" and "regular" in i.ask("stat l"),
    ),
    "file over a hard link": (
        lambda t: t.link("l", f"{t.out}/canary").hard("h", "l").file("h"),
        lambda i, _: i.content("h") == "evil" and "symlink" in i.ask("stat l"),
    ),
    "hard link to a link": (
        lambda t: t.link("l", f"{t.out}/canary").hard("h", "l"),
        lambda i, _: "symlink" in i.ask("stat h"),
    ),
    "links for the guest": (
        lambda t: t.link("a", "/etc/shadow").link("b", up(t)).link("c", "c"),
        lambda i, _: '"/etc/shadow"' in i.ask("stat a"),
    ),
    "twice": (lambda t: t.file("f", b"first").file("f", b"last"), lambda i, _: i.content("f") == "last"),
    "devices anywhere": (
        lambda t: device(device(t.directory("lib"), "lib/sda"), "dev/sda").file("lib/good", b"good"),
        lambda i, _: i.content("lib/good") == "good" and not i.has("lib/sda") and not i.has("dev/sda")
        and "2 device nodes were left out" in i.said,
    ),
    "pipes": (lambda t: t.add("p", type=tarfile.FIFOTYPE), lambda i, _: "FIFO" in i.ask("stat p")),
    "what is in /dev": (lambda t: t.file("dev/shm/x").file("device"), lambda i, _: i.has("device") and not i.has("dev/shm")),
    "setuid": (
        lambda t: t.file("su", mode=0o6755, uid=0, gid=42),
        lambda i, _: "Mode:  06755" in i.ask("stat su") and "Group:    42" in i.ask("stat su"),
    ),
    "names": (
        lambda t: t.file("-rf").file("new\nline").file("--help").file("\x1b[2J").file("a b\t'\"$(id);").file("\udcff"),
        lambda i, _: all(name in i.ask("ls -p /") for name in ("/-rf/", "/--help/", "$(id);")),
    ),
    "attributes of the host": (
        lambda t: t.file("f", pax_headers={f"SCHILY.xattr.{key}": "x" for key in (
            "user.kept", "trusted.overlay.redirect", "security.ima", "security.evm", "system.posix_acl_access")}),
        lambda i, _: "user.kept" in i.ask("ea_list f") and "trusted" not in i.ask("ea_list f")
        and "ima" not in i.ask("ea_list f"),
    ),
    "capabilities": (
        lambda t: t.file("ping", pax_headers={"SCHILY.xattr.security.capability": "\1\0\0\2\0 \0\0" + "\0" * 12}),
        lambda i, _: "security.capability (20)" in i.ask("ea_list ping"),
    ),
    "times": (lambda t: t.file("f", mtime=2**40).file("g", mtime=-(2**40)), lambda i, _: i.has("f") and i.has("g")),
}  # fmt: skip


@pytest.mark.fault(8)
@pytest.mark.parametrize("kind", CONTAINED)
def test_what_an_archive_holds_is_contained(shared_host: Host, tmp_path: Path, outside: Path, kind: str) -> None:
    fill, holds = CONTAINED[kind]
    archive = tmp_path / "it.tar"
    archive.write_bytes(fill(Tar(outside)).done())
    before = world(shared_host, outside)
    inside = Inside(shared_host)
    done = shared_host.vmm("image", "import", str(archive), "--name", "evil")
    inside.said = done.stdout + done.stderr
    assert world(shared_host, outside) == before
    assert sh("e2fsck", "-fn", inside.path, check=False).returncode == 0
    assert holds(inside, str(outside)), inside.said
    left_nothing(shared_host)
    # What is in it, and where it was unpacked, is nobody's business but root's.
    assert Path(inside.path).stat().st_mode & 0o777 == 0o600
    assert (shared_host.data_dir / "staging").stat().st_mode & 0o777 == 0o700


@pytest.mark.fault(8)
def test_a_hundred_thousand_entries(roomy: Host, tmp_path: Path) -> None:
    """They fit: an image has as many inodes as its files need."""
    archive = tmp_path / "it.tar"
    head = bytearray(tarfile.TarInfo("d000/f00").tobuf())
    base = sum(head[:148]) - sum(b"000" + b"00") + sum(head[156:]) + 8 * 32
    with archive.open("wb") as out:
        for number in range(100_000):
            digits = b"%05d" % number
            head[1:4], head[6:8] = digits[:3], digits[3:]
            head[148:156] = b"%06o\0 " % (base + sum(digits))
            out.write(head)
        out.write(b"\0" * 1024)
    assert bounded(roomy, "image", "import", str(archive), "--name", "evil").returncode == 0
    image = Inside(roomy)
    assert image.has("/d999/f99")
    used = re.search(r"Inode count: +(\d+).*?Free inodes: +(\d+)", image.ask("stats"), re.DOTALL)
    assert used is not None
    assert int(used[1]) - int(used[2]) > 101_000


@pytest.mark.fault(8)
def test_an_archive_that_changes_while_it_is_read_is_never_two(
    shared_host: Host, tmp_path: Path, outside: Path
) -> None:
    """A FIFO in its place gives every reader another content; it is not read at all."""
    archive = tmp_path / "it.tar"
    os.mkfifo(archive)
    for noun in ("image", "kernel"):
        done = shared_host.vmm(noun, "import", str(archive), "--name", "evil", check=False, timeout=20)
        refused(shared_host, done, "a FIFO, and no plain file")


# Bombs (row 9)


def many_zeros() -> bytes:
    tar = Tar(Path("/"))
    for number in range(420):
        tar.file(f"f{number}", bytes(256 * 1024))
    return tar.done()


PACKERS = {"gzip": ["gzip", "-9"], "xz": ["xz", "-0"], "bzip2": ["bzip2"], "zstd": ["zstd", "-q"]}


def packed(data: bytes, program: str) -> bytes:
    return subprocess.run([*PACKERS[program], "-c"], input=data, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def zeros() -> bytes:
    return many_zeros()


def used_mib(host: Host) -> int:
    found = os.statvfs(host.data_dir.parent)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // MIB


@pytest.mark.fault(9)
@pytest.mark.parametrize("packing", PACKERS)
def test_an_archive_that_expands_stops_at_what_there_is_room_for(
    small: Host, tmp_path: Path, zeros: bytes, packing: str
) -> None:
    """105 MiB of zeros in a few hundred KiB, file by file so that no size gives it away."""
    archive = tmp_path / "bomb.tar"
    archive.write_bytes(packed(zeros, packing))
    assert archive.stat().st_size < len(zeros) // 300
    refused(small, bounded(small, "image", "import", str(archive), "--name", "evil"), "room for here")
    assert used_mib(small) < 2


def header(kind: bytes, size: int, name: str = "f") -> bytes:
    """Return a header alone, with any size."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def old_sparse_without_end() -> bytes:
    """A header of GNU's old sparse form, whose list of pieces goes on in block after block."""
    head = bytearray(header(b"S", 0))
    head[482] = 1
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    piece = b"00000000000\0" * 2
    return bytes(head) + (piece * 21 + b"\1" + b"\0" * 7) * 100_000


def map_without_end() -> bytes:
    told = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "f", "GNU.sparse.realsize": "9"}
    return Tar(Path("/")).file("x", b"200000\n" + b"0\n" * 30_000_000, pax_headers=told).done()


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "one huge member": ("room for here", lambda: header(b"0", 1 << 42)),
    "a huge member that is left out": ("room for here", lambda: header(b"0", 1 << 42, "dev/x")),
    "a huge pax header": ("header of 2147483648 bytes", lambda: header(b"x", 1 << 31) + bytes(64 * MIB)),
    "a huge long name": ("header of 1073741824 bytes", lambda: header(b"L", 1 << 30) + bytes(64 * MIB)),
    "a huge global header": ("header of", lambda: header(b"g", 1 << 40) + bytes(64 * MIB)),
    "pieces without end": ("pieces", old_sparse_without_end),
    "a map without end": ("are stored|damaged", map_without_end),
    "digits without end": ("pax header", lambda: header(b"x", MIB) + b"1" * MIB + header(b"0", 0) + bytes(1024)),
    "zeros after the end": ("after its end", lambda: header(b"0", 0) + bytes(80 * MIB)),
}  # fmt: skip


@pytest.mark.fault(9)
@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_in_bounded_memory(small: Host, tmp_path: Path, kind: str) -> None:
    words, make = BOMBS[kind]
    archive = tmp_path / "bomb.tar.zst"
    archive.write_bytes(subprocess.run(["zstd", "-q", "-c"], input=make(), capture_output=True, check=True).stdout)
    assert archive.stat().st_size < MIB
    began = time.monotonic()
    refused(small, bounded(small, "image", "import", str(archive), "--name", "evil"), words)
    assert time.monotonic() - began < 15
    assert used_mib(small) < 2


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    "options", ["--format=gnu", "--format=posix --sparse-version=0.1", "--format=posix --sparse-version=1.0"]
)
def test_a_sparse_terabyte_is_refused(small: Host, tmp_path: Path, options: str) -> None:
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree/huge").open("wb") as made:
        made.truncate(1 << 40)
    sh("tar", "-C", str(tmp_path / "tree"), "-S", *options.split(), "-cf", str(tmp_path / "it.tar"), ".")
    assert (tmp_path / "it.tar").stat().st_size < 20_000
    # Of the archive nothing is written; a directory is looked through before anything is made of it.
    for source, words in (("it.tar", "With .*huge.* its files have"), ("tree", "holes included")):
        done = bounded(small, "image", "import", str(tmp_path / source), "--name", "evil")
        refused(small, done, words)


@pytest.mark.fault(9)
def test_holes_take_no_room(small: Host, tmp_path: Path) -> None:
    """8 GiB of a log that was written at its end: what is stored of it counts."""
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree/lastlog").open("wb") as made:
        made.seek(8 << 30)
        made.write(b"end")
    sh("tar", "-C", str(tmp_path / "tree"), "-S", "-cf", str(tmp_path / "it.tar"), ".")
    for source in ("it.tar", "tree"):
        done = bounded(small, "image", "import", str(tmp_path / source), "--name", "evil")
        assert done.returncode == 0, done.stderr
        assert Inside(small).ask("stat lastlog").count(f"Size: {(8 << 30) + 3}") == 1
        small.vmm("image", "delete", "evil")
    left_nothing(small)


@pytest.mark.fault(9)
def test_an_xz_that_asks_for_gigabytes_of_memory_is_refused(small: Host, tmp_path: Path) -> None:
    """The dictionary's size is one byte of the block's header; 40 stands for 4 GiB."""
    data = bytearray(packed(many_zeros()[:MIB], "xz"))
    length = (data[12] + 1) * 4
    at = data.index(b"\x21\x01", 12)
    data[at + 2] = 40
    data[12 + length - 4 : 12 + length] = struct.pack("<I", zlib.crc32(data[12 : 12 + length - 4]))
    archive = tmp_path / "it.tar.xz"
    archive.write_bytes(data)
    done = sh(
        *small.prefix, *VMM, "image", "import", str(archive), "--name", "evil", check=False, env=small.environment
    )
    refused(small, done, "[Mm]emory")


def a_bzimage(payload: bytes, promised: int) -> bytes:
    """Return a kernel as the x86 build packs it: the payload, and behind it the size that it unpacks to."""
    payload += promised.to_bytes(4, "little")
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    head[0x248:0x250] = (0).to_bytes(4, "little") + len(payload).to_bytes(4, "little")
    return bytes(head) + payload


@pytest.fixture(scope="module")
def endless_kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good beginning, and zeros behind it; itself no bytes on the disk."""
    path = tmp_path_factory.mktemp("kernel") / "plain"
    path.write_bytes(tiny_kernel.build())
    os.truncate(path, 128 * MIB)
    return path


@pytest.mark.fault(9)
@pytest.mark.parametrize("packing", ["gzip", "xz", "zstd", "lz4"])
def test_a_kernel_that_expands_without_end(small: Host, tmp_path: Path, endless_kernel: Path, packing: str) -> None:
    argv = {
        "gzip": ["gzip", "-1"],
        "xz": ["xz", "-0", "-T2", "--check=crc32"],
        "zstd": ["zstd", "-q"],
        "lz4": ["lz4", "-l", "-q"],
    }[packing]
    payload = subprocess.run([*argv, "-c", str(endless_kernel)], capture_output=True, check=True).stdout
    kernel = tmp_path / "vmlinuz"
    for promised, words in ((600 * MIB, "would expand to 629145600"), (MIB, f"more than the {MIB} bytes"),
                            (500 * MIB, "expands to 134217728 bytes|No space left")):  # fmt: skip
        kernel.write_bytes(a_bzimage(payload, promised))
        done = bounded(small, "kernel", "import", str(kernel), "--name", "evil", "--no-stage1")
        assert not (small.data_dir / "images/kernels/evil").exists()
        refused(small, done, words)
        assert used_mib(small) < 2


@pytest.mark.fault(9)
def test_kernels_that_are_too_large_or_not_what_they_promise(small: Host, tmp_path: Path, endless_kernel: Path) -> None:
    argv = ("kernel", "import", "--name", "evil", "--no-stage1")
    huge = tmp_path / "vmlinux"
    huge.write_bytes(endless_kernel.read_bytes()[:MIB])
    os.truncate(huge, 600 * MIB)
    refused(small, bounded(small, *argv, str(huge)), "It has 629145600 bytes")
    plain = tiny_kernel.build()
    kernel = tmp_path / "vmlinuz"
    payload = packed(plain, "zstd")
    # Less than it promises, and damaged within.
    kernel.write_bytes(a_bzimage(payload, len(plain) + 1))
    refused(small, bounded(small, *argv, str(kernel)), f"expands to {len(plain)} bytes")
    kernel.write_bytes(a_bzimage(payload[:-4] + bytes(4), len(plain)))
    refused(small, bounded(small, *argv, str(kernel)), "cannot be unpacked")


# Images (row 34)

# What a mount, or a repair, would go by. Nothing of it may reach the host's kernel.
MOUNTS = ("mount", "umount2", "fsopen", "fsmount", "fspick", "open_tree", "move_mount", "mount_setattr", "pivot_root")
FORBIDDEN = (
    "mount",
    "losetup",
    "kpartx",
    "fsck",
    "debugfs",
    "resize2fs",
    "tune2fs",
    "e2image",
    "guestfish",
    "qemu-nbd",
)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small ext4 image with a link to a file of the host's."""
    directory = tmp_path_factory.mktemp("ext4")
    (directory / "tree/etc").mkdir(parents=True)
    (directory / "tree/etc/shadow").symlink_to("/etc/shadow")
    sh("mke2fs", "-q", "-t", "ext4", "-d", str(directory / "tree"), str(directory / "it"), "16M")
    return (directory / "it").read_bytes()


def with_field(image: bytes, at: int, value: bytes) -> bytes:
    return image[: 1024 + at] + value + image[1024 + at + len(value) :]


BAD_IMAGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "no blocks": ("damaged or cut off", lambda image: with_field(image, 0x4, b"\0\0\0\0")),
    "too many blocks": ("damaged or cut off", lambda image: with_field(image, 0x4, b"\xff\xff\xff\xff")),
    "too many blocks, high half": ("damaged or cut off", lambda image: with_field(image, 0x150, b"\xff\xff\xff\xff")),
    "blocks of 128 KiB": ("damaged or cut off", lambda image: with_field(image, 0x18, struct.pack("<I", 7))),
    "blocks of 2^4294967305": ("damaged or cut off", lambda image: with_field(image, 0x18, b"\xff\xff\xff\xff")),
    "no magic": ("cannot become an image", lambda image: with_field(image, 0x38, b"\0\0")),
    "cut off": ("damaged or cut off", lambda image: image[: 8 * MIB]),
    "cut off in the superblock": ("cannot become an image", lambda image: image[:1500]),
}  # fmt: skip


@pytest.mark.fault(34)
@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_an_image_with_a_bad_superblock_is_refused(shared_host: Host, tmp_path: Path, valid: bytes, kind: str) -> None:
    words, damage = BAD_IMAGES[kind]
    path = tmp_path / "it.ext4"
    path.write_bytes(damage(valid))
    refused(shared_host, bounded(shared_host, "image", "import", str(path), "--name", "evil"), words)


@pytest.mark.fault(34)
def test_an_image_larger_than_any_disk_is_refused_at_once(shared_host: Host, tmp_path: Path, valid: bytes) -> None:
    path = tmp_path / "it.ext4"
    path.write_bytes(valid)
    os.truncate(path, 2 << 40)
    refused(shared_host, bounded(shared_host, "image", "import", str(path), "--name", "evil"), "larger than any disk")


# Fields that only a kernel would trip over: the image is the guest's to mount.
LATENT: dict[str, Callable[[bytes], bytes]] = {
    "a link to a file of the host's": lambda image: image,
    "no inodes in a group": lambda image: with_field(image, 0x28, b"\0\0\0\0"),
    "no blocks in a group": lambda image: with_field(image, 0x20, b"\0\0\0\0"),
    "a first block far away": lambda image: with_field(image, 0x14, b"\xff\xff\xff\xff"),
    "descriptors of any size": lambda image: with_field(image, 0xFE, b"\xff\xff"),
    "unknown features": lambda image: with_field(image, 0x60, b"\xff\xff\xff\xff"),
    "a huge journal": lambda image: with_field(image, 0x10C, b"\xff" * 68),
    "rubbish behind the superblock": lambda image: image[:2048] + random.Random(34).randbytes(64 * 1024) + image[2048 + 64 * 1024 :],
}  # fmt: skip


@pytest.mark.fault(34)
@pytest.mark.parametrize("kind", LATENT)
def test_the_host_never_mounts_what_it_imports(shared_host: Host, tmp_path: Path, valid: bytes, kind: str) -> None:
    """Import and create, and every program that they start, under strace: no mount, and no tool that reads ext4."""
    path, log = tmp_path / "it.ext4", tmp_path / "strace"
    path.write_bytes(LATENT[kind](valid))
    shadow = Path("/etc/shadow").stat()
    for arguments in (
        ("image", "import", str(path), "--name", "evil"),
        ("create", "evil", "--image", "evil", "--disk", "256"),
    ):
        argv = ["strace", "-f", "-qq", "-A", "-o", str(log), "-e", f"trace={','.join(MOUNTS)},execve", *VMM, *arguments]
        done = shared_host.run(*argv, check=False, env=shared_host.environment)
        assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    programs = [match[1] for line in lines if (match := re.search(r'execve\("([^"]+)"', line))]
    assert len(programs) >= 2
    assert [line for line in lines if "execve(" not in line and re.search(rf"\b({'|'.join(MOUNTS)})\(", line)] == []
    assert [name for name in programs if Path(name).name.startswith(FORBIDDEN)] == []
    # It is copied byte for byte, and not so much as looked at beyond its superblock.
    assert (shared_host.data_dir / "images/rootfs/evil/rootfs.ext4").read_bytes() == path.read_bytes()
    assert Path("/etc/shadow").stat() == shadow
    shared_host.vmm("delete", "evil")
