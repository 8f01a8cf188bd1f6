"""Waiting for a guest's ssh: through a reboot of the guest's own, and with its last words when it did not come."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.errors import GuestError
from vmm.model.event import EventKind
from vmm.model.last_words import behind_mark, boot_notes
from vmm.model.lifecycle import LIVE, is_waiting
from vmm.operations.observe import how_it_ended

if TYPE_CHECKING:
    from vmm.model.machine import Machine
    from vmm.model.site import Site

# Ends after which a machine is started again as a part of its boot: the guest's own wish, or vmm's second try.
_GOES_ON = (EventKind.REBOOTED, EventKind.RESET)
_LINES, _LETTERS = 6, 160


def await_ssh(site: Site, machine: Machine, *, timeout_s: float) -> float:
    """Wait until the guest's ssh server greets; return the seconds it took.

    Raises:
        GuestError: it did not, or the machine ended meanwhile; the details have what its console said last.
    """
    known = machine

    def alive() -> bool:
        nonlocal known
        if known.process is not None and site.processes.is_alive(known.process):
            return True
        seen = site.store.machine(machine.name)
        if seen.process is not None and site.processes.is_alive(seen.process):
            known = seen
            return True
        return _goes_on(site, seen)

    try:
        return site.guest.await_ssh(machine, timeout_s=timeout_s, alive=alive)
    except GuestError as error:
        raise GuestError(error.brief, details=_details(site, machine, error), resolution=error.resolution) from error


def _goes_on(site: Site, machine: Machine) -> bool:
    """Whether a machine without an engine is about to have another, in the course of its boot."""
    if machine.state not in LIVE or not machine.wanted:
        return False
    if not is_waiting(machine):
        # Nobody has recorded its end yet.
        return how_it_ended(site, machine).kind in _GOES_ON
    ends = [event.kind for event in site.store.events(machine.name, most=1)]
    return bool(ends) and ends[0] in _GOES_ON


def _details(site: Site, machine: Machine, error: GuestError) -> str:
    seen = site.store.machine(machine.name)
    said = [f" {seen.reason}."] if seen.reason else []
    notes = boot_notes(site.files.first_words(machine.name))
    if notes:
        said.append(f" At its boot stage-1 said: {'; '.join(notes)}.")
    lines = [_plain(line) for line in behind_mark(site.files.last_words(machine.name)).splitlines()]
    last = [line for line in lines if line][-_LINES:]
    said.append(
        f" Its console said last: {' | '.join(last)}" if last else " Its console has said nothing since its start."
    )
    return error.details + "".join(said)


def _plain(line: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in line[:_LETTERS]).strip()
