"""What a configuration file holds, and what one that cannot be used is told as; `config` asks where there is one."""

from __future__ import annotations

import errno

from vmm import TYPE_CHECKING
from vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Ten times what every key with a thousand networks takes.
MOST_BYTES = 64 * 1024
# No key has more than one. tomllib's time and memory grow with their square: 30 KB of them took 879 MB.
_MOST_DOTS = 8
# A text (of three quotes, of one) or a comment; one without an end goes to where it must have it.
_LONG = r'"""(?:\\[\s\S]|[^\\])*?(?:"""|\Z)' + r"|'''[\s\S]*?(?:'''|\Z)"
_QUOTED = _LONG + r'|"(?:\\.|[^"\\\n])*+"?' + r"|'[^'\n]*+'?|#[^\n]*+"
# As many digits as `model.sizes` reads.
_MOST_NUMBER = 10**18
_KINDS: Mapping[type, str] = {bool: "true or false", float: "a number with a point", list: "a list of more than texts"}
_ELSEWHERE = (errno.EINVAL, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENXIO)


def parsed(path: Path, content: bytes, *, named: bool) -> dict[str, object]:
    """Return the tables of a configuration file; raise ConfigError where it holds none, or what would take too long."""
    import tomllib

    try:
        text = content.decode()
        _refuse_bombs(text)
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        why = f"It is no text (UTF-8): byte {error.start + 1} is 0x{content[error.start]:02x}."
        raise _unreadable(path, why) from error
    except (ValueError, RecursionError) as error:
        raise told(path, error, named=named) from error


def _refuse_bombs(text: str) -> None:
    """Raise ValueError for what is no configuration of vmm's, and would keep every command from its work."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"It holds more than {MOST_BYTES} bytes.")
    if all(line.count(".") <= _MOST_DOTS for line in text.split("\n")):
        return
    import re

    plain = re.sub(_QUOTED, lambda found: "\n" * found[0].count("\n"), text)
    for number, line in enumerate(plain.split("\n"), 1):
        if line.count(".") > _MOST_DOTS:
            raise ValueError(f"Line {number} has {line.count('.')} dots outside quotes; a key has one at most.")


def told(path: Path, error: Exception, *, named: bool) -> ConfigError:
    """Return the error for a configuration file that cannot be read, or holds no TOML; `named`: its user named it."""
    if isinstance(error, OSError):
        return _unopened(path, error, named=named)
    return _unreadable(path, _why(error))


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "It is nested too deeply."
    # Python's own words for a number of thousands of digits speak of Python.
    return "A number in it has too many digits." if "integer string conversion" in str(error) else str(error)


def _unopened(path: Path, error: OSError, *, named: bool) -> ConfigError:
    from vmm.remedy import remedy

    if isinstance(error, FileNotFoundError):
        return ConfigError(
            f"There is no configuration file {path}.",
            details="It was named with --config or VMM_CONFIG.",
            resolution="Name one that is there, or leave it out: without a file the built-in values hold.",
        )
    if isinstance(error, NotADirectoryError) and not named:
        return ConfigError(
            f"{path.parent.parent} cannot be vmm's data directory.",
            details=str(error),
            resolution="Name a directory with --data-dir or VMM_DATA_DIR, or leave it out.",
        )
    mend = remedy(error)
    if error.errno in (errno.EFBIG, errno.EILSEQ):
        return _unreadable(path, str(error))
    if error.errno in _ELSEWHERE and named:
        # No plain file: nothing that should be moved.
        mend = "Name a file with --config or VMM_CONFIG, or leave it out: without one the built-in values hold."
    elif isinstance(error, PermissionError) and mend.startswith("Run the command as root"):
        import shlex

        where = shlex.quote(str(path))
        mend = f"Run the command as root: sudo vmm ...; or let this user read it (who may: namei -l {where})."
    return ConfigError(f"The configuration file {path} cannot be read.", details=str(error), resolution=mend)


def _unreadable(path: Path, why: str) -> ConfigError:
    """Return the error for content that only an editor mends."""
    import shlex

    where, aside = shlex.quote(str(path)), shlex.quote(f"{path}.old")
    return ConfigError(
        f"The configuration file {path} cannot be read.",
        details=why,
        resolution=f"Mend it with an editor, or move it away: sudo mv {where} {aside}",
    )


def wrong_kind(path: Path, key: str, value: object, *, needed: str) -> ConfigError:
    """Return the error for a value of another type, in words that are not Python's."""
    from vmm.model.words import quoted

    is_number = isinstance(value, int) and not isinstance(value, bool)
    what = quoted(value) if isinstance(value, str) or is_number else _KINDS.get(type(value), "a date or a time")
    return ConfigError(
        f"The key {key!r} in {path} has a value of the wrong kind.",
        details=f"It is {what}; needed is {needed}.",
        resolution=f"Mend the line in {path}, or: sudo vmm config set {key} VALUE",
    )


def too_large(path: Path, key: str) -> ConfigError:
    """Return the error for a number that nothing here has as many of, and that Python does not print."""
    return ConfigError(
        f"The key {key!r} in {path} has a number that is too large.",
        details="A number has 18 digits at most.",
        resolution=f"Mend the line in {path}, or: sudo vmm config set {key} VALUE",
    )


def is_too_large(value: object) -> bool:
    """Whether a value is a number that vmm counts nothing with."""
    return isinstance(value, int) and abs(value) >= _MOST_NUMBER


def whole(path: Path, *, what: str) -> Path:
    """Return a path from the environment or the command line, made absolute; others go by it, and read it from a line.

    Raises:
        VmmError: it cannot be one.
    """
    from vmm.model.names import valid_path

    try:
        found = path.absolute()
    except FileNotFoundError as error:
        raise ConfigError(
            f"The path {path} of {what} leads nowhere.",
            details="It is relative, and the directory that this shell stands in was removed.",
            resolution="Give a path that begins with '/', or change to a directory that is there (cd /).",
        ) from error
    valid_path(str(found), what=what, absolute=True)
    return found
