"""The faults that a manager with root must survive, a row each; tests name the rows that they hold."""

# Rows of features that are not there yet: snapshots, the web face, a privileged helper.
LATER = {20: "snapshot files tampered with", 21: "one snapshot started twice", 23: "web", 39: "privileged helper"}
ROWS = {
    1: "kill -9 after every side effect",
    2: "many commands at once",
    3: "a reused pid",
    4: "a reboot of the host",
    5: "machine to machine",
    6: "machine to host and metadata",
    7: "spoofed MAC, address, ARP, RA, VLAN",
    8: "a hostile image tar",
    9: "a decompression bomb",
    10: "a download that is cut, wrong or redirected",
    11: "no space",
    12: "power loss around commit and rename",
    13: "the engine dies",
    14: "the engine hangs",
    15: "the engine's API answers garbage",
    16: "names and paths that inject",
    17: "a database that is damaged, older or newer",
    18: "an upgrade while machines run",
    19: "a state directory that is read-only or full",
    20: "snapshot files tampered with",
    21: "one snapshot started twice",
    22: "a console flood",
    23: "the web face attacked",
    24: "file modes under umask 000",
    25: "a changed host key, a reused address",
    26: "a jail directory that others prepared",
    27: "a Firecracker too old, or with a hole",
    28: "a port that is taken",
    29: "firewall or bridge removed by others",
    30: "EMFILE, ENOMEM, EPERM",
    31: "Ctrl-C, SIGTERM, SIGHUP",
    32: "the clock jumps",
    33: "addresses exhausted, subnets that clash",
    34: "a hostile ext4 image",
    35: "a state directory on a network file system",
    36: "1,000 and 10,000 machines",
    37: "500 cycles of create and delete",
    38: "secrets in argv, logs, JSON, traces",
    39: "a privileged helper attacked",
    40: "a kernel that lacks what isolates",
    41: "another tool flushes all rules while machines run",
    42: "a guest that opens connections without end",
    43: "another user's process that looks like an engine",
    44: "another user who holds a read transaction or a lock",
    45: "a second vmm on the host",
    46: "guest kernels of every age power off, reboot, panic, hang",
    47: "roots that nobody tuned",
    48: "words for a guest that look like options",
    49: "output without end, or with control characters",
    50: "a host that is configured against vmm",
}


# What tests have to say of their own counts, such as the boundaries at which every verb was ended.
NOTES: list[str] = []


def summary(outcomes: dict[int, set[str]], *, whole: bool) -> str:
    """Return the count of rows held: those whose tests all passed, at least one of them; `whole`: of all tests."""
    held = sorted(row for row, seen in outcomes.items() if seen == {"passed"})
    lines = [f"{len(held)} of {len(ROWS)} rows held: {', '.join(map(str, held))}"]
    broken = sorted(set(outcomes) - set(held))
    untested = sorted(set(ROWS) - set(outcomes) - set(LATER))
    if broken:
        named = (f"{row} ({ROWS[row]}: {', '.join(sorted(outcomes[row]))})" for row in broken)
        lines.append("not held: " + "; ".join(named))
    if untested and whole:
        lines.append("in no test of this run: " + "; ".join(f"{row} ({ROWS[row]})" for row in untested))
    if whole:
        lines.append("of later versions: " + "; ".join(f"{row} ({why})" for row, why in LATER.items()))
    return "\n".join(lines)
