"""What makes the default image boot fast: what a development machine does not need is not started.

Every fork and every device event costs; under emulation dearly. What a user of a development machine would miss stays:
apt, systemctl, journalctl, timers of their own, a console login, `systemctl is-system-running` without failed units.
"""

from collections.abc import Mapping
from pathlib import Path

# Units that never start, each with its reason. A mask is a link to /dev/null: `systemctl unmask` takes it back.
MASKED: Mapping[str, str] = {
    "systemd-udev-trigger.service": "replays an event for every device at boot; devtmpfs has made the nodes already",
    "systemd-udevd.service": "nothing is hot-plugged into a microVM; disk and network are up before init",
    "systemd-udevd-control.socket": "would start udevd",
    "systemd-udevd-kernel.socket": "would start udevd",
    "systemd-hwdb-update.service": "udev's database of hardware that is not there",
    "modprobe@configfs.service": "a fork each, for file systems and devices that a microVM does not have",
    "modprobe@dm_mod.service": "as above",
    "modprobe@drm.service": "as above",
    "modprobe@efi_pstore.service": "as above",
    "modprobe@fuse.service": "as above; mounting a fuse file system loads its module by itself",
    "modprobe@loop.service": "as above; losetup loads its module by itself",
    "dev-hugepages.mount": "no program of a development machine asks for it; mounted by hand in a moment",
    "dev-mqueue.mount": "as above",
    "sys-kernel-debug.mount": "as above",
    "sys-kernel-tracing.mount": "as above",
    "sys-kernel-config.mount": "as above",
    "sys-fs-fuse-connections.mount": "as above",
    "proc-sys-fs-binfmt_misc.automount": "as above",
    "systemd-journal-flush.service": "the journal is kept in memory (see the drop-in)",
    "systemd-update-utmp.service": "writes a record that no one reads",
    "systemd-update-utmp-runlevel.service": "as above",
    "systemd-random-seed.service": "the kernel trusts the CPU's or virtio's entropy; crediting a seed waits",
    "systemd-sysusers.service": "packages have made their users when the image was built",
    "systemd-tmpfiles-setup-dev.service": "devtmpfs has made the nodes",
    "systemd-tmpfiles-setup-dev-early.service": "as above",
    "kmod-static-nodes.service": "as above",
    "ldconfig.service": "its cache was made when the image was built",
    "systemd-journal-catalog-update.service": "as above, for the journal's catalog",
    "systemd-update-done.service": "as above; there is nothing that an update left to do",
    "sshd-keygen.service": "stage-1 brings the host key; no others are needed",
    "systemd-modules-load.service": "no module is configured; stage-1 has loaded what is needed",
    "systemd-pstore.service": "a microVM has no persistent store for crashes",
    "systemd-firstboot.service": "stage-1 has set host name and machine id",
    "systemd-machine-id-commit.service": "as above",
    "systemd-remount-fs.service": "stage-1 has mounted the root writable",
    "systemd-ask-password-console.path": "nothing asks for a password at boot",
    "systemd-ask-password-wall.path": "as above",
    "getty@.service": "a microVM has no virtual terminal",
    "getty-static.service": "as above",
    "e2scrub_reap.service": "scrubs LVM snapshots",
    "e2scrub_all.timer": "as above",
    "fstrim.timer": "the host sees to its own blocks",
    "apt-daily.timer": "a machine that someone works on is not upgraded behind their back",
    "apt-daily-upgrade.timer": "as above",
    "dpkg-db-backup.timer": "as above",
    "sys-devices-virtual-misc-rfkill.device": "no radio",
}

# Generators run at every boot, one fork each; what they would generate is masked or not there.
MASKED_GENERATORS = (
    "systemd-bless-boot-generator",
    "systemd-cryptsetup-generator",
    "systemd-debug-generator",
    "systemd-fstab-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-rc-local-generator",
    "systemd-run-generator",
    "systemd-ssh-generator",
    "systemd-tpm2-generator",
    "systemd-system-update-generator",
    "systemd-sysv-generator",
    "systemd-veritysetup-generator",
)

# sshd is the door: it needs nothing but a mounted root and the network, which stage-1 has brought up.
_SSH_UNIT = """[Unit]
Description=OpenBSD Secure Shell server
Documentation=man:sshd(8) man:sshd_config(5)
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=notify
EnvironmentFile=-/etc/default/ssh
ExecStart=/usr/sbin/sshd -D $SSHD_OPTS
ExecReload=/bin/kill -HUP $MAINPID
KillMode=process
Restart=on-failure
RestartPreventExitStatus=255
RuntimeDirectory=sshd
RuntimeDirectoryMode=0755
RuntimeDirectoryPreserve=yes

[Install]
WantedBy=sysinit.target
Alias=sshd.service
"""

# On one slow vCPU all that starts at once shares it. What can wait until sshd listens does; the journal's sockets take
# what is said until journald reads it, so nothing said before is lost.
_AFTER_SSH = "[Unit]\nAfter=ssh.service\n"
_WAITS_FOR_SSH = (
    "systemd-journald.service", "systemd-sysctl.service", "systemd-tmpfiles-setup.service", "systemd-logind.service",
)  # fmt: skip
# Not needed until someone asks for it (`reboot`, `loginctl`): D-Bus starts it then, or root's service manager.
# Its package may put this back, which changes little.
_ON_DEMAND = "usr/lib/systemd/system/multi-user.target.wants/systemd-logind.service"

FILES: Mapping[str, str] = {
    **{f"etc/systemd/system/{unit}.d/vmm.conf": _AFTER_SSH for unit in _WAITS_FOR_SSH},
    "etc/systemd/system/ssh.service": _SSH_UNIT,
    "etc/ssh/sshd_config.d/vmm.conf": (
        "# The host key is made on the host, so that it knows whom it speaks to.\n"
        "HostKey /etc/ssh/ssh_host_ed25519_key\n"
        "PermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\n"
        "UseDNS no\n"
        "PrintMotd no\n"
        "AcceptEnv LANG LC_*\n"
        "Match User root\n"
        "\tSetEnv XDG_RUNTIME_DIR=/run/user/0\n"
    ),
    # `systemctl --user` has someone to talk to. PAM would start it at a login, and every first `vmm exec` would wait.
    "etc/systemd/system/user@0.service.d/vmm.conf": (
        "[Unit]\nAfter=ssh.service\n[Service]\nEnvironment=XDG_RUNTIME_DIR=/run/user/0\n"
    ),
    "etc/profile.d/vmm.sh": (
        "# On the console, as sshd does: where root's own services are reached.\n"
        '[ "$(id -u)" != 0 ] || export XDG_RUNTIME_DIR=/run/user/0\n'
    ),
    "etc/systemd/journald.conf.d/vmm.conf": (
        "# In memory: no flush at boot. `mkdir /var/log/journal` and Storage=auto keep it on disk.\n"
        "[Journal]\nStorage=volatile\nRuntimeMaxUse=32M\n"
    ),
    "etc/systemd/system.conf.d/vmm.conf": "[Manager]\nDefaultTimeoutStopSec=10s\nShowStatus=no\n",
    "etc/fstab": "# The root is mounted by stage-1.\n/dev/vda / ext4 defaults 0 1\n",
    "etc/hostname": "vmm\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    "etc/machine-id": "",
}


def tune(tree: Path) -> None:
    """Apply all of it to a root file system's tree, freshly built and never booted."""
    units = tree / "etc/systemd/system"
    generators = tree / "etc/systemd/system-generators"
    for directory in (units, generators):
        directory.mkdir(parents=True, exist_ok=True)
    for unit in MASKED:
        _link(units / unit, "/dev/null")
    for generator in MASKED_GENERATORS:
        _link(generators / generator, "/dev/null")
    for name, content in FILES.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(content, encoding="utf-8")
    for wanting in ("sysinit.target.wants", "multi-user.target.wants"):
        (units / wanting).mkdir(exist_ok=True)
    _link(units / "multi-user.target.wants/user@0.service", "/usr/lib/systemd/system/user@.service")
    _link(units / "sysinit.target.wants/ssh.service", "../ssh.service")
    for stale in ("multi-user.target.wants/ssh.service", "sshd.service"):
        (units / stale).unlink(missing_ok=True)
    _link(units / "sshd.service", "ssh.service")
    (tree / _ON_DEMAND).unlink(missing_ok=True)
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)
