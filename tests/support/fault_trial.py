"""One verb tried with one fault at every boundary: what it does without, and what is wrong after each."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import fault_ground
import fault_mounts
import fault_verbs
from failpoints import Fault, Kind, Mode, happens_at, steady
from fault_judge import differences, host_part, is_supervisor, is_temporary, orphans, wrong_end
from fault_runner import Ended, Runner
from fault_verbs import SMALL, Verb

# Of a machine as it is shown: what differs between two machines that are the same.
_VOLATILE = {"id", "pid", "created_at", "started_at"}
Meddle = Callable[["Trials"], None]
_LIVE = {"running", "paused", "stopping"}
_GONE_S = 5.0
# How often what is shown is looked at anew because a process has ended meanwhile.
_LOOKS = 5


@dataclass(frozen=True)
class Clean:
    """A verb without a fault: its boundaries, and what the host shows after it and after all was deleted."""

    boundaries: tuple[tuple[str, Kind], ...]
    final: dict[str, object]
    left: dict[str, object]

    def failed(self, rows: list[dict]) -> "Clean":
        """Return the same, its machine failed as these rows say it is."""
        failed = {key: rows[0][key] for key in ("state", "reason")}
        machines = [{**row, **failed} for row in self.final["machines"]]
        return Clean(self.boundaries, {**self.final, "machines": machines}, self.left)

    def begins(self, verb: Verb) -> int:
        """Return how many boundaries are tried in another row of the table."""
        return [key for key, _ in self.boundaries].index(verb.since) + 1 if verb.since is not None else 0


@dataclass(frozen=True)
class Looked:
    """What a listing shows, and in what it differs from the host."""

    rows: list[dict]
    wrong: list[str]


@dataclass
class Result:
    """What one verb and one mode gave. `wrong` has what was wrong by the boundary's key."""

    verb: str
    mode: str
    boundaries: int = 0
    wrong: dict[str, list[str]] = field(default_factory=dict)
    repeated: int = 0
    reconciled: int = 0
    seconds: float = 0.0
    commands: int = 0


class Trials:
    """Trials on one ground. `paths` are of the files that verbs are given, `name` is the machine's."""

    def __init__(self, ground: fault_ground.Ground, runner: Runner, paths: dict[str, str], name: str) -> None:
        self.ground = ground
        self.runner = runner
        self.paths = paths
        self.name = name
        self._kept: dict[fault_verbs.Ground, fault_ground.Kept] = {}
        self._clean: dict[str, tuple[Clean, list[str]]] = {}
        self._good: set[tuple[str, str]] = set()
        self._dirty = True
        self._was_cold = False
        self.repeated = 0
        self.reconciled = 0

    def run(self, verb: Verb, mode: Mode) -> Result:
        """Try the verb with the fault at every boundary that the fault can happen at."""
        began, before = time.monotonic(), (self.runner.count, self.repeated, self.reconciled)
        result = Result(verb=verb.title, mode=mode.value)
        clean, wrong = self.clean(verb)
        if wrong:
            result.wrong["without a fault"] = wrong
        known = (("from the start", Kind.START), *clean.boundaries)
        keys = [(key, kind) for key, kind in known[clean.begins(verb) :] if happens_at(mode, kind)]
        result.boundaries = len(keys)
        for key, kind in keys:
            if wrong := self.trial(verb, Fault(mode, key), kind, clean):
                result.wrong[key] = wrong
        result.seconds = time.monotonic() - began
        now = (self.runner.count, self.repeated, self.reconciled)
        result.commands, result.repeated, result.reconciled = (new - old for new, old in zip(now, before, strict=True))
        return result

    def trial(self, verb: Verb, fault: Fault, kind: Kind, clean: Clean, *, meddle: Meddle | None = None) -> list[str]:
        """Run the verb with a fault, and return all that is wrong then, after a repetition, and after deleting all.

        `meddle` is called after the fault, for the tests of this table itself.
        """
        engine = self.prepare(verb)
        ended, wrong = self._faulty(verb, fault, kind)
        if meddle is not None:
            meddle(self)
        wrong += [f"a program of it goes on: {argv}" for argv in self.ground.quiet(ended.session)]
        return wrong + self.after(verb, ended.code, engine, clean)

    def after(self, verb: Verb, code: int, engine: int | None, clean: Clean) -> list[str]:
        """Return what is wrong after a verb that met a fault and ended with `code`, and then repeated, and then undone.

        What comes after depends on nothing but what the host shows: where that is what it was after another fault of
        this verb's, to the last file and row, and all was well then, it is not done once more.
        """
        # A full disk is still full when the state is asked for, and a read-only one still read-only.
        seen = self._looked(verb, engine)
        wrong = list(seen.wrong)
        fault_mounts.lift(str(self.ground.root))
        there = self.ground.inventory()
        state = (verb.title, self._state(there, seen))
        if code != 0 and not wrong and state in self._good:
            if self.ground.processes() or host_part(there) != host_part(clean.left):
                wrong = self._cleaned()
                self._dirty = bool(wrong) or host_part(self.ground.inventory()) != host_part(clean.left)
            return wrong
        if verb.may_fail and code == 1 and [row["state"] for row in seen.rows] == ["failed"]:
            clean = clean.failed(seen.rows)
        if code != 0:
            self.repeated += 1
            again = self._vmm(verb)
            if again.code != 0 and not (verb.done and re.search(verb.done, again.err, re.DOTALL)):
                wrong.append(f"repeated: {again.words}")
            seen = self._looked(verb, engine)
            wrong += [f"repeated, then {text}" for text in seen.wrong]
        wrong += self._other_than(clean, seen)
        wrong += self._undone(clean)
        if not wrong:
            self._good.add(state)
        return wrong

    def _other_than(self, clean: Clean, seen: Looked) -> list[str]:
        """Return in what the host differs from how the verb leaves it. What was left among files is for `reconcile`."""
        final = self._final(seen)
        wrong = []
        if final["files"] != clean.final["files"]:
            wrong = self._reconciled()
            final["files"] = self._final(seen)["files"]
        return wrong + differences("repeated, it differs", clean.final, final)

    def _reconciled(self) -> list[str]:
        self.reconciled += 1
        ended = self.runner.run(["reconcile"])
        return [] if ended.code == 0 else [f"reconcile: {ended.words}"]

    def _undone(self, clean: Clean) -> list[str]:
        """Delete all; return what is wrong then. What was left among files is for `reconcile`."""
        wrong = self._cleaned()
        left = self.ground.inventory()
        if left["files"] != clean.left["files"]:
            wrong += self._reconciled()
            left = self.ground.inventory()
        self._dirty = bool(wrong) or host_part(left) != host_part(clean.left)
        return wrong + differences("all deleted, it differs", clean.left, left)

    def _state(self, there: dict[str, object], looked: Looked) -> str:
        """Return all that the host shows, without what differs from run to run."""
        shown = [{key: value for key, value in row.items() if key not in _VOLATILE} for row in looked.rows]
        seen = {**there, "records": self.ground.records(), "machines": shown}
        return steady(json.dumps(seen, sort_keys=True))

    def clean(self, verb: Verb) -> tuple[Clean, list[str]]:
        """Return what the verb does without a fault, and what is wrong with that."""
        if verb.title not in self._clean:
            self._clean[verb.title] = self._recorded(verb)
        return self._clean[verb.title]

    def _faulty(self, verb: Verb, fault: Fault, kind: Kind) -> tuple[Ended, list[str]]:
        """Run the verb so that it meets the fault; return how it ended, and what is wrong with that."""
        if kind is not Kind.START:
            ended = self._vmm(verb, fault)
            return ended, wrong_end(ended, fault, kind)
        if fault.mode is Mode.READ_ONLY:
            fault_mounts.make_read_only(str(self.ground.root))
            ended = self._vmm(verb)
            return ended, wrong_end(ended, fault, kind)
        with self.ground.held_database():
            ended = self._vmm(verb)
            listed = self.runner.ask("list")
        wrong = wrong_end(ended, fault, kind)
        if listed.code != 0 and "The database is in use." not in listed.err:
            wrong.append(f"list while it is held: {listed.words}")
        return ended, wrong

    def prepare(self, verb: Verb) -> int | None:
        """Make the ground as the verb is to find it; return the pid of the engine of a machine that runs."""
        running = verb.ground is fault_verbs.Ground.RUNNING
        fault_mounts.lift(str(self.ground.root))
        self.ground.be_none()
        kept = self._keep(fault_verbs.Ground.STOPPED if running else verb.ground)
        # A network that a verb has made anew may be that of a data directory with another id.
        if self._dirty or verb.cold or self._was_cold:
            self.ground.sweep()
            self._dirty = False
        self._was_cold = verb.cold
        if not verb.cold and not self.ground.network.has_link("vmm-br0"):
            self._keep(fault_verbs.Ground.SET_UP).back()
            self._done("setup", "--no-kernel", "--no-image")
        kept.back()
        if not verb.is_watched:
            self.ground.be_supervisor()
        if not running:
            return None
        self._done("start", self.name)
        (row,) = self._listed()
        self.ground.ids.add(row["id"])
        return row["pid"]

    def _recorded(self, verb: Verb) -> tuple[Clean, list[str]]:
        """Run the verb twice without a fault; it must do the same both times, and leave nothing that it should not."""
        runs: list[Clean] = []
        wrong: list[str] = []
        for _ in range(2):
            engine = self.prepare(verb)
            ended = self._vmm(verb, watch=True)
            if ended.code != 0:
                wrong.append(ended.words)
            wrong += [f"SQL that went past the failpoints: {statement}" for statement in ended.missed]
            seen = self._looked(verb, engine)
            wrong += seen.wrong
            final = self._final(seen)
            wrong += self._cleaned()
            runs.append(Clean(ended.reached, final, self.ground.inventory()))
        first, second = (dict(run.boundaries) for run in runs)
        wrong += [f"a boundary of one run only: {key}" for key in sorted(first.keys() ^ second.keys())]
        wrong += differences("twice done, it differs", runs[0].final, runs[1].final)
        wrong += differences("twice deleted, it differs", runs[0].left, runs[1].left)
        wrong += orphans(runs[0].left)
        self._dirty = bool(wrong)
        return runs[0], wrong

    def arguments(self, verb: Verb) -> list[str]:
        return [argument.format(**self.paths, name=self.name) for argument in verb.argv]

    def _vmm(self, verb: Verb, fault: Fault | None = None, *, watch: bool = False) -> Ended:
        return self.runner.run(self.arguments(verb), fault=fault, watch=watch)

    def _done(self, *argv: str) -> Ended:
        ended = self.runner.run(list(argv))
        assert ended.code == 0, f"{argv}: {ended.words}"
        return ended

    def _listed(self) -> list[dict]:
        asked = self.runner.ask("list", "--output", "json")
        assert asked.code == 0, asked.words
        return json.loads(asked.out)

    def _keep(self, wanted: fault_verbs.Ground) -> fault_ground.Kept:
        if wanted not in self._kept:
            self._make(wanted)
            self._kept[wanted] = self.ground.keep(wanted.name)
        return self._kept[wanted]

    def _make(self, wanted: fault_verbs.Ground) -> None:
        grounds, paths = fault_verbs.Ground, self.paths
        if wanted is grounds.BARE:
            for entry in self.ground.root.iterdir():
                raise AssertionError(f"{entry} is there before anything was done")
            return
        before = grounds.BARE if wanted is grounds.SET_UP else grounds.SET_UP
        self._keep(before).back()
        if wanted is grounds.EMPTY:
            self._done("create", self.name, *SMALL)
            self._done("delete", self.name)
        elif wanted is grounds.SET_UP:
            self._done("setup", "--no-kernel", "--no-image", "--firecracker", paths["firecracker"])
            self._done("kernel", "import", paths["kernel"], "--name", "tiny", "--no-stage1")
            self._done("kernel", "import", paths["kernel"], "--name", "stage1")
            self._done("image", "import", paths["image"], "--name", "tiny")
        elif wanted is grounds.LIBRARY:
            self._done("kernel", "import", paths["kernel"], "--name", "other", "--no-stage1")
            self._done("image", "import", paths["image"], "--name", "other")
        else:
            created = wanted is grounds.CREATED
            more = ("--kernel", "stage1", "--user-data", paths["user_data"]) if created else ()
            self._done("create", self.name, *SMALL, *more)
            self.ground.be_supervisor()
            self._done("port-forward", "add", self.name, fault_verbs.FORWARD)
            if not created:
                self._done("start", self.name)
                self._done("stop", self.name, "--force")
        self.ground.be_none()
        if wanted not in (grounds.SET_UP, grounds.LIBRARY):
            self.ground.ids |= self.ground.ids_now()

    def _final(self, looked: Looked) -> dict[str, object]:
        """Return what the host shows after a verb; a temporary file that a crash left may wait for the end."""
        shown = [{key: value for key, value in row.items() if key not in _VOLATILE} for row in looked.rows]
        seen = self.ground.inventory()
        files = {path: what for path, what in seen["files"].items() if not is_temporary(path)}
        return {**seen, "files": files, "machines": shown}

    def _cleaned(self) -> list[str]:
        """Delete every machine as a user would; return what is wrong then."""
        ended = self.runner.run(["delete", "--all", "--force"])
        wrong = [] if ended.code == 0 else [f"deleting all: {ended.words}"]
        deadline = time.monotonic() + _GONE_S
        while left := self.ground.processes():
            if time.monotonic() > deadline:
                return [*wrong, f"all deleted, these run: {list(left.values())}"]
            time.sleep(0.003)
        return wrong

    def _looked(self, verb: Verb, engine: int | None) -> Looked:
        """Return what is shown, and what is wrong with it; looked at anew where a process has ended meanwhile.

        An engine that was killed takes a moment to go. Where vmm could not wait for it, it ends between two questions.
        """
        for _ in range(_LOOKS):
            before = self.ground.processes().keys()
            seen = self._look(verb, engine)
            if not seen.wrong or before == self.ground.processes().keys():
                break
        return seen

    def _look(self, verb: Verb, engine: int | None) -> Looked:
        """List the machines, and compare with the host."""
        if verb.is_watched:
            self.ground.settled()
        asked = self.runner.ask("list", "--output", "json")
        if asked.code != 0:
            return Looked([], [f"list: {asked.words}"])
        rows = json.loads(asked.out)
        self.ground.ids.update(row["id"] for row in rows if "id" in row)
        processes = self.ground.processes()
        wrong: list[str] = []
        for row in rows:
            engines = self.ground.engines(row["name"], row.get("id", ""), processes)
            for pid in engines:
                del processes[pid]
            wrong += self._untrue_row(row, engines)
        wrong += [f"a process of no machine: {argv}" for argv in processes.values() if not is_supervisor(argv)]
        if verb.leaves_running and [row["pid"] for row in rows] != [engine]:
            wrong.append(f"the machine that ran as {engine} is {rows}")
        if not any(row["name"] == self.name for row in rows):
            asked = self.runner.ask("show", self.name)
            if asked.code != 1 or "There is no machine" not in asked.err:
                wrong.append(f"show of none: {asked.words}")
        libraries = verb.argv[0] in ("image", "kernel", "setup", "create")
        return Looked(rows, wrong + (self._untrue_libraries() if libraries else []))

    def _untrue_row(self, row: dict, engines: list[int]) -> list[str]:
        wrong: list[str] = []
        state = row["state"]
        if state in _LIVE:
            if engines != [row["pid"]]:
                wrong.append(f"list says {state} with pid {row['pid']}, its engines are {engines}")
            if not self.ground.network.has_link(row["tap_device"]):
                wrong.append(f"list says {state}, and there is no tap {row['tap_device']}")
        elif engines or state in ("starting", "unreadable"):
            wrong.append(f"list says {state} ({row['reason']}), its engines are {engines}")
        asked = self.runner.ask("show", row["name"], "--output", "json")
        if asked.code != 0 or json.loads(asked.out) != row:
            wrong.append(f"show and list differ: {asked.words}, {row}")
        return wrong

    def _untrue_libraries(self) -> list[str]:
        wrong: list[str] = []
        for what, directory in (("image", "rootfs"), ("kernel", "kernels")):
            path = self.ground.root / "images" / directory
            there = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
            asked = self.runner.ask(what, "list", "--output", "json")
            listed = json.loads(asked.out) if asked.code == 0 else None
            if listed is None or any(row.get("damaged") for row in listed) or [row["name"] for row in listed] != there:
                wrong.append(f"{what} list: {asked.words}; there are {there}")
        return wrong
