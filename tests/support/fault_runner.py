"""vmm commands as forks of a process that has imported all of vmm: 3 ms each, where a process of its own takes 80."""

import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import select
import signal
import sqlite3
import sys
import traceback
from dataclasses import dataclass

from failpoints import Failpoints, Fault, Kind

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Longer than any command here takes; one that takes it hangs.
_HANGS_S = 60.0
# How long a database that is held is waited for, where vmm waits for seconds.
_BUSY_S = 0.2
# What an image here needs; its checksum takes most of the time of an import.
_SIZE_MIB = 16


@dataclass(frozen=True)
class Asked:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        return f"exit code {self.code}, it said: {(self.err.strip() or self.out.strip())[-600:] or 'nothing'}"


@dataclass(frozen=True)
class Ended(Asked):
    """The same of one in a process of its own. `struck`: its fault happened. `reached`: its boundaries, in order."""

    session: int
    struck: bool
    reached: tuple[tuple[str, Kind], ...]
    missed: tuple[str, ...]


def import_vmm() -> None:
    """Import every module of vmm, and what they import when they are first used; then keep all out of the collector's way."""
    import vmm

    for module in pkgutil.walk_packages(vmm.__path__, "vmm."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("vmm.__main__")
    for name in ("concurrent.futures.thread", "difflib", "hashlib", "ipaddress", "select", "shlex", "shutil", "tempfile",
                 "tarfile", "threading", "zipfile", "rich.console", "rich.progress", "multiprocessing", "base64"):  # fmt: skip
        importlib.import_module(name)
    _lighten()
    sys.dont_write_bytecode = True
    gc.collect()
    gc.freeze()


def _lighten() -> None:
    """Let what takes long and matters to no fault take less: compression, sizes of images, and waiting for a lock."""
    from vmm.guest import stage1
    from vmm.images import rootfs, sources

    make_ext4 = sources.make_ext4
    stage1._GZIP_LEVEL = 1
    rootfs.SIZE_MIB = _SIZE_MIB
    sources.make_ext4 = lambda tree, out, *, size_mib: make_ext4(tree, out, size_mib=size_mib or _SIZE_MIB)
    connect = sqlite3.connect
    sqlite3.connect = lambda *given, timeout=5.0, **named: connect(*given, timeout=min(timeout, _BUSY_S), **named)


class Runner:
    """Runs vmm with one data directory. `names` are what labels show in place of what differs between runners."""

    def __init__(self, root: str, names: dict[str, str]) -> None:
        self._root = root
        self._names = names
        self.count = 0
        # Where this process has vmm from, one that it starts has it too.
        kept = {key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ}
        os.environ.clear()
        os.environ.update({"PATH": _PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "VMM_DATA_DIR": root, **kept})

    def run(self, argv: list[str], *, fault: Fault | None = None, watch: bool = False, tune=None) -> Ended:
        """Run one command to its end; with `fault` or `watch` its boundaries are noted. `tune` is called in the child."""
        self.count += 1
        out, err, report = (os.memfd_create(name) for name in ("out", "err", "report"))
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._become(argv, fault, watch=watch, descriptors=(out, err, report), tune=tune)
        try:
            code = _waited(pid)
            struck, told = _report(_content(report))
            return Ended(
                code=code,
                out=_content(out).decode(errors="replace"),
                err=_content(err).decode(errors="replace"),
                session=pid,
                struck=struck,
                reached=tuple((key, Kind(kind)) for key, kind in told.get("reached", ())),
                missed=tuple(told.get("missed", ())),
            )
        finally:
            for fd in (out, err, report):
                os.close(fd)

    def ask(self, *argv: str) -> Asked:
        """Run one command that only reads in this process, which takes a tenth of the time."""
        from vmm.cli.main import run
        from vmm.cli.short import run_short

        self.count += 1
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_short(argv)
            if code is None:
                code = run(argv)
        return Asked(code=code, out=out.getvalue(), err=err.getvalue())

    def _become(self, argv: list[str], fault: Fault | None, *, watch: bool, descriptors, tune) -> None:
        """Be a vmm process; never returns."""
        code = 70
        try:
            out, err, report = descriptors
            os.setsid()
            null = os.open(os.devnull, os.O_RDONLY)
            for fd, number in ((null, 0), (out, 1), (err, 2)):
                os.dup2(fd, number)
            os.closerange(3, report)
            sys.argv = ["vmm", *argv]
            signal.set_wakeup_fd(-1)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            points = Failpoints(self._root, self._names, fault=fault, report=report)
            if tune is not None:
                tune()
            if watch or fault is not None:
                points.install()
            code = _main()
        except BaseException:  # noqa: BLE001  # whatever it is, this process must not go on as the other
            traceback.print_exc()
        finally:
            with_hooks = os._exit
            sys.stderr.flush()
            with_hooks(code)


def _main() -> int:
    """Do what the interpreter does with `sys.exit(main())`. main ends the process itself, unless it fails to."""
    from vmm.__main__ import main

    try:
        return main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    except BaseException:  # noqa: BLE001  # as the interpreter does
        traceback.print_exc()
        return 1


def _waited(pid: int) -> int:
    fd = os.pidfd_open(pid)
    try:
        if not select.select([fd], [], [], _HANGS_S)[0]:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _content(fd: int) -> bytes:
    return os.pread(fd, 1 << 24, 0)


def _report(content: bytes) -> tuple[bool, dict]:
    struck, _, told = content.partition(b"\n")
    return struck == b"F", json.loads(told) if told else {}
