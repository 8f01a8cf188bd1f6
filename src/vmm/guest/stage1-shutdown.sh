#!/bin/busybox sh
# The last step of a guest whose init is systemd: it pivots into /run/initramfs, runs this with what was asked for, and
# is this from then on (systemd-shutdown(8); dracut does the same). So the root can be unmounted for good, and the host is
# told how the guest ends in words of vmm's own, whatever its kernel would say.
b=/bin/busybox
PATH=/bin
said=/dev/console
[ -c $said ] || said=/dev/null

umount_all() {
	# The longest path first: what is mounted in something goes before it.
	for place in $($b cut -d ' ' -f 2 /proc/mounts | $b grep '^/oldroot' | $b sort -r); do
		$b umount "$place" 2>/dev/null || $b mount -o remount,ro "$place" 2>/dev/null
	done
}

# Another kernel is loaded: its start is no end. The guest's own program starts it.
[ "$1" = kexec ] && { $b chroot /oldroot /usr/sbin/kexec -e || $b chroot /oldroot /sbin/kexec -e; } 2>/dev/null

umount_all
case $1 in
poweroff) echo "vmm: the guest powers off" >$said ;;
halt) echo "vmm: the guest halts" >$said ;;
*) echo "vmm: the guest reboots" >$said ;;
esac
# Every engine's process ends at a reboot; Firecracker's outlives a power-off. What was asked for is on the console.
$b reboot -f
while :; do $b sleep 1; done
