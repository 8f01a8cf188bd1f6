"""What is given as a kernel: what is none is named, and what a machine needs is looked for in it."""

import struct
from pathlib import Path

import pytest
import tiny_kernel

from vmm.errors import ImageError
from vmm.images import vmlinux
from vmm.images.kernel_parts import parts_lacking

BANNER = b"Linux version 6.1.0-50-cloud-amd64 (x) #1\n\0"
DRIVERS = b"virtio-mmio\0virtio_blk\0virtio_net\0EXT4-fs (%s)\0"
NOTE = struct.pack("<III", 4, 8, 18) + b"Xen\0" + bytes(8)
WHOLE = BANNER + DRIVERS + b"serial8250\0initramfs\0" + NOTE


def lacking(tmp_path: Path, content: bytes, *modules: tuple[str, bytes], stage1: bool = True) -> list[str]:
    (tmp_path / "vmlinux").write_bytes(content)
    return parts_lacking(tmp_path / "vmlinux", modules, stage1=stage1)


@pytest.fixture(autouse=True)
def _on_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.mark.fault(47)
def test_what_a_kernel_lacks_is_told(tmp_path: Path) -> None:
    assert lacking(tmp_path, WHOLE) == []
    for mark, words in (
        (b"virtio-mmio", "no virtio_mmio (the bus that disks and network hang on)"),
        (b"EXT4-fs", "no ext4 (the root file system)"),
        (b"serial8250", "consoles stay empty"),
        (b"initramfs", "reads no initramfs"),
        (NOTE, "qemu does not"),
    ):
        (told,) = lacking(tmp_path, WHOLE.replace(mark, b"?"))
        assert words in told
    assert "not known" in lacking(tmp_path, b"\x7fELF" + bytes(100))[0]
    assert lacking(tmp_path, WHOLE.replace(b"initramfs", b"?"), stage1=False) == []


@pytest.mark.fault(47)
def test_modules_count_where_they_are_of_the_same_release(tmp_path: Path) -> None:
    magic = b"\x7fELF\0depends=\0vermagic=%s SMP preempt mod_unload \0"
    names = ("virtio_mmio.ko", "virtio_blk.ko", "virtio_net.ko", "ext4.ko")
    bare = WHOLE.replace(DRIVERS, b"")
    assert lacking(tmp_path, bare, *((name, magic % b"6.1.0-50-cloud-amd64") for name in names)) == []
    (told,) = lacking(tmp_path, bare, *((name, magic % b"6.1.0-49-cloud-amd64") for name in names))
    assert "is 6.1.0-50-cloud-amd64, and its modules are of 6.1.0-49-cloud-amd64" in told
    assert lacking(tmp_path, WHOLE, ("other.ko", b"no word of a version")) == []


def with_elf_type(number: int) -> bytes:
    content = bytearray(tiny_kernel.build())
    struct.pack_into("<H", content, 16, number)
    return bytes(content)


@pytest.mark.fault(47)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"MZ" + bytes(300) + b".linux\0\0" + bytes(5000), "unified kernel image"),
        (b"MZ\0\0zimg" + bytes(5000), "only EFI unpacks"),
        (b"\x27\x05\x19\x56" + bytes(5000), "U-Boot"),
        (b"ANDROID!" + bytes(5000), "Android"),
        (b"\x28\xb5\x2f\xfd" + bytes(5000), "packed (zstd)"),
        (b"070701" + bytes(5000), "cpio archive"),
        (b"!<arch>\ndebian-binary" + bytes(5000), "Debian package"),
        (with_elf_type(1), "a module of a kernel"),
        (with_elf_type(3), "a program, or a library"),
        (b"MZ" + bytes(54) + b"ARM\x64" + bytes(5000), "Image for arm64"),
    ],
)
def test_what_is_no_kernel_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    kernel = tmp_path / "it's one"
    kernel.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        vmlinux.extract_vmlinux(kernel, tmp_path / "out", staging=tmp_path)
    assert words in caught.value.details
    assert caught.value.resolution
