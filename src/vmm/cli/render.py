"""Results as people and programs read them: plain tables, or JSON with stable keys (docs/reference/json.md)."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.cli.output import as_json, coloured, complain, json_text, lines, raw
from vmm.model.machine import MachineView, Stray, UnreadableRecord
from vmm.model.text import harmless

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.model.event import Event
    from vmm.model.facts import Answer
    from vmm.model.image import Image, Kernel
    from vmm.model.network import PortForward
    from vmm.model.readiness import Check, SetupStep
    from vmm.operations.reconcile import Repair
    from vmm.operations.start import Started

# By CheckStatus's values: importing it costs a listing of machines a millisecond.
_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "failure": ("FAILURE", "red")}


to_json = as_json


def machine_facts(record: MachineView | UnreadableRecord | Stray) -> dict[str, object]:
    """Return a machine under the keys that users of the original know, and vmm's own."""
    if isinstance(record, Stray):
        facts = {"id": record.id, "name": record.name, "state": "unrecorded"}
        return {**facts, "reason": record.problem, "pid": record.pid}
    if isinstance(record, UnreadableRecord):
        return {"name": record.name, "state": "unreadable", "reason": record.problem}
    machine, spec = record.machine, record.machine.spec
    return {
        "id": machine.id,
        "name": spec.name,
        "state": machine.state.value,
        "reason": machine.reason,
        "engine": spec.engine.value,
        "cpus": spec.cpus,
        "memory_mb": spec.memory_mib,
        "disk_size_mb": spec.disk_mib,
        "image": spec.image,
        "kernel": spec.kernel,
        "ip_address": machine.lease.address,
        "mac_address": machine.lease.mac,
        "tap_device": machine.lease.tap,
        "dns_servers": list(spec.dns),
        "pid": machine.process.pid if machine.process is not None and machine.process.marker else None,
        "auto_start": spec.auto_start,
        "wanted": machine.wanted,
        "jail": spec.jail,
        "limits": {key: value for key, value in spec.limits.__dict__.items() if value is not None},
        "restart": spec.restart.value,
        "restarts": machine.supervision.restarts,
        "owner": machine.supervision.owner.value,
        "labels": dict(spec.labels),
        "created_at": machine.created_at,
        "started_at": machine.started_at,
        "port_forwards": [forward_facts(forward) for forward in record.forwards],
        "mounts": [],
        "boot_notes": list(record.boot_notes),
    }


def forward_facts(forward: PortForward) -> dict[str, object]:
    return {
        "host_address": forward.host_address,
        "host_port": forward.host_port,
        "guest_port": forward.guest_port,
        "protocol": forward.protocol.value,
    }


def machines(records: Sequence[MachineView | UnreadableRecord | Stray], output: str, *, chosen: bool = False) -> None:
    """Print a listing of machines; `chosen`: others may be there."""
    if output == "json":
        # A line a machine: what json writes in one go is four times as fast as what it indents.
        rows = ",\n".join(f"  {json_text(machine_facts(record))}" for record in records)
        raw(f"[\n{rows}\n]\n" if rows else "[]\n")
    elif output == "name":
        lines(record.machine.spec.name if isinstance(record, MachineView) else record.name for record in records)
    elif not records:
        from vmm.cli import hints

        none = "No machine matches. All of them: vmm list" if chosen else "No machines. Make one: sudo vmm run dev"
        lines([hints.fit(none)])
    else:
        head = ("NAME", "STATE", "ADDRESS", "CPUS", "MEMORY", "DISK", "ENGINE", "IMAGE")
        table([head, *(_machine_row(record) for record in records)], right=(3, 4, 5))


def _machine_row(record: MachineView | UnreadableRecord | Stray) -> tuple[str, ...]:
    if isinstance(record, Stray):
        return (record.name, "unrecorded", record.problem, "", "", "", "", "")
    if isinstance(record, UnreadableRecord):
        return (record.name, "unreadable", record.problem, "", "", "", "", "")
    machine, spec = record.machine, record.machine.spec
    # A machine that runs has a reason for that only where nothing is heard of its guest.
    silent = "(silent)" if machine.state == "running" and machine.reason else ""
    return (
        spec.name,
        f"{machine.state.value}{silent}",
        machine.lease.address,
        str(spec.cpus),
        f"{spec.memory_mib}M",
        f"{spec.disk_mib}M",
        spec.engine.value,
        spec.image,
    )


def machine(view: MachineView, output: str) -> None:
    """Print one machine: every fact on a line of its own."""
    facts = machine_facts(view)
    if output == "json":
        to_json(facts)
        return
    if output == "name":
        lines([view.machine.name])
        return
    facts["port_forwards"] = [_forward_words(forward) for forward in view.forwards]
    shown = {key: _plain(value) for key, value in facts.items() if value not in (None, [], {})}
    width = max(map(len, shown))
    lines(f"{key:<{width}}  {value}" for key, value in shown.items())


def started(result: Started) -> str:
    """Return what is said of a machine that was started."""
    name, address = result.machine.name, result.machine.lease.address
    if result.already:
        return f"{name} runs already, at {address}."
    return f"{name} is running at {address} ({result.seconds:.2f} s). Open a shell: vmm ssh {name}"


def warnings(result: Started) -> None:
    """Say what a machine's user should know of how it runs; not with the results, and whatever --quiet says."""
    if not result.warnings:
        return
    from vmm.cli import hints

    for warning in result.warnings:
        complain(f"Warning: {hints.fit(warning)}")


def troubles(answers: Sequence[Answer]) -> None:
    """Say what of this host is not as machines need it, each with what mends it."""
    if not answers:
        return
    from vmm.cli import hints

    for answer in answers:
        fix = f" To mend it: {hints.fit(answer.fix)}" if answer.fix else ""
        complain(f"Warning: {answer.name}: {answer.proof}.{fix}")


def events(found: Sequence[Event], output: str, *, stream: bool) -> None:
    """Print events: a table, or JSON; `stream` is a line at a time, for what has no end."""
    facts = [{"id": e.id, "at": e.at, "machine": e.machine, "kind": str(e.kind), "detail": e.detail} for e in found]
    if output == "json":
        if stream:
            lines(json_text(row) for row in facts) if facts else None
        else:
            to_json(facts)
    elif found:
        lines(f"{e.at}  {e.machine:<16}  {e.kind!s:<10}  {e.detail}".rstrip() for e in found)


def repairs(found: Sequence[Repair], output: str) -> None:
    """Print what was not as it should be."""
    if output == "json":
        to_json([{"subject": r.subject, "what": r.what, "done": r.done} for r in found])
        return
    from vmm.cli import hints

    rows = [(repair.subject, "mended" if repair.done else "NOT MENDED", hints.fit(repair.what)) for repair in found]
    table(rows)


def forwards(found: Sequence[PortForward], output: str) -> None:
    if output == "json":
        to_json([forward_facts(forward) for forward in found])
        return
    head = ("HOST ADDRESS", "HOST PORT", "GUEST PORT", "PROTOCOL")
    rows = [(f.host_address, str(f.host_port), str(f.guest_port), f.protocol.value) for f in found]
    table([head, *rows], right=(1, 2))


def images(found: Sequence[Image], damaged: Sequence[str], output: str) -> None:
    keys = ("name", "size_mib", "source", "created_at", "sha256", "path")
    facts = [{key: _json_value(getattr(image, key)) for key in keys} for image in found]
    _library(
        facts,
        damaged,
        output,
        columns={"NAME": "name", "SIZE": "size_mib", "SOURCE": "source", "CREATED": "created_at"},
    )


def kernels(found: Sequence[Kernel], damaged: Sequence[str], output: str) -> None:
    keys = ("name", "version", "source", "created_at", "sha256", "path", "stage1", "lacking")
    facts = [{key: _json_value(getattr(kernel, key)) for key in keys} for kernel in found]
    _library(
        facts,
        damaged,
        output,
        columns={"NAME": "name", "VERSION": "version", "SOURCE": "source", "CREATED": "created_at"},
    )


def texts(found: Sequence[str], output: str) -> None:
    """Print texts that are all there is to say: a line each, or JSON."""
    if output == "json":
        to_json(list(found))
    else:
        lines(found)


def _library(
    facts: list[dict[str, object]], damaged: Sequence[str], output: str, *, columns: Mapping[str, str]
) -> None:
    facts = [*facts, *({"name": name, "damaged": True} for name in damaged)]
    if output == "json":
        to_json(facts)
    elif output == "name":
        lines(str(row["name"]) for row in facts)
    else:
        rows = [tuple(str(row.get(key, "damaged")) for key in columns.values()) for row in facts]
        table([tuple(columns), *rows])


def checks(found: Sequence[Check], output: str) -> None:
    """Print what doctor found: a line a check, and below it the command that mends it."""
    if output == "json":
        to_json([{"name": c.name, "status": c.status.value, "detail": c.detail, "fix": c.fix or None} for c in found])
        return
    from vmm.cli import hints

    width = max(len(check.name) for check in found)
    for check in found:
        word, colour = _MARKS[check.status.value]
        raw(f"{check.name:<{width}}  {coloured(f'{word:<7}', colour)}  {harmless(check.detail)}\n")
        if check.fix and check.status != "ok":
            lines([f"{'':<{width}}  {'':<7}  -> {hints.fit(check.fix)}"])


def setup_steps(steps: Sequence[SetupStep], output: str) -> None:
    if output == "json":
        to_json([{"name": step.name, "outcome": step.outcome, "detail": step.detail} for step in steps])
        return
    table([(step.name, step.outcome, step.detail) for step in steps])


def table(rows: Sequence[tuple[str, ...]], *, right: Sequence[int] = ()) -> None:
    """Print rows in columns; `right` are those of numbers. Plain text: a rich table of 1,000 rows takes 0.6 s."""
    # Made harmless before they are measured.
    rows = [tuple(map(harmless, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pattern = "  ".join(f"{{:{'>' if number in right else '<'}{width}}}" for number, width in enumerate(widths))
    lines(pattern.format(*row).rstrip() for row in rows)


def _forward_words(forward: PortForward) -> str:
    where = "" if forward.host_address == "0.0.0.0" else f"{forward.host_address}:"  # noqa: S104  # as forwards write it
    return f"{where}{forward.host_port} -> {forward.guest_port}/{forward.protocol.value}"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return str(value).lower() if isinstance(value, bool) else str(value)


def _json_value(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return value if isinstance(value, int | str | None) else str(value)
