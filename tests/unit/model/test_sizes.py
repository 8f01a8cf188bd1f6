import pytest

from vmm.errors import UsageError
from vmm.model.sizes import human_bytes, parse_mib, within


@pytest.mark.parametrize(
    ("text", "mib"),
    [("512", 512), ("512M", 512), ("2G", 2048), ("1t", 1048576), ("1GiB", 1024), ("1GB", 1024)],
)
def test_sizes_are_mib(text: str, mib: int) -> None:
    assert parse_mib(text) == mib


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "2K", "1e3", "٣", "9" * 13, "1 G", " 7", "7\n", "1_0"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        parse_mib(text)


def test_bounds_name_both_ends() -> None:
    assert within(1, (1, 2), what="--cpus") == 1
    with pytest.raises(UsageError) as caught:
        within(3, (1, 2), what="--cpus")
    assert "--cpus" in caught.value.brief
    assert "1" in caught.value.details
    assert "2" in caught.value.details


def test_human_bytes() -> None:
    assert human_bytes(300 * 1024 * 1024) == "300 MiB"
    assert human_bytes(3 * 1024**3 // 2) == "1.5 GiB"
    assert human_bytes(2048) == "2 KiB"
