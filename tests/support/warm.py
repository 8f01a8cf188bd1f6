"""Runs vmm's commands in an interpreter that has imported it already: each a fork, which ends as the command does.

Under emulation the start of an interpreter with vmm's modules takes five to ten seconds, and a test runs dozens of
commands. Nothing else differs: a process of its own, its words, its streams and its exit code. It reads a request a line
(JSON: `argv`, `stdin`) and answers with a line each (JSON: `returncode`, `stdout`, `stderr`).
"""

import importlib
import json
import os
import pkgutil
import sys
import tempfile


def main() -> None:
    import vmm

    for module in pkgutil.walk_packages(vmm.__path__, "vmm."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    import vmm.__main__

    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_answer(request["argv"], request["stdin"])), flush=True)


def _answer(argv: list[str], stdin: str) -> dict[str, object]:
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.flush()
        given.seek(0)
        pid = os.fork()
        if pid == 0:
            _become(argv, [given.fileno(), out.fileno(), err.fileno()])
        _, status = os.waitpid(pid, 0)
        said = [os.pread(file.fileno(), 1 << 22, 0).decode(errors="replace") for file in (out, err)]
    return {"returncode": os.waitstatus_to_exitcode(status), "stdout": said[0], "stderr": said[1]}


def _become(argv: list[str], files: list[int]) -> None:
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        sys.argv = ["vmm", *argv]
        from vmm.__main__ import main as vmm_main

        vmm_main()
    finally:
        os._exit(70)


if __name__ == "__main__":
    main()
