"""`vmm start`, `stop` and `restart`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmm.cli.options import MACHINES, Command, Seconds, Settings, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.app import HostSite
    from vmm.operations.start import Started
    from vmm.operations.stop import Stopped

WAITS = click.Choice(["ssh", "running", "none"])
_names = click.argument("names", nargs=-1, metavar="NAME...", shell_complete=MACHINES)
_wait = click.option("--wait", type=WAITS, default="running", show_default=True, help="What to wait for.")
_start_timeout = click.option("--timeout", type=Seconds(), help="Seconds to wait [20 for running, 120 for ssh].")


@click.command("start", cls=Command)
@_names
@click.option("--all", "every", is_flag=True, help="Every machine.")
@_wait
@_start_timeout
def start_command(names: Sequence[str], every: bool, wait: str, timeout: float | None) -> int:
    """Start machines."""
    given = settings()
    site, chosen = _chosen("start", names, every)
    return each(chosen, lambda name: start_one(given, site, name, wait=wait, timeout=timeout))


@click.command("stop", cls=Command)
@_names
@click.option("--all", "every", is_flag=True, help="Every machine.")
@click.option("--timeout", type=Seconds(), default=30.0, show_default=True, help="Seconds the guest has to shut down.")
@click.option("-f", "--force", is_flag=True, help="Kill at once, without asking the guest.")
def stop_command(names: Sequence[str], every: bool, timeout: float, force: bool) -> int:
    """Stop machines: ask the guest, wait, then kill."""
    given = settings()
    site, chosen = _chosen("stop", names, every)
    return each(chosen, lambda name: stop_one(given, site, name, timeout=timeout, force=force))


@click.command("restart", cls=Command)
@_names
@click.option("--all", "every", is_flag=True, help="Every machine.")
@_wait
@_start_timeout
@click.option("--stop-timeout", type=Seconds(), default=30.0, show_default=True, help="Seconds to shut down.")
@click.option("-f", "--force", is_flag=True, help="Kill at once, without asking the guest.")
def restart_command(
    names: Sequence[str], every: bool, wait: str, timeout: float | None, stop_timeout: float, force: bool
) -> int:
    """Stop machines and start them again."""
    given = settings()
    site, chosen = _chosen("restart", names, every)

    def restart(name: str) -> None:
        stop_one(given, site, name, timeout=stop_timeout, force=force)
        start_one(given, site, name, wait=wait, timeout=timeout)

    return each(chosen, restart)


def start_one(given: Settings, site: HostSite, name: str, *, wait: str, timeout: float | None) -> Started:
    """Start one machine and say so."""
    from vmm.cli import render
    from vmm.operations.start import Wait, start

    started = start(site, name, wait=Wait(wait), timeout_s=timeout)
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


def each(names: Sequence[str], act: Callable[[str], object]) -> int:
    """Do one thing to each, side by side; print the errors of those that failed, and return the exit code.

    It happens in threads, which have no click context.
    """
    from vmm.cli.ending import fail
    from vmm.operations.together import each as do_each

    if not names:
        return 0
    failed = [outcome.error for outcome in do_each(names, act) if outcome.error is not None]
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
