"""The truth table tried by several processes at once, each on a ground of its own; tests ask for its cells."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import fault_table
from fault_trial import Result
from hosts import LIBRARY, Host, a_host

_WORKER = Path(__file__).with_name("fault_worker.py")
# What one cell may take: the longest takes a minute on two quiet processors, and ten times that on busy ones. A command
# that hangs is ended long before (fault_runner).
_CELL_S = 900.0
Cell = tuple[str, str]


@dataclass
class Table:
    """The cells, by verb and mode; each is tried once, in the order of the list."""

    cells: dict[Cell, Future[dict]] = field(default_factory=dict)

    def result(self, verb: str, mode: str) -> Result:
        return Result(**self.answer(verb, mode))

    def answer(self, verb: str, mode: str) -> dict:
        return self.cells[verb, mode].result(timeout=_CELL_S)

    def note(self) -> str:
        """Return the count of all that was tried."""
        answers = [future.result() for future in self.cells.values() if future.done() and not future.exception()]
        results = [Result(**answer) for answer in answers if "boundaries" in answer]
        verbs, faults = {result.verb for result in results}, {result.mode for result in results}
        tried, repeated, commands = (
            sum(getattr(result, what) for result in results) for what in ("boundaries", "repeated", "commands")
        )
        bad = sum(len(result.wrong) for result in results)
        return (
            f"truth table: {len(verbs)} verbs, {len(faults)} faults, {tried} boundaries tried, {repeated} states of the host"
            f" that they led to repeated and undone, {commands} commands; {bad} left something wrong"
        )


@contextlib.contextmanager
def a_table(cells: Iterable[Cell], directory: Path, *, workers: int) -> Iterator[Table]:
    """Try the cells with so many processes at once, while the block goes on."""
    table = Table({cell: Future() for cell in cells})
    waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    for cell in table.cells:
        waiting.put(cell)
    with contextlib.ExitStack() as stack:
        for number in range(min(workers, len(table.cells))):
            host = stack.enter_context(a_host(f"vmmtruth{number}-{id(table) % 10000}", directory / str(number)))
            thread = threading.Thread(target=_work, args=(host, directory / str(number), waiting, table), daemon=True)
            thread.start()
            stack.callback(thread.join, _CELL_S)
        yield table
        for future in table.cells.values():
            # What nobody waited for is not begun any more.
            future.cancel()
    fault_table.NOTES.append(table.note())


def _work(host: Host, directory: Path, waiting: "queue.SimpleQueue[Cell]", table: Table) -> None:
    argv = [sys.executable, str(_WORKER), host.namespace, str(directory), str(LIBRARY.resolve())]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as worker:
        ask, told, wrong = worker.stdin, worker.stdout, worker.stderr
        assert ask is not None
        assert told is not None
        assert wrong is not None
        for cell in _taken(waiting):
            future = table.cells[cell]
            if not future.set_running_or_notify_cancel():
                continue
            try:
                ask.write(json.dumps({"verb": cell[0], "mode": cell[1]}) + "\n")
                ask.flush()
                future.set_result(json.loads(told.readline()))
            except (OSError, ValueError):
                worker.kill()
                ended = AssertionError(f"the worker has ended: {wrong.read()[-3000:]}")
                future.set_exception(ended)
                # One that cannot go on is a fault of the table itself: nobody waits for the others.
                for other in _taken(waiting):
                    table.cells[other].set_exception(ended)
        ask.close()


def _taken(waiting: "queue.SimpleQueue[Cell]") -> Iterator[Cell]:
    with contextlib.suppress(queue.Empty):
        while True:
            yield waiting.get_nowait()
