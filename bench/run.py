"""Measures vmm against a floor: the same work done by hand in shell with the same tools, in turn, in one run.

sudo .venv/bin/python bench/run.py [--runs N] [--only PART] [--write docs/performance.md]

Each row is a whole process, from exec to its end. A run of the floor and a run of vmm alternate, so that a host that is
slow for a while is slow for both; the ratio is the median of the rounds' ratios.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import many
import memory
import single
from ground import PYTHON, TOP, Bench, a_bench, stock
from rows import Row, Series, Target, as_table, told, verdict

MARK = "<!-- the table below is written by bench/run.py -->"
PARTS = ("list", "create", "start", "together", "hundred", "reconcile")
_START = Target(ratio=2.5)
_BESIDE = Target(ratio=1.3)


@dataclass
class Report:
    """What is to be told: rows against floors, rows of vmm against itself, and words."""

    rows: list[Row] = field(default_factory=list)
    itself: list[Row] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    memory: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [as_table(self.rows)]
        if self.itself:
            parts.append(as_table(self.itself, floor="the one", ours="the other"))
        parts += self.words
        if self.memory:
            parts.append(memory.head() + "".join(self.memory))
        return "\n".join(part.rstrip() + "\n" for part in [*parts, verdict([*self.rows, *self.itself])])


def start_rows(report: Report, series: dict[str, Series]) -> None:
    report.rows += [
        told(Row("vmm start, a tiny guest, --no-jail", series["bare floor"], series["bare"], _START)),
        told(Row("vmm start, a tiny guest, jailed", series["jailed floor"], series["jailed"], _START)),
    ]
    report.itself += [
        told(Row("vmm start: --no-jail, jailed", series["bare"], series["jailed"], _BESIDE)),
        told(Row("the same by hand", series["bare floor"], series["jailed floor"])),
    ]


def hundred_rows(report: Report, first: dict[str, Series], last: dict[str, Series], again: Series) -> None:
    # The first starts were measured before the hundred and again after them: a host that grows slower tells on both.
    before = [(one + other) / 2 for one, other in zip(first["jailed"], again, strict=True)]
    report.rows.append(told(Row(f"vmm start, jailed, {many.MOST - 1} run", last["floor"], last["ours"], _START)))
    report.itself += [
        told(Row(f"vmm start: the 1st, the {many.MOST}th", before, last["ours"], _BESIDE)),
        told(Row("the same by hand", first["jailed floor"], last["floor"])),
    ]


def with_machines(bench: Bench, report: Report, only: str) -> None:
    jailed, bare = single.make_floors(bench, many.TOGETHER)
    first = single.start_first(bench, jailed, bare) if only in ("", "start", "hundred") else {}
    if first:
        start_rows(report, first)
        bench.host.vmm("start", single.FIRST)
        report.memory.append(memory.report(bench))
        bench.stop()
    bench.host.vmm("delete", single.BARE)
    bench.create(many.names(1, many.TOGETHER - 1))
    if only in ("", "together"):
        found = many.together(bench, jailed)
        report.rows += map(told, found.rows)
        report.words.append(found.words())
    if only in ("", "hundred"):
        bench.create(many.names(many.TOGETHER, many.MOST - many.TOGETHER))
        bench.host.vmm("start", *many.names(0, many.MOST - 1))
        bench.quiet()
        last = many.start_last(bench, jailed)
        bench.host.vmm("start", *many.names(many.MOST - 1, 1))
        report.memory.append(memory.report(bench))
        bench.stop()
        hundred_rows(report, first, last, single.start_again(bench))


def measure(bench: Bench, only: str) -> Report:
    report = Report()
    if only in ("", "list"):
        report.rows += map(told, single.listings(bench))
    if only != "list":
        stock(bench)
    if only in ("", "create"):
        report.rows.append(told(single.create(bench)))
    if only in ("", "start", "together", "hundred"):
        with_machines(bench, report, only)
    if only in ("", "reconcile"):
        report.rows.append(told(many.reconcile(bench)))
    return report


def keep(document: Path, report: Report, runs: int) -> None:
    """Write the report below its mark."""
    words = document.read_text(encoding="utf-8").partition(MARK)[0]
    command = f"sudo {shlex.join(['.venv/bin/python', 'bench/run.py', *sys.argv[1:]])}"
    facts = (
        f"Made on {time.strftime('%Y-%m-%d')} by `{command}`, {os.cpu_count()} CPUs, Python {sys.version.split()[0]},"
        f" {runs} rounds a row ({max(min(runs, 3), runs // 3)} of those with {many.TOGETHER} machines).\n"
    )
    document.write_text(f"{words}{MARK}\n\n{facts}\n{report}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--only", default="", choices=PARTS, help="only this part")
    parser.add_argument("--write", type=Path, help="keep the tables in this document")
    given = parser.parse_args()
    if os.geteuid():
        raise SystemExit("It makes links and runs machines: run it as root.")
    # As installing does: a checkout that was edited since would be compiled at every run.
    subprocess.run([PYTHON, "-m", "compileall", "-q", str(TOP / "src")], check=True)
    with a_bench(given.runs) as bench:
        report = measure(bench, given.only)
    print(report)
    if given.write:
        keep(given.write, report, given.runs)


if __name__ == "__main__":
    main()
