"""networkd and NetworkManager are told to leave vmm's links alone.

A networkd with `[Match] Name=*` takes each new tap off its bridge and switches IPv6 on there.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import HostError
from vmm.host import files, process, systemd
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEAD = "# Made by vmm setup, removed by vmm teardown: its links are its own.\n"
# networkd goes by the first file that matches, in the order of their names.
_NETWORKD = Path("/etc/systemd/network/00-00-vmm.network")
_NETWORKD_RUNS = Path("/run/systemd/netif/links")
_NETWORKMANAGER = Path("/etc/NetworkManager/conf.d/00-vmm.conf")
_NETWORKMANAGER_RUNS = Path("/run/NetworkManager")


class _Manager(Value):
    """One that may take links in hand: where it is told, what, and how it hears of it."""

    name: str
    path: Path
    text: str
    reload: tuple[str, ...]


def differences(bridge: str) -> list[str]:
    """Return which of this host's managers are not told, by their names."""
    return [manager.name for manager in _managers(bridge) if not _is_told(manager)]


def tell(bridge: str) -> bool:
    """Tell this host's managers; whether any had to be. Raises HostError where it cannot be written."""
    told = False
    for manager in _managers(bridge):
        if not _is_told(manager):
            files.make_dir(manager.path.parent)
            files.write_atomic(manager.path, manager.text, mode=0o644)
            _reload(manager)
            told = True
    return told


def forget(bridge: str) -> None:
    """Take back what was told; a file that someone else has put in its place stays."""
    for manager in _managers(bridge, all_of_them=True):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if manager.path.read_text(encoding="utf-8").startswith(_HEAD):
                manager.path.unlink()
                _reload(manager)


def _is_told(manager: _Manager) -> bool:
    try:
        return manager.path.read_text(encoding="utf-8") == manager.text
    except (OSError, UnicodeDecodeError):
        return False


def _reload(manager: _Manager) -> None:
    # One that does not run reads its files when it starts.
    if manager.reload:
        with contextlib.suppress(HostError):
            process.run(list(manager.reload), check=False)


def _managers(bridge: str, *, all_of_them: bool = False) -> Sequence[_Manager]:
    """Return the managers that this host has; a networkd comes with each systemd."""
    found: list[_Manager] = []
    if all_of_them or systemd.is_running():
        text = f"{_HEAD}[Match]\nName=vmm-* {bridge}\n\n[Link]\nUnmanaged=yes\n"
        reload = ("networkctl", "reload") if _NETWORKD_RUNS.exists() else ()
        found.append(_Manager(name="networkd", path=_NETWORKD, text=text, reload=reload))
    if all_of_them or _NETWORKMANAGER.parent.parent.is_dir():
        match = f"interface-name:vmm-*;interface-name:{bridge}"
        text = f"{_HEAD}[device-vmm]\nmatch-device={match}\nmanaged=0\n\n[keyfile]\nunmanaged-devices+={match}\n"
        reload = ("nmcli", "general", "reload") if _NETWORKMANAGER_RUNS.exists() else ()
        found.append(_Manager(name="NetworkManager", path=_NETWORKMANAGER, text=text, reload=reload))
    return found
