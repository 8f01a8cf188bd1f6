"""The way in. Asking for the version imports nothing but this."""

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    if sys.argv[1:] in (["--version"], ["-V"], ["version"]):
        from vmm import VERSION

        sys.stdout.write(f"vmm {VERSION}\n")
        return 0
    from vmm.cli.main import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
