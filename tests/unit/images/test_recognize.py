"""What is given as an image: known formats that are none are named, and what an ext4 file system holds is read."""

import gzip
import random
import re
import struct
import subprocess
from pathlib import Path
from typing import BinaryIO

import pytest

from vmm.errors import ImageError
from vmm.images import inside, sources, trees
from vmm.images.inside import FileSystem, UnreadableError, shortcomings


class Notes(list[str]):
    def note(self, text: str) -> None:
        self.append(text)


def made(path: Path, tree: Path, *options: str, size: str = "16M") -> Path:
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", *options, "-d", str(tree), str(path), size]
    subprocess.run(argv, check=True, capture_output=True)
    return path


def a_root(tree: Path) -> Path:
    for name in ("etc", "usr/sbin", "usr/lib/systemd", "dev"):
        (tree / name).mkdir(parents=True)
    (tree / "sbin").symlink_to("usr/sbin")
    (tree / "usr/sbin/init").symlink_to("/lib/systemd/systemd")
    (tree / "lib").symlink_to("usr/lib")
    for program in ("usr/lib/systemd/systemd", "usr/sbin/sshd"):
        (tree / program).write_text("x")
        (tree / program).chmod(0o755)
    return tree


def refusal(path: Path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        sources.kind_of(path)
    return caught.value


@pytest.mark.parametrize(
    ("offset", "magic", "words"),
    [
        (0, b"QFI\xfb\0\0\0\3", "qcow2"),
        (0, b"KDMV\1\0\0\0", "VMDK"),
        (0, b"# Disk DescriptorFile\n", "VMDK"),
        (64, b"\x7f\x10\xda\xbe", "VDI"),
        (0, b"conectix", "VHD"),
        (0, b"vhdxfile", "VHDX"),
        (0, b"hsqs", "squashfs"),
        (0, b"XFSB", "XFS"),
        (65600, b"_BHRfS_M", "btrfs"),
        (32769, b"CD001", "ISO 9660"),
        (82, b"FAT32   ", "FAT"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (512, b"LABELONE", "LVM"),
        (4086, b"SWAPSPACE2", "swap"),
        (0, b"070701", "cpio"),
        (0, b"PK\x03\x04", "zip"),
        (0, b"!<arch>\n", "Debian package"),
        (0, b"\x7fELF", "kernel"),
    ],
)
@pytest.mark.fault(47)
def test_what_is_no_root_file_system_is_named(tmp_path: Path, offset: int, magic: bytes, words: str) -> None:
    path = tmp_path / "a file"
    content = bytearray(80 * 1024)
    content[offset : offset + len(magic)] = magic
    path.write_bytes(content)
    error = refusal(path)
    assert words in error.details
    assert error.resolution
    # Packed, it is named as well.
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(bytes(content)))
    error = refusal(packed)
    assert words in error.details
    assert "gzip -d" in error.resolution


def test_a_packed_ext4_is_named(tmp_path: Path) -> None:
    image = made(tmp_path / "image", a_root(tmp_path / "tree"))
    packed = tmp_path / "image.gz"
    packed.write_bytes(gzip.compress(image.read_bytes()))
    assert "ext4 file system that is packed" in refusal(packed).details


def test_ext3_is_named(tmp_path: Path) -> None:
    path = tmp_path / "old"
    subprocess.run(["mke2fs", "-q", "-t", "ext3", str(path), "8M"], check=True, capture_output=True)
    error = refusal(path)
    assert "ext3" in error.details
    # What is advised does it.
    for command in error.resolution.removeprefix("Make it one: ").split("; "):
        subprocess.run(command.split(), check=False, capture_output=True)
    assert sources.kind_of(path) is sources.Kind.EXT4


@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_a_partitioned_disk_is_named_and_its_root_can_be_taken_out(tmp_path: Path, label: str) -> None:
    disk = tmp_path / "disk"
    root = made(tmp_path / "root", a_root(tmp_path / "tree"), size="20M").read_bytes()
    start, efi = 2048 * 8, 2048
    content = bytearray(start * 512 + len(root) + 1024 * 1024)
    if label == "dos":
        content[446:462] = struct.pack("<4sB3sII", b"", 0xEF, b"", efi, 2048)
        content[462:478] = struct.pack("<4sB3sII", b"", 0x83, b"", start, len(root) // 512)
        content[510:512] = b"\x55\xaa"
    else:
        import uuid

        content[446:462] = struct.pack("<4sB3sII", b"", 0xEE, b"", 1, 0xFFFFFFFF)
        content[510:512] = b"\x55\xaa"
        content[512:520] = b"EFI PART"
        struct.pack_into("<QII", content, 512 + 72, 2, 128, 128)
        kinds = ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0fc63daf-8483-4772-8e79-3d69d8477de4")
        ends = ((efi, efi + 2047), (start, start + len(root) // 512 - 1))
        for number, (kind, (first, last)) in enumerate(zip(kinds, ends, strict=True)):
            struct.pack_into(
                "<16s16sQQ", content, 1024 + 128 * number, uuid.UUID(kind).bytes_le, b"x" * 16, first, last
            )
    content[start * 512 : start * 512 + len(root)] = root
    disk.write_bytes(content)
    error = refusal(disk)
    assert ("MBR" if label == "dos" else "GPT") in error.details
    assert "partition 2" in error.details
    assert "no ext4" not in error.details
    command = error.resolution.removeprefix("Take the partition out: ").partition(";")[0]
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "root.ext4").read_bytes() == root


def test_trees_that_are_none(tmp_path: Path) -> None:
    def refused(**files: str) -> str:
        tree = tmp_path / "_".join(["t", *files])[:40]
        tree.mkdir()
        for name, text in files.items():
            (tree / name.replace("__", "/")).parent.mkdir(parents=True, exist_ok=True)
            (tree / name.replace("__", "/").replace("_dot_", ".").replace("_dash_", "-")).write_text(text)
        with pytest.raises(ImageError) as caught:
            trees.root_of(tree, name="x", progress=Notes())  # type: ignore[arg-type]
        return caught.value.details

    assert "nothing in it" in refused()
    assert "OCI layout" in refused(oci_dash_layout="{}", index_dot_json="{}")
    assert "docker save" in refused(manifest_dot_json="[]", repositories="{}")
    assert "docker save" in refused(manifest_dot_json="[]", oci_dash_layout="{}")
    assert "OVA" in refused(machine_dot_ovf="<x/>")


def test_a_root_one_directory_down_is_taken(tmp_path: Path) -> None:
    root = a_root(tmp_path / "top" / "rootfs")
    notes = Notes()
    assert trees.root_of(tmp_path / "top", name="x", progress=notes) == root  # type: ignore[arg-type]
    assert "rootfs/" in notes[0]
    # A root is not left for a directory of it, nor anything through a link.
    assert trees.root_of(root, name="x", progress=notes) == root  # type: ignore[arg-type]
    (tmp_path / "link").mkdir()
    (tmp_path / "link/rootfs").symlink_to(root)
    assert trees.root_of(tmp_path / "link", name="x", progress=notes) == tmp_path / "link"  # type: ignore[arg-type]


def test_what_a_good_root_lacks_is_nothing(tmp_path: Path) -> None:
    assert shortcomings(made(tmp_path / "image", a_root(tmp_path / "tree"))) == []


@pytest.mark.fault(47)
def test_what_a_root_lacks_is_told(tmp_path: Path) -> None:
    tree = a_root(tmp_path / "tree")
    (tree / "usr/sbin/sshd").unlink()
    (tree / "etc/fstab").write_text(
        "# x\nUUID=11111111-2222-3333-4444-555555555555 / ext4 defaults 0 1\nLABEL=mine /x ext4 defaults 0 0\n"
        "/dev/disk/by-uuid/11-22 /boot/efi vfat defaults 0 1\n/dev/sda2 none swap sw 0 0\ntmpfs /tmp tmpfs nosuid 0 0\n"
        "UUID=aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee /y ext4 defaults 0 0\n/dev/vda /z ext4 defaults\n"
    )
    options = ("-L", "mine", "-U", "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee")
    ssh, fstab = shortcomings(made(tmp_path / "image", tree, *options))
    assert "no ssh server" in ssh
    names = ("UUID=11111111-2222-3333-4444-555555555555", "/dev/disk/by-uuid/11-22 ('/boot/efi')", "/dev/sda2")
    assert all(name in fstab for name in names), fstab
    assert not any(name in fstab for name in ("LABEL=mine", "tmpfs", "aaaaaaaa", "/dev/vda")), fstab
    (tree / "usr/lib/systemd/systemd").chmod(0o644)
    assert "no init" in shortcomings(made(tmp_path / "image", tree))[0]
    (tmp_path / "none").mkdir()
    assert "empty" in shortcomings(made(tmp_path / "image", tmp_path / "none"))[0]


@pytest.mark.parametrize(
    "options",
    [
        ("-O", "^64bit"),
        ("-O", "^extents,^64bit"),
        ("-O", "inline_data"),
        ("-b", "1024"),
        ("-I", "128"),
        ("-O", "^dir_index"),
    ],
)
def test_files_are_read_whatever_the_file_system_is_like(tmp_path: Path, options: tuple[str, ...]) -> None:
    tree = a_root(tmp_path / "tree")
    many = tree / "etc/many"
    many.mkdir()
    for number in range(700):
        (many / f"a-rather-long-name-of-a-file-{number}").write_text(str(number))
    content = random.Random(1).randbytes(300_000)
    (tree / "etc/large").write_bytes(content)
    (tree / "etc/link").symlink_to("../etc/many/../large")
    (tree / "etc/loop").symlink_to("loop")
    with made(tmp_path / "image", tree, *options, size="24M").open("rb") as stream:
        found = FileSystem(stream)
        assert len(found.names("/etc/many")) == 700
        assert found.read("/etc/many/a-rather-long-name-of-a-file-699") == b"699"
        assert found.read("/etc/link", most=200_000) == content[:200_000]
        assert found.read("/etc/loop") is None
        assert found.read("/etc/nothing") is None
        assert found.is_program("/sbin/init")


def inode_at(image: Path, path: str) -> int:
    """Return where in an image of mke2fs's a file's inode lies."""
    said = subprocess.run(["debugfs", "-R", f"imap {path}", str(image)], capture_output=True, text=True, check=True)
    found = re.search(r"located at block (\d+), offset 0x([0-9a-f]+)", said.stdout)
    told = subprocess.run(["dumpe2fs", "-h", str(image)], capture_output=True, text=True, check=True)
    size = re.search(r"Block size: +(\d+)", told.stdout)
    assert found is not None
    assert size is not None
    return int(found[1]) * int(size[1]) + int(found[2], 16)


@pytest.mark.fault(47)
def test_a_map_that_names_a_block_twice_is_not_read_over_and_over(tmp_path: Path) -> None:
    tree = a_root(tmp_path / "tree")
    (tree / "etc/fstab").write_bytes(b"#" * 900_000)
    image = made(tmp_path / "image", tree)
    content = bytearray(image.read_bytes())
    at = inode_at(image, "/etc/fstab") + 0x28
    extent = bytes(content[at + 12 : at + 24])
    struct.pack_into("<H", content, at + 2, 2)
    content[at + 24 : at + 36] = extent
    image.write_bytes(content)
    with image.open("rb") as stream, pytest.raises(UnreadableError, match="twice"):
        FileSystem(stream).read("/etc/fstab")


@pytest.mark.fault(47)
def test_links_that_lead_to_and_fro_have_an_end(tmp_path: Path) -> None:
    """40 links may be followed; each of these has hundreds of steps, and every step reads a directory."""
    tree = a_root(tmp_path / "tree")
    for number in range(700):
        (tree / f"etc/a-rather-long-name-of-a-file-{number}").write_text("")
    for number in range(39):
        (tree / f"{number}").symlink_to("etc/../" * 140 + f"{number + 1}")
    (tree / "39").write_text("the end")
    with made(tmp_path / "image", tree).open("rb") as stream:
        reader = Counting(stream)
        with pytest.raises(UnreadableError, match="more to be read"):
            FileSystem(reader).read("/0")  # type: ignore[arg-type]
    assert reader.calls <= inside._MOST_STEPS
    assert reader.bytes <= inside._MOST_BYTES


class Counting:
    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.calls, self.bytes, self.seek = stream, 0, 0, stream.seek

    def read(self, count: int) -> bytes:
        self.calls += 1
        self.bytes += count
        return self.stream.read(count)


def test_a_damaged_file_system_is_never_a_traceback(tmp_path: Path) -> None:
    image = made(tmp_path / "image", a_root(tmp_path / "tree"), size="8M")
    whole = image.read_bytes()
    dice = random.Random(47)
    used = [at for at in range(0, len(whole), 512) if any(whole[at : at + 512])]
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(20):
            content[dice.choice(used) + dice.randrange(512)] = dice.randrange(256)
        image.write_bytes(content[: dice.choice((len(content), 4096, 70_000))])
        shortcomings(image)
    assert issubclass(UnreadableError, Exception)
    assert inside.INITS[0] == "/sbin/init"
