"""How the database is opened: made, brought up to date, or only looked at."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3

from vmm import TYPE_CHECKING
from vmm.errors import HostError, VmmError
from vmm.model.value import Value
from vmm.storage import readable, schema, trouble

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Every read and write waits this long for one that holds the database.
BUSY_S = 5.0


class Opening(Value):
    """The database at `path`. `looks_only`: without any right to write. `disks` is where machines lie.

    `tell` is told where what is read may be of before.
    """

    path: Path
    looks_only: bool
    disks: Path | None
    tell: Callable[[str], None] | None = None

    def for_writing(self) -> sqlite3.Connection:
        mode = self._mode()
        if mode is not None and mode & 0o077 and os.geteuid() == 0:
            # On a full disk it stays as it was until there is room: what runs can be stopped, and files be deleted.
            with contextlib.suppress(HostError):
                readable.make_private(self.path)
        if mode is None:
            from vmm.host import files

            self._refuse_lost(0)
            files.refuse_network_file_system(self.path.parent)
            files.make_dir(self.path.parent)
            with contextlib.suppress(FileExistsError):
                # Whoever could open it could lock it: what users read is a copy.
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                self.path.chmod(0o600)
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            # In DELETE mode a commit is the journal's end; only EXTRA brings that to disk as well.
            connection.execute("PRAGMA synchronous = EXTRA")
            version = schema.read_version(connection, str(self.path))
            if version != schema.VERSION:
                self._refuse_lost(version)
                if version > 0:
                    from vmm.storage import backup

                    backup.keep(connection, self.path, version=version)
                schema.migrate(connection, str(self.path))
        except BaseException:
            connection.close()
            raise
        return connection

    def _mode(self) -> int | None:
        try:
            return self.path.stat().st_mode
        except FileNotFoundError:
            return None

    def for_reading(self) -> sqlite3.Connection:
        # Looking makes no database where there is none.
        if self.looks_only or not self.path.exists():
            return self._read_only()
        try:
            return self.for_writing()
        except (sqlite3.OperationalError, VmmError):
            # An older one that there is no room to bring up to date: looking at it takes none.
            return self._read_only()

    def _read_only(self) -> sqlite3.Connection:
        """Open what is there for reading; an empty or an older one is read as a copy in memory, brought up to date."""
        if not self.path.exists():
            return self._in_memory(None, 0)
        if not os.access(self.path, os.R_OK):
            return self._copied()
        try:
            self._finish_interrupted()
            return self._as_it_is()
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error):
                raise
            return self._undone_elsewhere()

    def _copied(self) -> sqlite3.Connection:
        """Open the copy that any user may read."""
        found = readable.image(self.path)
        if found is None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path))
        if not found.is_current and self.tell is not None:
            self.tell(f"What is shown may be of before: {readable.why_old(self.path)}. As it is now: sudo vmm list")
        connection = readable.connected(found)
        try:
            version = schema.read_version(connection, str(self.path))
            self._refuse_lost(version)
            if version != schema.VERSION:
                schema.migrate(connection, str(self.path))
        except BaseException:
            connection.close()
            raise
        return connection

    def _undone_elsewhere(self) -> sqlite3.Connection:
        """Return a copy in memory, without what a killed command was writing, where that cannot be undone in place."""
        import shutil
        import tempfile

        with tempfile.TemporaryDirectory(prefix="vmm-") as directory:
            copy = os.path.join(directory, "copy.db")  # noqa: PTH118  # as a text, for SQLite
            for suffix in ("", "-journal"):
                shutil.copyfile(f"{self.path}{suffix}", f"{copy}{suffix}")
            with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as there:
                return self._in_memory(there, schema.read_version(there, str(self.path)))

    def _as_it_is(self) -> sqlite3.Connection:
        # What a URI takes for its own is written as its code.
        quoted = str(self.path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        there = sqlite3.connect(f"file:{quoted}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None)
        try:
            version = schema.read_version(there, str(self.path))
            if version == schema.VERSION:
                return there
            connection = self._in_memory(there, version)
        except BaseException:
            there.close()
            raise
        there.close()
        return connection

    def _in_memory(self, there: sqlite3.Connection | None, version: int) -> sqlite3.Connection:
        self._refuse_lost(version)
        connection = sqlite3.connect(":memory:", isolation_level=None)
        if there is not None:
            there.backup(connection)
        schema.migrate(connection, str(self.path))
        return connection

    def _finish_interrupted(self) -> None:
        """Let SQLite undo what a killed command was writing: a reader may not, and could not read before it is done."""
        if os.geteuid() == 0 and self.path.with_name(f"{self.path.name}-journal").exists():
            with contextlib.closing(sqlite3.connect(self.path, timeout=BUSY_S)) as connection:
                connection.execute("PRAGMA user_version")

    def _refuse_lost(self, version: int) -> None:
        """Raise StateError for an empty database where machines lie on disk: it would forget them."""
        if version or self.disks is None:
            return
        count = sum(1 for _ in self.disks.glob("*/disk.ext4"))
        if count:
            raise trouble.lost(self.path, self.disks, count)
