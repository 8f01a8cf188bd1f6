"""What a damaged description is refused with: words for its reader, none of Python's."""

import json
from pathlib import Path

import pytest

from vmm.errors import ImageError
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
    assert refused.value.resolution
