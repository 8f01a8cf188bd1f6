"""What is given as an image: known formats that are none are named, and what an ext4 file system holds is read."""

import contextlib
import gzip
import os
import random
import re
import struct
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import pytest

from vmm.errors import ImageError
from vmm.images import inside, lacks, sources, trees
from vmm.images.inside import FileSystem, UnreadableError
from vmm.images.lacks import shortcomings


class Notes(list[str]):
    def note(self, text: str) -> None:
        self.append(text)

    @contextlib.contextmanager
    def step(self, _title: str) -> Iterator[None]:
        yield


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
    wants = tree / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "ssh.service").symlink_to("/lib/systemd/system/ssh.service")
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
        (0, b"\x3a\xff\x26\xed", "Android sparse image"),
        (0, b"070707", "cpio"),
        (0, b"070702", "cpio"),
        (0, b"\xc7\x71", "cpio"),
        (0, b"LABELONE", "LVM"),
        (65526, b"SWAPSPACE2", "swap"),
        (65588, b"ReIsEr2Fs", "ReiserFS"),
        (4096, b"\xfc\x4e\x2b\xa9", "RAID"),
        (0, b"PK\x05\x06", "zip"),
        (0, b"Rar!\x1a\x07", "RAR"),
        (0, b"<!DOCTYPE html>", "page of the web"),
        (0, b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (0, b"\xfd7zXZ\0", "packed twice"),
    ],
)
@pytest.mark.fault(47)
def test_what_is_no_root_file_system_is_named(tmp_path: Path, offset: int, magic: bytes, words: str) -> None:
    path = tmp_path / "a file"
    content = bytearray(80 * 1024)
    content[offset : offset + len(magic)] = magic
    path.write_bytes(content)
    if words != "packed twice":
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


def a_disk(label: str, root: bytes, kind: str = "0fc63daf-8483-4772-8e79-3d69d8477de4") -> bytes:
    """Return a disk whose second partition (of an MBR: the one that is told) is `root`, behind one for EFI."""
    sector = 4096 if label == "gpt 4096" else 512
    start, efi = 2048 * 8 * 512 // sector, 1024 * 1024 // sector
    content = bytearray(start * sector + len(root) + 1024 * 1024)
    content[510:512] = b"\x55\xaa"
    if label.startswith("dos"):
        content[446:462] = struct.pack("<4sB3sII", b"", 0xEF, b"", efi, 2048)
        content[462:478] = struct.pack("<4sB3sII", b"", 0x83, b"", start, len(root) // 512)
        if label == "dos logical":
            content[462:478] = struct.pack("<4sB3sII", b"", 0x05, b"", 4096, start + len(root) // 512 - 4096)
            at = 4096 * 512
            content[at + 446 : at + 462] = struct.pack("<4sB3sII", b"", 0x82, b"", 1, 2048)
            content[at + 462 : at + 478] = struct.pack(
                "<4sB3sII", b"", 0x05, b"", 4096, start + len(root) // 512 - 8192
            )
            content[at + 510 : at + 512] = b"\x55\xaa"
            at = 8192 * 512
            content[at + 446 : at + 462] = struct.pack("<4sB3sII", b"", 0x83, b"", start - 8192, len(root) // 512)
            content[at + 510 : at + 512] = b"\x55\xaa"
    else:
        first = 300 if label == "gpt far" else 2
        content[446:462] = struct.pack("<4sB3sII", b"", 0xEE, b"", 1, 0xFFFFFFFF)
        content[sector : sector + 8] = b"EFI PART"
        struct.pack_into("<QII", content, sector + 72, first, 128, 128)
        kinds = ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", kind)
        ends = ((efi, efi + 255), (start, start + len(root) // sector - 1))
        for number, (guid, (low, high)) in enumerate(zip(kinds, ends, strict=True)):
            entry = struct.pack("<16s16sQQ", uuid.UUID(guid).bytes_le, b"x" * 16, low, high)
            at = first * sector + 128 * number
            content[at : at + len(entry)] = entry
    content[start * sector : start * sector + len(root)] = root
    return bytes(content)


@pytest.mark.fault(47)
@pytest.mark.parametrize("label", ["dos", "dos logical", "gpt", "gpt 4096", "gpt far", "gpt of another type"])
def test_a_partitioned_disk_is_named_and_its_root_can_be_taken_out(tmp_path: Path, label: str) -> None:
    disk = tmp_path / "disk"
    root = made(tmp_path / "root", a_root(tmp_path / "tree"), size="20M").read_bytes()
    kind = {"gpt of another type": "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"}.get(label)  # Windows' own data
    disk.write_bytes(a_disk(label, root, kind) if kind else a_disk(label, root))
    error = refusal(disk)
    assert ("MBR" if label.startswith("dos") else "GPT") in error.details
    assert f"partition {6 if label == 'dos logical' else 2}" in error.details
    assert "no ext4" not in error.details
    command = error.resolution.removeprefix("Take the partition out: ").partition(";")[0]
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "root.ext4").read_bytes() == root


@pytest.mark.fault(47)
@pytest.mark.parametrize(
    ("kind", "offset", "magic", "words"),
    [
        ("0fc63daf-8483-4772-8e79-3d69d8477de4", 0, b"XFSB", "but an XFS file system"),
        ("e6d6d379-f507-44c2-a23c-238f2a3df928", 512, b"LABELONE", "but a physical volume of LVM"),
        ("ca7d7ccb-63ed-4c53-861c-1742536059cc", 0, b"LUKS\xba\xbe", "but an encrypted disk"),
    ],
)
def test_what_a_partition_holds_in_place_of_ext4_is_named(
    tmp_path: Path, kind: str, offset: int, magic: bytes, words: str
) -> None:
    content = bytearray(1024 * 1024)
    content[offset : offset + len(magic)] = magic
    (tmp_path / "disk").write_bytes(a_disk("gpt", bytes(content), kind))
    error = refusal(tmp_path / "disk")
    assert words in error.details
    assert "dd " not in error.resolution


@pytest.mark.fault(47)
def test_partition_tables_that_mean_harm_have_an_end(tmp_path: Path) -> None:
    """A chain of logical partitions that leads to itself; tables, and partitions, further away than any file."""
    loop = bytearray(64 * 1024)
    for at in (0, 8 * 512):
        loop[at + 446 : at + 462] = struct.pack("<4sB3sII", b"", 0x05, b"", 8, 100)
        loop[at + 462 : at + 478] = struct.pack("<4sB3sII", b"", 0x05, b"", 0, 100)
        loop[at + 510 : at + 512] = b"\x55\xaa"
    (tmp_path / "loop").write_bytes(loop)
    assert "MBR" in refusal(tmp_path / "loop").details
    far = bytearray(a_disk("gpt", bytes(1024 * 1024)))
    for first, count, size in ((2**64 - 1, 2**32 - 1, 128), (2, 2**32 - 1, 2**32 - 1), (2, 128, 0)):
        struct.pack_into("<QII", far, 512 + 72, first, count, size)
        (tmp_path / "far").write_bytes(far)
        assert "GPT" in refusal(tmp_path / "far").details
    struct.pack_into("<QII", far, 512 + 72, 2, 128, 128)
    struct.pack_into("<QQ", far, 1024 + 128 + 32, 2**62, 2**63)
    (tmp_path / "far").write_bytes(far)
    assert "no ext4" in refusal(tmp_path / "far").details


@pytest.mark.parametrize("command", [["lz4", "-q"], ["xz", "--format=lzma"]])
def test_a_tar_is_taken_however_it_is_packed(tmp_path: Path, command: list[str]) -> None:
    tree = a_root(tmp_path / "tree")
    tar = subprocess.run(["tar", "-C", str(tree), "-c", "."], check=True, capture_output=True).stdout
    packed = tmp_path / "it"
    packed.write_bytes(subprocess.run([*command, "-c"], input=tar, check=True, capture_output=True).stdout)
    assert sources.kind_of(packed) is sources.Kind.TAR
    notes = Notes()
    out, work = tmp_path / "out", tmp_path / "work"
    work.mkdir()
    sources.convert(packed, sources.Kind.TAR, out, work=work, size_mib=None, progress=notes)  # type: ignore[arg-type]
    assert shortcomings(out) == []


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
    assert "docker save" in refused(repositories="{}", abc__layer_dot_tar="x", abc__VERSION="1.0")
    assert "docker save" in refused(top__manifest_dot_json="[]")
    assert "OCI layout" in refused(top__index_dot_json="{}", top__blobs__sha256__a="x")
    assert "LXC or Incus" in refused(metadata_dot_yaml="x", templates__hostname="x")
    assert "debootstrap" in refused(debootstrap__base="x", var__cache__apt__archives__a_dot_deb="x")
    roots = {"a__etc__x": "", "a__usr__x": "", "b__etc__x": "", "b__bin__x": ""}
    assert "several root file systems: 'a', 'b'" in refused(**roots)


def test_a_root_one_directory_down_is_taken(tmp_path: Path) -> None:
    root = a_root(tmp_path / "top" / "rootfs")
    notes = Notes()
    assert trees.root_of(tmp_path / "top", name="x", progress=notes) == root  # type: ignore[arg-type]
    assert "rootfs/" in notes[0]
    # Further down too; what is left out is said, as no terminal obeys it.
    (tmp_path / "far/a/b").mkdir(parents=True)
    deep = a_root(tmp_path / "far/a/b/c")
    (tmp_path / "far/README").touch()
    (tmp_path / "far/a/\x1b[2J").touch()
    assert trees.root_of(tmp_path / "far", name="x", progress=notes) == deep  # type: ignore[arg-type]
    assert "below a/b/c/" in notes[1]
    assert "left out: '\\x1b[2J', 'README'" in notes[1]
    # A root is not left for a directory of it, nor anything through a link.
    assert trees.root_of(root, name="x", progress=notes) == root  # type: ignore[arg-type]
    (tmp_path / "ostree/usr/etc").mkdir(parents=True)
    (tmp_path / "ostree/usr/bin").mkdir()
    assert trees.root_of(tmp_path / "ostree", name="x", progress=notes) == tmp_path / "ostree"  # type: ignore[arg-type]
    (tmp_path / "link").mkdir()
    (tmp_path / "link/rootfs").symlink_to(root)
    assert trees.root_of(tmp_path / "link", name="x", progress=notes) == tmp_path / "link"  # type: ignore[arg-type]


@pytest.mark.fault(47)
def test_what_may_hold_the_root_is_named_where_there_is_none(tmp_path: Path) -> None:
    subprocess.run(["tar", "-C", str(a_root(tmp_path / "root")), "-cf", str(tmp_path / "root.tar"), "."], check=True)
    disk = bytearray(80 * 1024)
    disk[510:512] = b"\x55\xaa"
    image = made(tmp_path / "image", tmp_path / "root").read_bytes()
    for number, content in enumerate(((tmp_path / "root.tar").read_bytes(), gzip.compress(b"x"), image, disk, b"hsqs")):
        tree = tmp_path / str(number)
        tree.mkdir()
        (tree / "the file").write_bytes(content)
        (tree / "metadata.yaml").write_text("x")
        os.mkfifo(tree / "a FIFO")
        with pytest.raises(ImageError) as caught:
            trees.root_of(tree, name="x", progress=Notes())  # type: ignore[arg-type]
        assert "may hold one: 'the file'." in caught.value.details


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


@pytest.mark.fault(47)
def test_what_may_be_missing_is_not_told_and_what_systemd_waits_for_is(tmp_path: Path) -> None:
    tree = a_root(tmp_path / "tree")
    uuid_of = "UUID=11111111-2222-3333-4444-555555555555"
    (tree / "etc/fstab").write_text(
        f"\t# x\n{uuid_of}\t/a\text4\tdefaults,nofail,x-systemd.automount\t0\t2\n/dev/sdb1 /b xfs noauto 0 0\n"
        "LABEL=my\\040disk /c ext4 defaults 0 0\n/dev/disk/by-label/my\\x20disk /d ext4 defaults 0 0\n"
        "/srv/x /e none bind 0 0\nserver:/f /f nfs _netdev 0 0\n/dev/mapper/gone /g ext4 nofailing 0 0\n"
    )
    (tree / "etc/crypttab").write_text(
        f"# x\ndata {uuid_of} none luks\nspare /dev/sdc1 none luks,noauto\n\x1b[2J /dev/sdd1\nfile /srv/x none\n"
    )
    units = tree / "etc/systemd/system"
    for name in ("local-fs.target.wants", "swap.target.requires"):
        (units / name).mkdir(parents=True)
    (units / "data.mount").write_text("[Mount]\n What = /dev/sdb1 \nWhere=/data\n")
    (units / "other.mount").write_text("[Mount]\nWhat=/dev/sde1\nWhere=/other\n")  # not enabled
    (units / "tmp.mount").write_text("[Mount]\nWhat=tmpfs\nWhere=/tmp\n")
    (units / "dev-sda2.swap").write_text("[Swap]\nWhat=LABEL=swap\n")
    for place, name in (("local-fs.target.wants", "data.mount"), ("local-fs.target.wants", "tmp.mount"),
                        ("local-fs.target.wants", "gone.mount"), ("swap.target.requires", "dev-sda2.swap")):  # fmt: skip
        (units / place / name).symlink_to(f"../{name}")
    fstab, mounts = shortcomings(made(tmp_path / "image", tree, "-L", "my disk"))
    assert "names what no machine has: /dev/mapper/gone ('/g')." in fstab
    assert "no machine has: data.mount (/dev/sdb1), dev-sda2.swap (LABEL=swap)." in mounts
    # crypttab counts where systemd reads it.
    generators = tree / "usr/lib/systemd/system-generators"
    generators.mkdir()
    (generators / "systemd-cryptsetup-generator").write_text("x")
    _, crypttab, _ = shortcomings(made(tmp_path / "image", tree, "-L", "my disk"))
    assert f"no machine has: {uuid_of} ('data'), /dev/sdd1 ('\\x1b[2J')." in crypttab


@pytest.mark.fault(47)
@pytest.mark.parametrize(("order", "number", "told"), [
    ("little", 183, "aarch64"), ("big", 22, "s390x"), ("little", 999, "number 999"), ("little", 62, ""), ("little", 3, ""),
])  # fmt: skip
def test_programs_for_another_kind_of_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Literal["little", "big"], number: int, told: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    tree = a_root(tmp_path / "tree")
    head = b"\x7fELF\x02" + (b"\1" if order == "little" else b"\2") + bytes(10) + b"\2\0" + number.to_bytes(2, order)
    (tree / "usr/lib/systemd/systemd").write_bytes(head)
    found = shortcomings(made(tmp_path / "image", tree))
    assert [f"another kind of CPU ({told}" in line for line in found] == [True] * bool(told)
    # An init that is a script says nothing; its shell does.
    (tree / "usr/lib/systemd/systemd").write_text("#!/bin/sh\n")
    (tree / "bin").mkdir()
    (tree / "bin/sh").write_bytes(head)
    assert shortcomings(made(tmp_path / "image", tree)) == found


@pytest.mark.fault(47)
@pytest.mark.parametrize(
    ("place", "is_started"),
    [
        ("etc/systemd/system/sockets.target.wants/ssh.socket", True),
        ("usr/lib/systemd/system/multi-user.target.wants/sshd.service", True),
        ("etc/systemd/system/multi-user.target.requires/sshd@22.service", True),
        ("etc/systemd/system/multi-user.target.wants/ssh-agent.service", False),
        ("etc/systemd/system/ssh.service", False),
        ("etc/systemd/system/multi-user.target.wants/lost.service", False),
    ],
)
def test_an_ssh_server_that_no_unit_starts(tmp_path: Path, place: str, is_started: bool) -> None:
    tree = a_root(tmp_path / "tree")
    (tree / "etc/systemd/system/multi-user.target.wants/ssh.service").unlink()
    (tree / place).parent.mkdir(parents=True, exist_ok=True)
    (tree / place).symlink_to("/lib/systemd/system/some.service")
    found = shortcomings(made(tmp_path / "image", tree))
    assert ["No unit starts its ssh server" in line for line in found] == [True] * (not is_started)


@pytest.mark.fault(47)
def test_a_first_stage_and_a_layer_are_told(tmp_path: Path) -> None:
    tree = a_root(tmp_path / "tree")
    (tree / "debootstrap").mkdir()
    (tree / "debootstrap/debootstrap").touch()
    (tree / "etc/.wh.passwd\x1b").touch()
    notes = Notes()
    given = {"work": tmp_path, "size_mib": None, "progress": notes}
    sources.convert(tree, sources.Kind.DIRECTORY, tmp_path / "image", **given)  # type: ignore[arg-type]
    assert "one layer of a container's image" in notes[0]
    assert "'etc/.wh.passwd\\x1b'" in notes[0]
    assert "--second-stage" in shortcomings(tmp_path / "image")[0]
    (tree / "etc/.wh.passwd\x1b").unlink()
    assert sources._content(tree).whiteout == ""
    os.mknod(tree / "etc/gone", 0o20000, 0)  # as overlayfs marks it
    assert sources._content(tree).whiteout == "etc/gone"


@pytest.mark.fault(47)
@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (0x60, b"\xc2\x02\x04", "incompat 0x40000"),
        (0x60, b"\xca\x02", "incompat 0x8"),
        (0x64, b"\x6b\x54", "ro_compat 0x5000"),
        (0xE0, b"\0\0\0\0\x01", "journal on another disk"),
        (0x3A, b"\x03", "marked as damaged"),
    ],
)
def test_what_a_kernel_may_not_mount_is_told(tmp_path: Path, offset: int, value: bytes, words: str) -> None:
    image = made(tmp_path / "image", a_root(tmp_path / "tree"))
    with image.open("r+b") as stream:
        stream.seek(1024 + offset)
        stream.write(value)
    (told,) = shortcomings(image)
    assert words in told


def test_what_newer_tools_make_and_kernels_mount_is_not_told(tmp_path: Path) -> None:
    tree = a_root(tmp_path / "tree")
    for options in ("orphan_file", "encrypt,casefold,verity", "quota,project,inline_data", "bigalloc", "^has_journal"):
        assert shortcomings(made(tmp_path / "image", tree, "-O", options, size="64M")) == [], options
    large = shortcomings(made(tmp_path / "image", tree, "-b", "65536", size="64M"))
    assert "blocks of 65536 bytes" in large[0]
    grouped = shortcomings(made(tmp_path / "image", tree, "-O", "meta_bg,^resize_inode"))
    assert "not looked at" in grouped[0]


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
    assert lacks.INITS[0] == "/sbin/init"
