"""vmm's systemd unit: what brings machines back after a reboot."""

from pathlib import Path

UNIT = "vmm.service"
UNIT_DIRECTORY = Path("/etc/systemd/system")

# KillMode=process: stopping or restarting the unit ends no machine but through `vmm autostop`, which asks each guest.
# Before systemd kills what is left of a user's or container's processes, autostop has had its time.
_UNIT = """[Unit]
Description=vmm: virtual machines that come back after a reboot
Documentation=man:vmm(1)
After=network.target nftables.service docker.service firewalld.service ufw.service
Wants=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
Environment=VMM_DATA_DIR={data_dir}
ExecStart={executable} autostart
ExecStop={executable} autostop --timeout 60
KillMode=process
TimeoutStartSec=infinity
TimeoutStopSec=120

[Install]
WantedBy=multi-user.target
"""


def unit_text(*, executable: Path, data_dir: Path) -> str:
    """Return the unit for a vmm that lies at `executable`."""
    return _UNIT.format(executable=_escaped(executable), data_dir=_escaped(data_dir))


def is_running() -> bool:
    """Whether systemd is this host's init (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def _escaped(path: Path) -> str:
    # systemd reads '%' as the start of a specifier.
    return str(path).replace("%", "%%")
