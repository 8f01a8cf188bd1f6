"""The database's shape and how an older one becomes it. `PRAGMA user_version` says which it is."""

from __future__ import annotations

import os
import sqlite3
import time

from vmm.errors import StateError

VERSION = 2

# Whoever has not come to write by then, while others did, is told.
_TURN_S = 60.0

# Uniqueness is the database's work, not a scan's. Addresses are integers: they sort, and compare without parsing.
_CREATE = """
CREATE TABLE machines (
    name         TEXT PRIMARY KEY,
    id           TEXT NOT NULL UNIQUE,
    cpus         INTEGER NOT NULL,
    memory_mib   INTEGER NOT NULL,
    disk_mib     INTEGER NOT NULL,
    image        TEXT NOT NULL,
    kernel       TEXT NOT NULL,
    engine       TEXT NOT NULL,
    auto_start   INTEGER NOT NULL,
    labels       TEXT NOT NULL,
    ssh_keys     TEXT NOT NULL,
    dns          TEXT NOT NULL,
    address      INTEGER NOT NULL UNIQUE,
    mac          TEXT NOT NULL UNIQUE,
    tap          TEXT NOT NULL UNIQUE,
    state        TEXT NOT NULL,
    wanted       INTEGER NOT NULL,
    created_at   TEXT NOT NULL,
    started_at   TEXT,
    boot_id      TEXT,
    pid          INTEGER,
    start_ticks  INTEGER,
    marker       TEXT,
    reason       TEXT
) STRICT;
CREATE INDEX machines_by_image ON machines (image);
CREATE INDEX machines_by_kernel ON machines (kernel);
CREATE TABLE forwards (
    machine      TEXT NOT NULL REFERENCES machines (name) ON DELETE CASCADE,
    protocol     TEXT NOT NULL,
    host_address TEXT NOT NULL,
    host_port    INTEGER NOT NULL,
    guest_port   INTEGER NOT NULL,
    UNIQUE (protocol, host_address, host_port)
) STRICT;
CREATE INDEX forwards_by_machine ON forwards (machine);
"""

# A machine that was made before there was a jail, or runs, goes on as it is; its next start is jailed.
_SUPERVISED = """
ALTER TABLE machines ADD COLUMN jail INTEGER NOT NULL DEFAULT 1;
ALTER TABLE machines ADD COLUMN limits TEXT NOT NULL DEFAULT '{}';
ALTER TABLE machines ADD COLUMN restart TEXT NOT NULL DEFAULT 'no';
ALTER TABLE machines ADD COLUMN owner TEXT NOT NULL DEFAULT 'supervisor';
ALTER TABLE machines ADD COLUMN restarts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN due_at INTEGER NOT NULL DEFAULT 0;
CREATE TABLE events (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      TEXT NOT NULL,
    machine TEXT NOT NULL,
    kind    TEXT NOT NULL,
    detail  TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_machine ON events (machine);
CREATE TABLE notes (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
"""

# One entry a version: the statements that lead from the version before to it.
_MIGRATIONS: dict[int, str] = {1: _CREATE, 2: _SUPERVISED}


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the database to VERSION, in one transaction a step.

    Raises:
        StateError: it was written by a newer vmm.
    """
    version = read_version(connection, path)
    while version < VERSION:
        # executescript would commit first and run outside of a transaction; two processes may migrate at once.
        begin(connection, path)
        try:
            version = read_version(connection, path)
            if version < VERSION:
                for statement in _MIGRATIONS[version + 1].split(";\n"):
                    if statement.strip():
                        connection.execute(statement)
                version += 1
                connection.execute(f"PRAGMA user_version = {version}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def begin(connection: sqlite3.Connection, path: str) -> None:
    """Begin to write. A plain BEGIN would fail where two processes read first and then both want to write.

    SQLite's writers try again and again, and chance says whose turn it is: on a slow disk others may come first for
    longer than SQLite waits. While they do commit nobody holds the database, and it is waited for.
    """
    deadline = time.monotonic() + _TURN_S
    while True:
        before = _written_ns(path)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline or _written_ns(path) == before:
                raise
        else:
            return


def _written_ns(path: str) -> int:
    """Return when the database was last written; 0 for one that is only in memory."""
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116  # as it was given
    except FileNotFoundError:
        return 0


def read_version(connection: sqlite3.Connection, path: str) -> int:
    """Return the schema version; 0 for a database that is new. Raises StateError for a newer one than ours."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise StateError(
            f"The database {path} was written by a newer vmm.",
            details=f"Its schema has version {version}; this vmm knows versions up to {VERSION}. Nothing was changed.",
            resolution="Install the newer vmm again, or give another data directory with --data-dir.",
        )
    return version
