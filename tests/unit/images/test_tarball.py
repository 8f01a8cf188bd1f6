"""Archives: what GNU tar writes is read as GNU tar reads it; whatever else comes, nothing but a refusal comes of it."""

import contextlib
import hashlib
import io
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.errors import ImageError
from vmm.images import sources
from vmm.images.packed import packing_of
from vmm.images.sparse import BadArchive
from vmm.images.tarball import TarReader, shown
from vmm.images.unpack import room_for_tree, unpack


class Silent:
    def note(self, text: str) -> None:
        pass

    def step(self, title: str) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()


def unpacked(archive: Path, tree: Path) -> Path:
    unpack(archive, packing_of(archive.read_bytes()[:8]), tree, progress=Silent())
    return tree


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def facts(top: Path) -> dict[str, tuple[object, ...]]:
    """Return all that is to be known of what lies below a directory, but for its own times."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        info = path.lstat()
        what: object = None
        if path.is_symlink():
            what = path.readlink()
        elif path.is_file():
            what = (info.st_size, info.st_blocks * 512 < info.st_size, digest(path))
        names = os.listxattr(path, follow_symlinks=False)
        marks = {key: os.getxattr(path, key, follow_symlinks=False) for key in names if key.startswith("user.")}
        times = (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns // 10**9, info.st_nlink)
        found[str(path.relative_to(top))] = (*times, what, marks)
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with everything that a tar can say."""
    top = tmp_path_factory.mktemp("source")
    (top / "a/b").mkdir(parents=True)
    (top / "a/plain").write_bytes(os.urandom(70_001))
    os.link(top / "a/plain", top / "a/b/hard")
    (top / "a/link").symlink_to("../nowhere")
    (top / "a/far").symlink_to("/etc/" + "x" * 180)
    os.mkfifo(top / "a/fifo")
    deep = top / "a" / Path(*["d" * 50] * 7)
    deep.mkdir(parents=True)
    (deep / ("f" * 160)).write_text("deep")
    (top / "a/-rf").write_text("")
    (top / "a/new\nline \xfc").write_text("odd")
    Path(os.fsdecode(os.fsencode(top / "a") + b"/latin \xfc")).write_text("older")
    (top / "a/plain").chmod(0o4755)
    (top / "a/b").chmod(0o2750)
    with (top / "a/sparse").open("wb") as made:
        for number in range(60):
            made.seek(number * 300_000)
            made.write(os.urandom(4096))
    with (top / "a/hole").open("wb") as made:
        made.truncate(1 << 26)
    os.utime(top / "a/-rf", ns=(0, -2_500_000_000))
    for path in (top / "a/plain", top / "a/b"):
        os.setxattr(path, "user.note", b"one=1\n\0two")
    return top


FORMATS = ["gnu", "gnu -S", "oldgnu -S", "posix", "posix -S --sparse-version=0.0", "posix -S --sparse-version=0.1",
           "posix -S --sparse-version=1.0 --xattrs", "ustar", "posix -S --gzip", "posix -S --xz", "posix -S --bzip2",
           "posix -S --zstd"]  # fmt: skip


@pytest.mark.parametrize("options", FORMATS)
def test_what_gnu_tar_writes_is_read_as_gnu_tar_reads_it(source: Path, tmp_path: Path, options: str) -> None:
    archive, theirs = tmp_path / "t.tar", tmp_path / "theirs"
    theirs.mkdir()
    argv = ["tar", "-cf", str(archive), *f"--format={options}".split(), "-C", str(source)]
    if "-S" not in options:
        argv += ["--exclude=sparse", "--exclude=hole"]
    if "ustar" in options:
        argv += ["--exclude=ddd*", "--exclude=far", "--exclude=-rf"]
    subprocess.run([*argv, "."], check=True)
    subprocess.run(["tar", "-xpf", archive, "-C", theirs, "--xattrs"], check=True, stderr=subprocess.DEVNULL)
    ours = unpacked(archive, tmp_path / "ours")
    assert facts(ours) == facts(theirs)
    assert len(facts(ours)) >= 8


def test_what_python_writes_is_read(source: Path, tmp_path: Path) -> None:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        archive = tmp_path / "t.tar"
        with tarfile.open(archive, "w", format=form) as made:
            made.add(source / "a/plain", "plain")
            made.add(source / "a/b", "dir", recursive=False)
        found = facts(unpacked(archive, tmp_path / str(form)))
        assert found["plain"][5] == (70_001, False, digest(source / "a/plain"))
        assert stat.S_IMODE(found["dir"][0]) == 0o2750


def build(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for member in members:
            info, content = member if isinstance(member, tuple) else (member, b"")
            info.size = info.size or len(content)
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def with_header(data: bytes, at: int, value: bytes) -> bytes:
    """Return an archive whose first header is changed, with a checksum that is right again."""
    block = bytearray(data[:512])
    block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data[512:]


def sparse_form_1(content: bytes) -> bytes:
    told = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "f", "GNU.sparse.realsize": "2000"}
    return build((member("x", pax_headers=told), content))


def sparse_form_0(table: str) -> bytes:
    told = {"GNU.sparse.map": table, "GNU.sparse.size": "2000", "GNU.sparse.numblocks": "1"}
    return build((member("f", pax_headers=told), b"c" * 512))


PLAIN = build((member("f"), b"content"))
MALFORMED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "nothing": ("cut off", lambda: b""),
    "no end": ("cut off", lambda: PLAIN[:1024]),
    "cut content": ("cut off", lambda: PLAIN[:600]),
    "cut header": ("cut off", lambda: PLAIN[:300]),
    "only an end": ("no entry", lambda: b"\0" * 10240),
    "checksum": ("checksum", lambda: PLAIN[:10] + b"!" + PLAIN[11:]),
    "no octal size": ("is no number", lambda: with_header(PLAIN, 124, b"12 3456789\0")),
    "negative size": ("where none can be", lambda: with_header(PLAIN, 124, b"\xff" * 12)),
    "endless size": ("room|cut off", lambda: with_header(PLAIN, 124, b"\x80" + b"\x7f" * 11)),
    "owner -1": ("has the owner", lambda: with_header(PLAIN, 108, b"\x80\0\0\0\xff\xff\xff\xff")),
    "unknown kind": ("kind that vmm does not know", lambda: with_header(PLAIN, 156, b"M")),
    "dump directory": ("kind that vmm does not know", lambda: with_header(PLAIN, 156, b"D")),
    "sized link": ("symbolic link with a size", lambda: build((member("l", type=b"2", linkname="x"), b"y" * 512))),
    "sized directory": ("directory with a size", lambda: build((member("d/", type=b"0"), b"y" * 512))),
    "sized hard link": ("hard link with a size", lambda: with_header(PLAIN, 156, b"1")),
    "huge header": ("header of", lambda: with_header(with_header(PLAIN, 124, b"00040000000\0"), 156, b"x")),
    "huge name": ("header of", lambda: with_header(with_header(PLAIN, 124, b"77777777777\0"), 156, b"L")),
    "record without equals": ("pax header", lambda: pax(b"10 abcdef\n")),
    "record too long": ("pax header", lambda: pax(b"99 a=bcde\n")),
    "record too short": ("pax header", lambda: pax(b"5 a=bcdef\n")),
    "record of nothing": ("pax header", lambda: pax(b"0 a=b\n")),
    "record without length": ("pax header", lambda: pax(b"a=b\n")),
    # Its second one has no space within the letters that a length may have.
    "record without a space": ("pax header", lambda: pax(b"11 path=a/\n" + b"\0" * 20)),
    "record shorter than its length": ("pax header", lambda: pax(b"2 a=b\n")),
    "record that ends in its length": ("pax header", lambda: pax(b"10 a=b\n" + b"\n" * 30)),
    "digits without end": ("pax header", lambda: pax(b"1" * 100_000)),
    "path with a zero": ("zero byte", lambda: pax(b"15 path=a\0../b\n")),
    "time that is none": ("time", lambda: build(member("f", pax_headers={"mtime": "1e400"}))),
    "size that is none": ("is no number", lambda: build(member("f", pax_headers={"size": "0x10"}))),
    "owner that is none": ("is no number", lambda: build(member("f", pax_headers={"uid": "-1"}))),
    "sparse overlap": ("overlap", lambda: sparse_form_0("0,300,200,212")),
    "sparse beyond": ("beyond its end", lambda: sparse_form_0("1900,512")),
    "sparse too little": ("are stored", lambda: sparse_form_0("0,100")),
    "sparse odd": ("map is damaged", lambda: sparse_form_0("0,512,3")),
    "sparse words": ("is no number", lambda: sparse_form_0("0,x")),
    "sparse unknown": ("form that vmm", lambda: build(member("f", pax_headers={"GNU.sparse.major": "2"}))),
    "sparse map too long": ("longer than its content", lambda: sparse_form_1(b"900\n" + b"0\n0\n" * 127)),
    "sparse many": ("pieces", lambda: sparse_form_1(b"999999999\n" + b"0\n" * 300)),
    "sparse map digits": ("map is damaged", lambda: sparse_form_1(b"1" * 600)),
}  # fmt: skip


def pax(records: bytes) -> bytes:
    """Return an archive with a pax header of exactly these bytes."""
    head = with_header(member("h", size=len(records)).tobuf(tarfile.USTAR_FORMAT), 156, b"x")
    return head + records + b"\0" * (-len(records) % 512) + PLAIN


@pytest.mark.fault(8)
@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_malformed_is_refused(tmp_path: Path, kind: str) -> None:
    words, make = MALFORMED[kind]
    archive = tmp_path / "t.tar"
    archive.write_bytes(make())
    with pytest.raises(ImageError, match="is refused") as caught:
        unpacked(archive, tmp_path / "tree")
    assert any(word in caught.value.details for word in words.split("|")), caught.value.details


@pytest.mark.fault(8)
def test_a_header_that_leads_nowhere_is_no_loop(tmp_path: Path) -> None:
    code = "import sys; from test_tarball import *; print(read_through(pax(b'11 path=a/\\n' + b'\\0' * 20)))"
    argv = [sys.executable, "-c", f"import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30,) * 2); {code}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, env=environment, check=False)
    assert done.stdout == "False\n", done.stderr[-500:]


@pytest.mark.fault(9)
def test_what_is_kept_of_directories_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is kept as it is, not in parts: 240 levels of one letter would take thirty times as much."""
    deep = "/".join("d" * 240)
    many = [member(f"{deep}/{number}", type=tarfile.DIRTYPE, mode=0o700, mtime=number) for number in range(60)]
    archive = tmp_path / "t.tar"
    archive.write_bytes(build(*many, *many))
    (top := tmp_path / "one").mkdir()
    assert (unpacked(archive, tmp_path / "tree") / deep / "7").stat().st_mtime == 7
    # The same directory twice counts once.
    monkeypatch.setattr("vmm.images.unpack._MOST_PATHS_BYTES", 60 * 482)
    unpacked(archive, top / "tree")
    monkeypatch.setattr("vmm.images.unpack._MOST_PATHS_BYTES", 50 * 480)
    with pytest.raises(ImageError, match="is refused") as caught:
        unpacked(archive, tmp_path / "other")
    assert "paths of its directories" in caught.value.details


@pytest.mark.parametrize("form", ["v7", "ustar"])
def test_a_tar_is_known_by_its_first_header(tmp_path: Path, form: str) -> None:
    """The oldest form has no mark but its checksum; and a first file may be called as a packed archive begins."""
    (tmp_path / "in/BZh").mkdir(parents=True)
    (tmp_path / "in/BZh/etc").write_text("x")
    archive = tmp_path / "t.tar"
    subprocess.run(["tar", f"--format={form}", "-cf", archive, "-C", tmp_path / "in", "BZh"], check=True)
    assert sources.kind_of(archive) is sources.Kind.TAR
    sources.convert(
        archive,
        sources.Kind.TAR,
        tmp_path / "out",
        work=tmp_path,
        size_mib=8,
        progress=Silent(),  # type: ignore[arg-type]
    )
    assert (tmp_path / "tree/BZh/etc").read_text() == "x"


@pytest.mark.fault(8)
def test_damaged_archives_give_nothing_but_refusals(source: Path, tmp_path: Path) -> None:
    """Random bytes of good archives are changed, headers' above all; every outcome is success or a refusal."""
    originals = []
    for options in ("gnu -S", "oldgnu -S", "posix -S --sparse-version=0.0", "posix -S --sparse-version=1.0 --xattrs"):
        archive = tmp_path / "t.tar"
        argv = ["tar", "-cf", str(archive), *f"--format={options}".split(), "-C", str(source), "--exclude=hole", "."]
        subprocess.run(argv, check=True)
        originals.append(archive.read_bytes())
    refused = 0
    for case in range(300):
        dice = random.Random(case)
        data = bytearray(dice.choice(originals))
        headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
        start = dice.choice(headers)
        for _ in range(dice.randint(1, 4)):
            data[start + dice.randrange(1024)] = dice.choice([0, 32, 47, 46, 48, 55, 128, 255, dice.randrange(256)])
        if dice.random() < 0.7:  # else the checksum would see it, mostly
            data[start : start + 512] = with_header(bytes(data[start : start + 512]), 0, b"")[:512]
        refused += not read_through(bytes(data))
    assert 50 < refused < 300


def read_through(data: bytes) -> bool:
    reader = TarReader(io.BytesIO(data))
    try:
        for entry in reader:
            if entry.size < 1 << 32:
                for _ in reader.content():
                    pass
    except BadArchive:
        return False
    return True


@pytest.mark.fault(9)
def test_what_may_be_taken_leaves_room_for_the_image_and_the_host(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert room_for_tree(tmp_path) < free / 2


@pytest.mark.fault(8)
def test_names_are_shown_so_that_no_terminal_obeys_them() -> None:
    said = shown(b"\x1b]0;evil\x07\xff\xe2\x80\xae" + b"x" * 500)
    assert said.isascii()
    assert said.isprintable()
    assert len(said) < 220
