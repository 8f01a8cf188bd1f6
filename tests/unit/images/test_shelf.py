"""What a damaged description is refused with: words for its reader, none of Python's."""

import errno
import json
import os
from pathlib import Path

import pytest

from vmm.errors import ImageError
from vmm.host import reading
from vmm.images.kernels import KernelLibrary
from vmm.images.library import ImageLibrary

IMAGE = {"size_mib": 1, "sha256": "0", "source": "a test", "created_at": "2026-01-01T00:00:00Z"}
KERNEL = {"stage1": False, "version": "6.1", "sha256": "0", "source": "a test", "created_at": "2026-01-01T00:00:00Z"}


def _none(*_: object) -> None:
    raise AssertionError("a stage-1 is built to look at a kernel")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"sha256": None}, "sha256 is None"), ({"source": ...}, "it says nothing of source"), ({}, "No such file")],
)
@pytest.mark.parametrize("what", ["image", "kernel"])
def test_a_damaged_description_is_told_in_words(tmp_path: Path, what: str, changes: dict, words: str) -> None:
    staging = tmp_path / "staging"
    images = ImageLibrary(root=tmp_path, staging=staging)
    library = images if what == "image" else KernelLibrary(root=tmp_path, staging=staging, build_stage1=_none)
    facts = {**(IMAGE if what == "image" else KERNEL), **changes}
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / f"{what}.json").write_text(json.dumps({k: v for k, v in facts.items() if v is not ...}))
    with pytest.raises(ImageError) as refused:
        library.get("m")
    if what == "kernel" and not changes:
        words = "vmlinux is missing"
    assert words in refused.value.details
    assert "Error(" not in refused.value.details
    assert refused.value.resolution == (
        f"Replace it in place: sudo vmm {what} import PATH --name m --force; if it was pulled: sudo vmm {what} pull m"
        " --force"
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO])
def test_what_keeps_an_image_from_being_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number), str(path))

    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "image.json").write_text(json.dumps(IMAGE))
    monkeypatch.setattr(reading, "open_plain", refuse)
    with pytest.raises(ImageError, match="cannot be read") as refused:
        ImageLibrary(root=tmp_path, staging=tmp_path / "staging").get("m")
    assert "delete" not in refused.value.resolution.lower()
    assert "--force" not in refused.value.resolution
