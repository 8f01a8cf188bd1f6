"""What happened to machines, in the database: bounded, the newest kept."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.model.clock import now
from vmm.model.event import Event, EventKind, Happening
from vmm.model.text import harmless

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

# Some 1.5 MB of rows: a year of a busy host. Older ones go as new ones come.
MOST_EVENTS = 10_000
_DETAIL_LETTERS = 500
_KIND_LETTERS = 32


def remember(connection: sqlite3.Connection, machine: str, happening: Happening) -> None:
    """Add an event within the caller's transaction, its detail as one line, and let the oldest go."""
    cursor = connection.execute(
        "INSERT INTO events (at, machine, kind, detail) VALUES (?, ?, ?, ?)",
        (now(), machine, happening.kind.value, _detail(happening.detail)),
    )
    connection.execute("DELETE FROM events WHERE id <= ?", ((cursor.lastrowid or 0) - MOST_EVENTS,))


def _detail(text: str) -> str:
    return harmless(" ".join(text.split())[:_DETAIL_LETTERS])[:_DETAIL_LETTERS]


def recall(connection: sqlite3.Connection, *, machine: str | None, after: int, most: int) -> Sequence[Event]:
    """Return the newest `most` events with an id above `after`, the oldest of them first."""
    condition = "id > ?" if machine is None else "id > ? AND machine = ?"
    values = (after,) if machine is None else (after, machine)
    found = connection.execute(
        f"SELECT id, at, machine, kind, detail FROM events WHERE {condition} ORDER BY id DESC LIMIT ?",  # noqa: S608
        (*values, most),
    ).fetchall()
    return [
        Event(id=number, at=at, machine=name, kind=_kind(kind), detail=detail)
        for number, at, name, kind, detail in reversed(found)
    ]


def _kind(text: object) -> EventKind | str:
    """Return an event's kind; one that only a newer vmm knows is shown by the name that it gave it."""
    try:
        return EventKind(text)
    except ValueError:
        if not isinstance(text, str):
            # It is damaged, for the column takes no other.
            raise
        return harmless(text[:_KIND_LETTERS])
