"""What a configuration file that cannot be used is told as; apart from `config`, which every command imports."""

from __future__ import annotations

import errno

from vmm import TYPE_CHECKING
from vmm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def told(path: Path, error: Exception, *, named: bool) -> ConfigError:
    """Return the error for a configuration file that cannot be read, or holds no TOML; `named`: its user named it."""
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
    mend = f"Mend it with an editor, or move it away: sudo mv {path} {path}.old"
    if isinstance(error, OSError) and error.errno == errno.EINVAL:
        # No plain file: nothing that should be moved.
        mend = "Name a file with --config or VMM_CONFIG, or leave it out: without one the built-in values hold."
    return ConfigError(
        f"The configuration file {path} cannot be read.",
        details="It is nested too deeply." if isinstance(error, RecursionError) else str(error),
        resolution=mend,
    )
