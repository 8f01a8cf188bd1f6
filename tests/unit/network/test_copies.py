"""A data directory that is a copy of another one: told from one that was moved, and from one that has two names."""

import shutil
from pathlib import Path

import pytest

from vmm.errors import ConflictError
from vmm.network.ownership import id_file, original_of, owner_at, refuse_copy


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "original"
    (path / "state").mkdir(parents=True)
    owner_at(path, make=True)
    refuse_copy(path)
    return path


def test_a_copy_is_refused_while_its_original_is_there(original: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    with pytest.raises(ConflictError, match="copy of another") as told:
        refuse_copy(copy)
    assert f"{copy} was copied from {original}" in told.value.details
    assert original_of(copy) == original
    assert original_of(original) is None
    # Again and again, and never the original.
    refuse_copy(original)
    with pytest.raises(ConflictError):
        refuse_copy(copy)
    shutil.rmtree(original)
    refuse_copy(copy)
    assert original_of(copy) is None


def test_one_that_was_moved_is_none_and_a_copy_of_it_is(original: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved\nelsewhere"
    original.rename(moved)
    refuse_copy(moved)
    shutil.copytree(moved, original)
    refuse_copy(moved)
    with pytest.raises(ConflictError):
        refuse_copy(original)


def test_one_of_two_names_is_none(original: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(original)
    for path in (link, original, link):
        refuse_copy(path)
        assert original_of(path) is None


def test_where_another_one_lies_now_there_is_no_original(original: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    original.rename(moved)
    (original / "state").mkdir(parents=True)
    owner_at(original, make=True)
    assert id_file(original).read_text() != id_file(moved).read_text()
    refuse_copy(moved)
    refuse_copy(original)


def test_one_that_has_started_nothing_remembers_nothing(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    refuse_copy(tmp_path)
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "directory", "empty", "long"])
def test_whatever_lies_in_the_place_of_the_place(original: Path, kind: str) -> None:
    place = original / "state" / "place"
    place.unlink()
    match kind:
        case "link":
            place.symlink_to("/proc/kmsg")
        case "directory":
            place.mkdir()
        case "empty":
            place.touch()
        case _:
            place.write_bytes(b"\xff" * 100_000)
    refuse_copy(original)
    assert original_of(original) is None
