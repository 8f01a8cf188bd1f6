"""What is measured and what comes of it: acts timed in turn, the rows of a table, and whether their targets are met."""

import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Series = list[float]


def nothing() -> None:
    pass


@dataclass(frozen=True)
class Act:
    """One whole process to be timed; `after` puts things back, and is not timed."""

    argv: list[str]
    after: Callable[[], None] = nothing


@dataclass(frozen=True)
class Target:
    """What a row is to keep to: the ratio, and vmm's own time in ms; None is no bound."""

    ratio: float | None = None
    most_ms: float | None = None

    def __str__(self) -> str:
        ratio = [] if self.ratio is None else [f"{self.ratio:g}"]
        most = [] if self.most_ms is None else [f"{self.most_ms:,.0f} ms"]
        return f"at most {', '.join(ratio + most)}" if ratio or most else ""


@dataclass(frozen=True)
class Row:
    """Two series in ms, a round an entry: what the row is measured by, and vmm."""

    name: str
    floor: Series
    ours: Series
    target: Target = field(default_factory=Target)

    @property
    def ratios(self) -> Series:
        return sorted(ours / floor for floor, ours in zip(self.floor, self.ours, strict=True))

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None for a row without one."""
        bounds = [
            (statistics.median(self.ratios), self.target.ratio),
            (statistics.median(self.ours), self.target.most_ms),
        ]
        checked = [value <= bound for value, bound in bounds if bound is not None]
        return all(checked) if checked else None

    def __str__(self) -> str:
        floor, ours, ratio = map(statistics.median, (self.floor, self.ours, self.ratios))
        spread = f"{self.ratios[0]:.2f} to {self.ratios[-1]:.2f}"
        verdict = {None: "", True: "met", False: "**NOT MET**"}[self.is_met]
        return f"| {self.name} | {floor:.1f} | {ours:.1f} | **{ratio:.2f}** | {spread} | {self.target} | {verdict} |"


def timed(argv: list[str]) -> float:
    """Return the milliseconds that a process takes, which must end well."""
    began = time.perf_counter()
    done = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{shlex.join(argv)} failed: {done.stderr.decode()}")
    return took * 1000


def in_turn(acts: Mapping[str, Act], rounds: int, *, warm: int = 1) -> dict[str, Series]:
    """Time the acts one after the other, `rounds` times; `warm` rounds before that fill the caches."""
    series: dict[str, Series] = {name: [] for name in acts}
    for number in range(warm + rounds):
        for name, act in acts.items():
            took = timed(act.argv)
            act.after()
            if number >= warm:
                series[name].append(took)
    return series


def compared(name: str, target: Target, rounds: int, *, floor: Act, ours: Act) -> Row:
    series = in_turn({"floor": floor, "ours": ours}, rounds)
    return Row(name, series["floor"], series["ours"], target)


def told(row: Row) -> Row:
    """Say a row on stderr as soon as it is there: the whole takes minutes."""
    print(row, file=sys.stderr, flush=True)
    return row


def as_table(rows: list[Row], *, floor: str = "floor", ours: str = "vmm") -> str:
    head = f"| what | {floor}, ms | {ours}, ms | ratio | least to most | target | |\n|---|---:|---:|---:|---|---|---|\n"
    return head + "".join(f"{row}\n" for row in rows)


def verdict(rows: list[Row]) -> str:
    """Return in words which targets were met and which not."""
    met = [row.name for row in rows if row.is_met is True]
    missed = [row.name for row in rows if row.is_met is False]
    words = f"Targets met: {len(met)} of {len(met) + len(missed)}."
    return f"{words} Not met: {'; '.join(missed)}." if missed else words
