"""What several threads of one command want of the firewall at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vmm.errors import NetworkError
from vmm.network import firewall


def test_what_threads_want_meanwhile_is_done_by_one_nft(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def worked(commands: str) -> bool:
        done.append(commands)
        if commands == "first":
            begun.set()
            assert go_on.wait(10)
        return "bad" not in commands

    monkeypatch.setattr(firewall, "_nft_worked", worked)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(firewall._worked_together, "first")
        assert begun.wait(10)
        others = {name: pool.submit(firewall._worked_together, name) for name in ("a", "bad", "c")}
        while len(firewall._waiting) < len(others):
            time.sleep(0.001)
        go_on.set()
        assert first.result(10)
        assert {name: future.result(10) for name, future in others.items()} == {"a": True, "bad": False, "c": True}
    together = done[1]
    assert sorted(together.split("\n")) == ["a", "bad", "c"]
    # One that cannot be done is found by trying each.
    assert sorted(done[2:]) == ["a", "bad", "c"]


def test_what_was_taken_over_by_a_thread_that_fails_is_done_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def worked(commands: str) -> bool:
        if commands == "first":
            begun.set()
            assert go_on.wait(10)
        elif not done:
            done.append("failed")
            raise NetworkError("nft cannot be run.", details="none", resolution="none")
        else:
            done.append(commands)
        return True

    monkeypatch.setattr(firewall, "_nft_worked", worked)
    with ThreadPoolExecutor(9) as pool:
        pool.submit(firewall._worked_together, "first")
        assert begun.wait(10)
        futures = [pool.submit(firewall._worked_together, name) for name in "abc"]
        while len(firewall._waiting) < len(futures):
            time.sleep(0.001)
        go_on.set()
        failed = [future.exception(10) for future in futures]
    assert [type(error) for error in failed if error] == [NetworkError]
    assert [future.result() for future in futures if not future.exception()] == [True, True]
    assert len(done) == 3
    assert firewall._waiting == []
