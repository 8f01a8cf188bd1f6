#!/bin/busybox sh
# vmm's stage-1: runs as PID 1 of every machine, brings up disk and network, applies this machine's facts inside the
# guest, and becomes the guest's own init. The host never touches a guest's disk; all that happens here is in the guest.
# Facts lie in /vmm, one file each, and are only ever read as data. `facts` is the part that works in the root itself.
b=/bin/busybox
r=/newroot
PATH=/bin
# What the kernel does not know of its command line becomes environment: systemd would believe a word of it.
unset container

say() { echo "vmm: $*" >&4; }

fail() {
	# What the kernel kept to itself (loglevel=1) may say why.
	$b dmesg 2>/dev/null | $b tail -n 25 >&4
	say "stage-1 FAILED: $*"
	$b sync
	# With reboot=k this ends the engine's process, so that the host sees it.
	$b reboot -f
	while :; do $b sleep 1; done
}

# bounded SECONDS COMMAND...: run a step in a process of its own; 124 when it took longer, and was ended.
bounded() {
	limit=$1
	shift
	{ "$@"; echo $? >&3; } </dev/null &
	read -r -t "$limit" code <&3 && return "$code"
	# Nothing else runs yet.
	kill -9 -1
	return 124
}

open_channels() {
	$b mount -t devtmpfs dev /dev 2>/dev/null
	$b mount -t proc proc /proc
	$b mount -t sysfs sys /sys
	if (: >/dev/console) 2>/dev/null; then exec 4>/dev/console; else exec 4>/dev/null; fi
	# What a step ends with is read here, with a limit to how long.
	$b mkfifo /steps
	exec 3<>/steps
}

load_modules() {
	for module in /modules/*; do
		case $module in *-cdrom.ko | *-isofs.ko) continue ;; esac
		[ -e "$module" ] && load "$module"
	done
}
load() { $b insmod "$1" 2>/dev/null || say "module ${1##*/} was not loaded"; }

# A second disk is the seed of cloud-init, an ISO 9660 file system.
load_seed_modules() {
	[ -e /sys/class/block/vdb ] || return
	for module in /modules/*-cdrom.ko /modules/*-isofs.ko; do [ -e "$module" ] && load "$module"; done
}

read_command_line() {
	inits="/sbin/init /etc/init /bin/init /usr/lib/systemd/systemd /lib/systemd/systemd"
	disk=/dev/vda
	for word in $($b cat /proc/cmdline); do
		case $word in
		init=*) inits=${word#init=} ;;
		vmm.root=*) disk=${word#vmm.root=} ;;
		vmm.lapic_mult=*) lapic_mult=${word#vmm.lapic_mult=} ;;
		esac
	done
}

# Under emulation a busy host can make the kernel measure its timer wrongly: all that waits would wait many times too
# long. Another boot measures anew; the disk has not been touched yet.
check_timer() {
	[ -n "$lapic_mult" ] || return
	mult=$($b awk '/^Clock Event Device: lapic$/ { found = 1 } found && /mult:/ { print $2; exit }' /proc/timer_list)
	[ -n "$mult" ] || return
	[ $((mult * 2)) -ge "$lapic_mult" ] && [ "$mult" -le $((lapic_mult * 2)) ] && return
	say "the kernel measured its timer wrongly on a busy host ($mult for $lapic_mult); it boots again"
	$b reboot -f
}

# Devices appear while the kernel goes on: look every 10 ms, 10 s at most.
await_disk() {
	tries=0
	while [ ! -b "$disk" ]; do
		tries=$((tries + 1))
		[ $tries -gt 1000 ] && fail "no disk $disk"
		$b usleep 10000
	done
}

bring_up_network() {
	$b ip link set lo up
	if [ -e /sys/class/net/eth0 ]; then
		$b ip address replace "$($b cat /vmm/address)" dev eth0
		$b ip link set eth0 up
		$b ip route replace default via "$($b cat /vmm/gateway)"
	else
		say "no network device"
	fi
}

# bytes FILE OFFSET COUNT: in hex, without blanks.
bytes() { $b od -A n -t x1 -j "$2" -N "$3" "$1" 2>/dev/null | $b tr -d ' \n'; }

# The superblock lies at 1024; its features that a reader must know at 96 in it, and 4 is "needs recovery".
look_at_disk() {
	case $(bytes "$disk" 1120 1) in
	?[4567cdef]) say "the disk was not unmounted the last time; its journal is replayed" ;;
	esac
}

why_not_mounted() {
	if [ "$(bytes "$disk" 1080 2)" != 53ef ]; then
		if [ "$(bytes "$disk" 510 2)" = 55aa ]; then
			echo "it has a partition table, where an ext4 file system should be"
		else
			echo "is it an ext4 file system?"
		fi
	elif ! $b grep -qw ext4 /proc/filesystems; then
		echo "this kernel has no ext4"
	else
		$b dmesg | $b grep 'EXT4-fs.*(vda)' | $b tail -n 1 | $b sed 's/^\[[^]]*\] *//' | $b cut -c1-200
	fi
}

mount_root() {
	look_at_disk
	bounded 300 $b mount -t ext4 -o rw "$disk" $r || fail "$disk cannot be mounted: $(why_not_mounted)"
}

grow_root() {
	if [ -e /vmm/grow ] && [ -x /grow/loader ]; then
		bounded 600 /grow/loader --library-path /grow /grow/resize2fs "$disk" >/tmp-grow 2>&1 ||
			say "the root was not grown: $($b tail -n 1 /tmp-grow)"
	fi
}

# A place to mount on. What stood there instead (a link, a file) would lead elsewhere.
mount_point() {
	[ -d "$1" ] && [ ! -L "$1" ] && return
	$b rm -f "$1"
	$b mkdir -m 755 "$1" || say "${1#"$r"} is no directory, and could not be made one"
}

# An init that mounts no /run of its own counts on the directories that the image has there.
copy_directories() {
	cd $r/run || return
	$b find . -xdev -type d 2>/dev/null | $b head -n 500 | while read -r directory; do
		[ -d "/run/$directory" ] || $b mkdir -m "$($b stat -c %a "$directory")" "/run/$directory"
	done
}

# The facts stay in memory: /run is a tmpfs that the guest's init takes over, as from any other initramfs.
make_run() {
	# A kernel that an earlier vmm imported has an archive without it.
	$b mkdir -p /run
	$b mount -t tmpfs -o mode=755,nosuid,nodev,size=20% tmpfs /run
	$b mkdir -m 700 /run/vmm
	$b cp /vmm/* /run/vmm
	$b cp $b /facts /run/vmm
	$b cp -r /vmm-run/. /run
	[ ! -L $r/run ] && [ -d $r/run ] && bounded 10 copy_directories
	for directory in dev proc sys run; do mount_point $r/$directory; done
	for directory in proc sys run; do $b mount --move /$directory $r/$directory || say "/$directory was not moved"; done
	# The shell itself needs a /dev/null until the end.
	$b mount -o bind /dev $r/dev
}

# It says itself how it ended, and is the process that waits here: when one of its steps hangs, it ends all others.
in_root() {
	[ -x $r/run/vmm/busybox ] || return
	exec $b chroot $r /run/vmm/busybox sh /run/vmm/facts "$disk" "$inits"
}
apply_facts() { bounded 120 in_root || say "not all facts were applied"; }

become_init() {
	read -r init <$r/run/vmm/init || fail "the image has no ${inits%% *}: it has no init (a container's image has none)"
	# The facts are the guest's now; nothing of them stays in memory that is given back.
	$b rm -rf /vmm /grow /modules /tmp-grow /vmm-run /facts /steps $r/run/vmm/facts $r/run/vmm/init
	# For the guest's last step: see the script beside it.
	$b mkdir -p $r/run/initramfs/bin && $b mv $r/run/vmm/busybox $r/run/initramfs/bin/busybox
	$b umount -l /dev
	exec 3>&- 4>&-
	exec $b switch_root $r "$init" "$@"
}

open_channels
load_modules
read_command_line
check_timer
await_disk
load_seed_modules
bring_up_network
mount_root
grow_root
make_run
apply_facts
become_init "$@"
