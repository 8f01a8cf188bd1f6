"""`vmm start`, `stop` and `restart`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from vmm.cli.options import MACHINES, Command, FilePath, Seconds, Settings, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vmm.app import HostSite
    from vmm.operations.start import Mode, Started
    from vmm.operations.stop import Stopped

WAITS = click.Choice(["ssh", "running", "none"])
_names = click.argument("names", nargs=-1, metavar="NAME...", shell_complete=MACHINES)
_wait = click.option("--wait", type=WAITS, default="running", show_default=True, help="What to wait for.")
_start_timeout = click.option(
    "--timeout", type=Seconds(), help="Seconds to wait [60 for running, which is the most; 120 for ssh]."
)
overcommit_option = click.option("--overcommit", is_flag=True, help="Even if the host has not that much memory.")
# Waiting for many guests costs nothing; starting many at once would only make each of them slower.
_STOPS_AT_ONCE = 256


@click.command("start", cls=Command)
@_names
@click.option("--all", "every", is_flag=True, help="Every machine, those that were stopped by hand too.")
@_wait
@_start_timeout
@overcommit_option
@click.option("--foreground", is_flag=True, help="Stay until it ends, with its console on stdout; SIGTERM stops it.")
@click.option(
    "--stop-timeout", type=Seconds(), default=30.0, show_default=True, help="With --foreground: seconds to shut down."
)
@click.option("--owner", type=click.Choice(["unit"]), hidden=True)
@click.option("--error-file", type=FilePath(plain=True), hidden=True)
def start_command(  # one parameter an option
    *,
    names: Sequence[str],
    every: bool,
    wait: str,
    timeout: float | None,
    overcommit: bool,
    foreground: bool,
    stop_timeout: float,
    owner: str | None,
    error_file: Path | None,
) -> int:
    """Start machines."""
    given = settings()
    site, chosen = _chosen("start", names, every)
    if owner is not None and error_file is not None:
        from vmm.app.units import start_in_unit

        return start_in_unit(site, chosen[0], error_file=error_file, overcommit=overcommit)
    mode = mode_of(wait=wait, timeout=timeout, overcommit=overcommit, foreground=foreground)
    if foreground:
        if len(chosen) != 1:
            raise click.UsageError("--foreground is for one machine.", click.get_current_context())
        from vmm.cli.commands.foreground import run_foreground

        return run_foreground(site, chosen[0], mode, stop_timeout_s=stop_timeout)
    return each(chosen, lambda name: start_one(given, site, name, mode))


@click.command("stop", cls=Command)
@_names
@click.option("--all", "every", is_flag=True, help="Every machine.")
@click.option("--timeout", type=Seconds(), default=30.0, show_default=True, help="Seconds the guest has to shut down.")
@click.option("-f", "--force", is_flag=True, help="Kill at once, without asking the guest.")
@click.option("--owner", type=click.Choice(["unit"]), hidden=True)
def stop_command(names: Sequence[str], every: bool, timeout: float, force: bool, owner: str | None) -> int:
    """Stop machines: ask the guest, wait, then kill."""
    # systemd calls this too when the engine has ended by itself: then there is no main process.
    if owner is not None and not os.environ.get("MAINPID"):
        return 0
    given = settings()
    site, chosen = _chosen("stop", names, every)
    if owner is not None:
        from vmm.app.units import stop_in_unit

        return stop_in_unit(site, chosen[0])
    return each(chosen, lambda name: stop_one(given, site, name, timeout=timeout, force=force), workers=_STOPS_AT_ONCE)


@click.command("restart", cls=Command)
@_names
@click.option("--all", "every", is_flag=True, help="Every machine.")
@_wait
@_start_timeout
@click.option("--stop-timeout", type=Seconds(), default=30.0, show_default=True, help="Seconds to shut down.")
@click.option("-f", "--force", is_flag=True, help="Kill at once, without asking the guest.")
@overcommit_option
def restart_command(
    names: Sequence[str],
    every: bool,
    wait: str,
    timeout: float | None,
    stop_timeout: float,
    force: bool,
    overcommit: bool,
) -> int:
    """Stop machines and start them again."""
    given = settings()
    site, chosen = _chosen("restart", names, every)

    mode = mode_of(wait=wait, timeout=timeout, overcommit=overcommit)

    def restart(name: str) -> None:
        stop_one(given, site, name, timeout=stop_timeout, force=force)
        start_one(given, site, name, mode)

    return each(chosen, restart)


def mode_of(*, wait: str, timeout: float | None, overcommit: bool, foreground: bool = False) -> Mode:
    """Return how these options want a machine started."""
    from vmm.model.machine import Owner
    from vmm.operations.start import Mode, Wait

    owner = Owner.FOREGROUND if foreground else None
    return Mode(wait=Wait(wait), timeout_s=timeout, overcommit=overcommit, owner=owner)


def start_one(given: Settings, site: HostSite, name: str, mode: Mode) -> Started:
    """Start one machine and say so."""
    from vmm.cli import render
    from vmm.operations.start import start

    started = start(site, name, mode)
    render.warnings(started)
    given.say(render.started(started))
    return started


def stop_one(given: Settings, site: HostSite, name: str, *, timeout: float, force: bool) -> Stopped:
    """Stop one machine and say how it went."""
    from vmm.operations.stop import StopMethod, stop

    stopped = stop(site, name, timeout_s=timeout, force=force)
    if stopped.method is StopMethod.ALREADY:
        given.say(f"{name} does not run.")
    else:
        given.say(f"{name} is stopped: {stopped.method} ({stopped.seconds:.1f} s).")
    return stopped


def each(names: Sequence[str], act: Callable[[str], object], *, workers: int = 8) -> int:
    """Do one thing to each, side by side; print the errors of those that failed, and return the exit code.

    It happens in threads, which have no click context.
    """
    from vmm.cli.ending import fail
    from vmm.operations.together import each as do_each

    if not names:
        return 0
    failed = [outcome.error for outcome in do_each(names, act, workers=workers) if outcome.error is not None]
    codes = [fail(error) for error in failed]
    return max(codes, default=0)


def _chosen(verb: str, names: Sequence[str], every: bool) -> tuple[HostSite, Sequence[str]]:
    from vmm.app import require_root

    chosen = choose(names, every)
    require_root(verb)
    return settings().site(), chosen


def choose(names: Sequence[str], every: bool) -> Sequence[str]:
    """Return the names meant; raise UsageError when neither names nor --all were given, or both."""
    if bool(names) == every:
        raise click.UsageError(
            "Give the names of machines, or --all." if not names else "Give names or --all, not both.",
            click.get_current_context(),
        )
    if not every:
        from vmm.model.names import valid_name

        return tuple(dict.fromkeys(valid_name(name) for name in names))
    known = [record.name for record in settings().site(read_only=True).store.machines()]
    if not known:
        settings().say("There are no machines.")
    return known
