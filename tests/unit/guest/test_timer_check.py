"""Stage-1 boots again where a kernel under emulation measured its timer wrongly, and nowhere else."""

import shutil
import subprocess
from pathlib import Path

import pytest

from vmm.guest import facts

SCRIPT = Path(facts.__file__).with_name("stage1-init.sh").read_text()
RIGHT = 2**32 // 16
LIST = """Tick Device: mode:     1
Per CPU device: 0
Clock Event Device: {name}
 max_delta_ns:   34359738431
 min_delta_ns:   1000
 mult:           {mult}
 shift:          32
"""


@pytest.mark.fault(46)
@pytest.mark.parametrize(
    ("name", "mult", "asked", "again"),
    [
        ("lapic", RIGHT, RIGHT, False),
        ("lapic", RIGHT * 3 // 2, RIGHT, False),
        ("lapic", RIGHT * 10, RIGHT, True),
        ("lapic", RIGHT // 10, RIGHT, True),
        ("lapic-deadline", RIGHT * 10, RIGHT, False),
        ("lapic", RIGHT * 10, "", False),
    ],
)
def test_a_timer_that_was_measured_wrongly_is_measured_anew(
    tmp_path: Path, name: str, mult: int, asked: object, again: bool
) -> None:
    busybox = shutil.which("busybox")
    assert busybox is not None
    timers = tmp_path / "timer_list"
    timers.write_text(LIST.format(name=name, mult=mult))
    function = SCRIPT[SCRIPT.index("check_timer() {") :].partition("\n}\n")[0].replace("/proc/timer_list", str(timers))
    function = function.replace("$b reboot -f", "echo REBOOT")
    script = f'b={busybox}; say() {{ echo "$*"; }}; lapic_mult={asked}\n{function}\n}}\ncheck_timer\n'
    done = subprocess.run([busybox, "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert ("REBOOT" in done.stdout) is again
    assert ("measured its timer wrongly" in done.stdout) is again
