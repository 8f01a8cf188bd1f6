"""What a command imports, told by the process itself."""

# Runs vmm with the script's arguments, and prints every module that was imported to stderr when it ends.
TELL_MODULES = """
import os, sys
sys.argv = ["vmm", *sys.argv[1:]]
end = os._exit
def leave(code):
    print("\\n".join(sys.modules), file=sys.stderr, flush=True)
    end(code)
os._exit = leave
from vmm.__main__ import main
main()
"""
