"""The engines' user ids are nobody else's."""

from pathlib import Path

import pytest

from vmm.config import UIDS
from vmm.errors import ConflictError
from vmm.host.accounts import refuse_taken


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "passwd").write_text("root:x:0:0::/root:/bin/sh\nada:x:1500:1500::/home/ada:/bin/sh\nbroken\n+::::::\n")
    (tmp_path / "group").write_text("wheel:x:2500:ada\n")
    (tmp_path / "subuid").write_text("ada:100000:65536\nnone:500:0\n")
    (tmp_path / "subgid").write_text("ada:300000:65536\n")
    return tmp_path


@pytest.mark.fault(43)
@pytest.mark.parametrize(
    ("uids", "whose"),
    [
        ((1000, 2000), "the user ada"),
        ((2500, 2500), "the group wheel"),
        ((165535, 170000), "ada's range in /etc/subuid"),
        ((365000, 500000), "ada's range in /etc/subgid"),
    ],
)
def test_a_range_that_holds_what_is_taken_is_refused(etc: Path, uids: tuple[int, int], whose: str) -> None:
    with pytest.raises(ConflictError) as caught:
        refuse_taken(uids, etc=etc)
    assert whose in caught.value.details


@pytest.mark.parametrize("uids", [(1501, 2499), (165536, 299999), UIDS])
def test_one_that_is_nobodys_is_taken(etc: Path, uids: tuple[int, int]) -> None:
    refuse_taken(uids, etc=etc)
    refuse_taken(uids, etc=etc / "nosuch")


@pytest.mark.fault(43)
@pytest.mark.parametrize(
    ("uids", "whose"),
    [
        ((60100, 60200), "systemd-homed"),
        ((61184, 62000), "DynamicUser="),
        ((65535, 65600), "16 bits"),
        ((1000000, 1065535), "systemd-nspawn"),
        ((UIDS[0] - 1, UIDS[1]), "systemd-nspawn"),
    ],
)
def test_what_is_given_out_without_a_file_is_refused_where_it_is_chosen(
    etc: Path, uids: tuple[int, int], whose: str
) -> None:
    with pytest.raises(ConflictError) as caught:
        refuse_taken(uids, etc=etc, everyone=True)
    assert whose in caught.value.details
    # What runs by it goes on, and doctor says so.
    refuse_taken(uids, etc=etc)


def test_this_hosts_users_are_seen() -> None:
    refuse_taken(UIDS, everyone=True)
    with pytest.raises(ConflictError):
        refuse_taken((60000, 70000), everyone=True)
