"""Whose user and group ids are taken on this host: the engines' must be nobody's."""

from __future__ import annotations

from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import Iterator

_ETC = Path("/etc")
# What systemd gives out as it needs it, and no file says (systemd's UIDS-GIDS; LXD's usual range is within the last).
_GIVEN_OUT = (
    ("what systemd-homed gives to its users", 60001, 60513),
    ("what systemd gives to services with DynamicUser=", 61184, 65519),
    ("nobody's, or no id where ids have 16 bits", 65534, 65535),
    ("what systemd-nspawn gives to its containers", 524288, 1879048191),
)
# A host with a hundred thousand accounts has some MiB of them.
_MOST_BYTES = 16 * 1024 * 1024


def refuse_taken(uids: tuple[int, int], *, etc: Path = _ETC, everyone: bool = False) -> None:
    """Raise ConflictError where a user, a group or someone's range of subordinate ids lies within `uids`.

    What is in files is read, which takes a tenth of a millisecond; with `everyone` the accounts that the system's
    other sources list (a directory service) are looked at too, and what systemd gives out by itself.
    """
    first, last = uids
    for what, begin, end in _taken(etc):
        if begin <= last and first <= end:
            raise _clash(uids, what, begin, end)
    if everyone:
        import grp
        import pwd

        ids = [(f"the user {user.pw_name}", user.pw_uid) for user in pwd.getpwall()]
        ids += [(f"the group {group.gr_name}", group.gr_gid) for group in grp.getgrall()]
        for what, number in ids:
            if first <= number <= last:
                raise _clash(uids, what, number, number)
        for what, begin, end in _GIVEN_OUT:
            if begin <= last and first <= end:
                raise _clash(uids, what, begin, end)


def _taken(etc: Path) -> Iterator[tuple[str, int, int]]:
    """Give (whose, first, last) of the ids that the files of accounts give out."""
    for file, kind in (("passwd", "user"), ("group", "group")):
        for fields in _lines(etc / file):
            if len(fields) > 2 and fields[2].isdigit():
                yield f"the {kind} {fields[0]}", int(fields[2]), int(fields[2])
    for file in ("subuid", "subgid"):
        for fields in _lines(etc / file):
            if len(fields) > 2 and fields[1].isdigit() and fields[2].isdigit() and int(fields[2]):
                yield f"{fields[0]}'s range in /etc/{file}", int(fields[1]), int(fields[1]) + int(fields[2]) - 1


def _lines(path: Path) -> Iterator[list[str]]:
    try:
        with path.open("rb") as stream:
            text = stream.read(_MOST_BYTES).decode(errors="replace")
    except OSError:
        return
    yield from (line.split(":") for line in text.splitlines())


def _clash(uids: tuple[int, int], what: str, begin: int, end: int) -> ConflictError:
    which = str(begin) if begin == end else f"{begin}-{end}"
    return ConflictError(
        "The range of user ids for machines holds some that are taken.",
        details=f"uid_range is {uids[0]}-{uids[1]}, and {which} is {what}: an engine would have its owner's rights.",
        resolution="Choose one that is nobody's: sudo vmm config set uid_range 1879048192-1879113727",
    )
