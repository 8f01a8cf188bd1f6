"""The host's processes, as the operations know them."""

from __future__ import annotations

import time

from vmm import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from vmm.host.recognition import Recognition
    from vmm.model.machine import ProcessIdentity

# Longer than any exec takes, and shorter than anyone notices.
_EXEC_S = 0.02


class HostProcesses:
    """The host's processes, as the operations know them; `known` returns what tells engines from all others."""

    def __init__(self, known: Callable[[], Recognition]) -> None:
        self._known = known

    def is_alive(self, process: ProcessIdentity) -> bool:
        from vmm.host import identity

        return identity.is_alive(process)

    def wait_gone(self, process: ProcessIdentity, *, timeout_s: float) -> bool:
        from vmm.host import identity

        return identity.wait_gone(process, timeout_s=timeout_s)

    def kill(self, process: ProcessIdentity) -> None:
        from vmm.host import identity

        identity.kill(process)

    def find(self, *markers: str) -> ProcessIdentity | None:
        from vmm.host import identity

        found = identity.find(*markers, known=self._known())
        if found is None:
            # In the middle of its exec a process has no command line; what is looked for here may be at that.
            time.sleep(_EXEC_S)
            found = identity.find(*markers, known=self._known())
        return found

    def find_all(self, markers: Collection[str]) -> Mapping[str, ProcessIdentity]:
        from vmm.host import identity

        return identity.find_all(markers, known=self._known())

    def ran_out_of_memory(self, machine_id: str) -> bool:
        from vmm.host import cgroups

        return cgroups.ended_by_oom(machine_id)

    def remove_group(self, machine_id: str) -> None:
        from vmm.host import cgroups

        cgroups.remove(machine_id)

    def this_process(self) -> ProcessIdentity:
        from vmm.host import identity

        return identity.this_process()
