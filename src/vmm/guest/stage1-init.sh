#!/bin/busybox sh
# vmm's stage-1: runs as PID 1 of every machine, brings up disk and network, applies this machine's facts inside the
# guest, and becomes the guest's own init. The host never touches a guest's disk; all that happens here is in the guest.
# Facts lie in /vmm, one file each, and are only ever read as data.
b=/bin/busybox
PATH=/bin

say() { $b echo "vmm: $*" >/dev/console; }
fail() {
	say "stage-1 FAILED: $*"
	$b sync
	# With reboot=k this ends the engine's process, so that the host sees it.
	$b reboot -f
	while :; do $b sleep 1; done
}

$b mount -t devtmpfs dev /dev 2>/dev/null
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys

for module in /modules/*; do
	[ -e "$module" ] && { $b insmod "$module" 2>/dev/null || say "module ${module##*/} was not loaded"; }
done

init=/sbin/init
root=/dev/vda
for word in $($b cat /proc/cmdline); do
	case $word in
	init=*) init=${word#init=} ;;
	vmm.root=*) root=${word#vmm.root=} ;;
	esac
done

# Devices appear while the kernel goes on: look every 10 ms, 10 s at most.
tries=0
while [ ! -b "$root" ]; do
	tries=$((tries + 1))
	[ $tries -gt 1000 ] && fail "no disk $root"
	$b usleep 10000
done

$b ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
	$b ip address replace "$($b cat /vmm/address)" dev eth0
	$b ip link set eth0 up
	$b ip route replace default via "$($b cat /vmm/gateway)"
else
	say "no network device"
fi

r=/newroot
$b mount -t ext4 -o rw "$root" $r || fail "$root cannot be mounted: is it an ext4 file system?"

if [ -e /vmm/grow ] && [ -x /grow/loader ]; then
	/grow/loader --library-path /grow /grow/resize2fs "$root" >/tmp-grow 2>&1 || say "the root was not grown: $($b tail -n 1 /tmp-grow)"
fi

# A directory of the guest that leads elsewhere is left alone: what is written here goes where its name says, or nowhere.
real_dir() { [ -d "$1" ] && [ ! -L "$1" ]; }
# Put a fact at a place of the guest, as a file of its own: a link that stood there is replaced, never followed.
put() {
	if [ -d "$2" ] && [ ! -L "$2" ]; then say "$2 is a directory"; return; fi
	$b cp "$1" "$2.vmm" && $b chmod "$3" "$2.vmm" && $b mv "$2.vmm" "$2" || say "$2 was not written"
}

if real_dir $r/etc; then
	read -r hostname </vmm/hostname
	$b hostname "$hostname"
	[ "$($b cat $r/etc/hostname 2>/dev/null)" = "$hostname" ] || put /vmm/hostname $r/etc/hostname 644
	[ -L $r/etc/resolv.conf ] || ! $b cmp -s /vmm/resolv.conf $r/etc/resolv.conf && put /vmm/resolv.conf $r/etc/resolv.conf 644
	if [ ! -L $r/etc/hosts ] && ! $b grep -qs "[[:space:]]$hostname\$" $r/etc/hosts; then
		[ -e $r/etc/hosts ] || $b echo "127.0.0.1 localhost" >$r/etc/hosts
		$b echo "127.0.1.1 $hostname" >>$r/etc/hosts
	fi
	[ ! -L $r/etc/machine-id ] && [ ! -s $r/etc/machine-id ] && put /vmm/machine-id $r/etc/machine-id 444
	if real_dir $r/etc/ssh; then
		for key in ssh_host_ed25519_key:600 ssh_host_ed25519_key.pub:644; do
			name=${key%:*}
			[ ! -L "$r/etc/ssh/$name" ] && $b cmp -s "/vmm/$name" "$r/etc/ssh/$name" || put "/vmm/$name" "$r/etc/ssh/$name" "${key#*:}"
		done
	fi
fi

if real_dir $r/root; then
	[ -e $r/root/.ssh ] || [ -L $r/root/.ssh ] || $b mkdir -m 700 $r/root/.ssh
	keys=$r/root/.ssh/authorized_keys
	if real_dir $r/root/.ssh && [ ! -L $keys ]; then
		[ -e $keys ] || { : >$keys && $b chmod 600 $keys; }
		while read -r key; do
			[ -n "$key" ] && ! $b grep -qxF -- "$key" $keys && $b echo "$key" >>$keys
		done </vmm/authorized_keys
	else
		say "/root/.ssh leads elsewhere; the keys were not added"
	fi
fi

# The host's key and the other facts are the guest's now; nothing of them stays in memory that is given back.
$b rm -rf /vmm /grow /modules /tmp-grow

[ -x "$r$init" ] || [ -L "$r$init" ] || fail "the image has no $init"
$b mount --move /dev $r/dev 2>/dev/null || $b umount -l /dev
$b umount /sys
$b umount /proc
exec $b switch_root $r "$init"
fail "$init could not be run"
