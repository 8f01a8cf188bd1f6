"""What to do about an error of the operating system, by what it says; imported where one has happened."""

from __future__ import annotations

import errno
import os
import shlex

RIGHTS = frozenset((errno.EACCES, errno.EPERM))
# What is said of a path where something else lies than belongs there.
MISNAMED = frozenset((errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ENXIO, errno.ESTALE))
_LOOK = MISNAMED | {errno.EINVAL, errno.ENOENT, errno.EFBIG}
_ROOM = "Make room on that file system: df -h shows it, vmm delete NAME and vmm image delete NAME free some."
_LIMITS = "See the limits (ulimit -a) and the room in memory (free -h), then give the command again: it repairs."
_KNOWN = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: "Mount the file system writable again; nothing was changed.",
    errno.EIO: "The kernel says what ails the disk (sudo dmesg); mend that first.",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOLCK, errno.EFBIG), _LIMITS),
}


def remedy(error: OSError) -> str:
    """Return what whoever reads this is to do about `error`."""
    path = named(error)
    at = f" {shlex.quote(path)}" if path else ""
    if error.errno in RIGHTS and os.geteuid() != 0:
        return "Run the command as root: sudo vmm ..."
    if error.errno in RIGHTS:
        where = f" (lsattr{at}), or the options of its mount (findmnt -T{at})" if path else ""
        return f"Something keeps even root from it: a file's attributes{where}, or the container that this runs in."
    if error.errno in _LOOK and path:
        return f"See what lies there (ls -ld{at}), and put it right."
    return _KNOWN.get(error.errno or 0, "Check the path and the file system it lies on (df -h), then try again.")


def named(error: OSError) -> str:
    """Return the path that an error names, or nothing."""
    return os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
