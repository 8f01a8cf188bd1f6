"""A machine as `vms/NAME/machine.json` says it beside its disk; `rebuild` reads it."""

from __future__ import annotations

import json
import os

from vmm import TYPE_CHECKING
from vmm.errors import VmmError
from vmm.host.reading import read_text
from vmm.storage import schema

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmm.model.machine import Machine
    from vmm.model.network import PortForward

FILE = "machine.json"

# All that a machine of vmm's has in its directory.
_OWN = {
    FILE, "cidata.iso", "disk.ext4", "engine.json", "grow", "initrd", "keys", "known_hosts", "ssh_host_ed25519_key",
    "ssh_host_ed25519_key.pub", "user-data",
}  # fmt: skip


def strangers(directory: Path) -> list[str]:
    """Return the names of what lies in a machine's directory and is not vmm's."""
    try:
        return sorted(name for name in os.listdir(directory) if name not in _OWN and not name.startswith("."))  # noqa: PTH208  # names alone
    except OSError:
        return []


def text_of(machine: Machine, forwards: Sequence[PortForward]) -> str:
    """Return a machine as JSON: what it was asked for, what it holds, its forwards. Never user data: it has secrets."""
    spec = machine.spec
    facts: dict[str, object] = {
        "schema": schema.VERSION,
        "id": machine.id,
        "name": spec.name,
        "cpus": spec.cpus,
        "memory_mib": spec.memory_mib,
        "disk_mib": spec.disk_mib,
        "image": spec.image,
        "kernel": spec.kernel,
        "engine": spec.engine.value,
        "auto_start": spec.auto_start,
        "labels": dict(spec.labels),
        "ssh_keys": list(spec.ssh_keys),
        "dns": list(spec.dns),
        "jail": spec.jail,
        "limits": {name: value for name, value in spec.limits.__dict__.items() if value is not None},
        "restart": spec.restart.value,
        "address": machine.lease.address,
        "mac": machine.lease.mac,
        "tap": machine.lease.tap,
        "created_at": machine.created_at,
        "started_at": machine.started_at,
        "wanted": machine.wanted,
        "forwards": [
            {
                "protocol": forward.protocol.value,
                "host_address": forward.host_address,
                "host_port": forward.host_port,
                "guest_port": forward.guest_port,
            }
            for forward in forwards
        ],
    }
    return json.dumps(facts, indent=1) + "\n"


def identity(directory: Path) -> str | None:
    """Return the id that a directory's description gives its machine; None where it says none, or is of elsewhere.

    Nothing else of it is looked at: that is for `rebuild`, and a start reads this.
    """
    try:
        facts = json.loads(read_text(directory / FILE, follow=False))
        machine_id, name = facts["id"], facts["name"]
    except (OSError, VmmError, ValueError, RecursionError, TypeError, KeyError):
        return None
    return machine_id if name == directory.name and isinstance(machine_id, str) else None
