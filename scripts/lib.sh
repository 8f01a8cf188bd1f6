# What the scripts share: a Python, a virtual environment, system packages. Sourced, with $top set to the checkout.
# shellcheck shell=bash

# What root installs its users run, whatever the umask of whoever gave the command.
umask 022
# Root may stand in a directory of a user's, where Python (-c, -m) would find modules of theirs. -I besides: no other
# variable or directory of the caller's names modules either.
here=$PWD
cd "$top"

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
die() { printf 'Error: %s\n' "$*" >&2; exit 1; }

need_root() {
	[ "$(id -u)" = 0 ] || die "$0 needs root: it makes links and runs machines. Run: sudo $0"
}

# apt packages PACKAGE...: install what dpkg does not have.
packages() {
	local wanted=() name
	for name in "$@"; do
		dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q ' installed$' || wanted+=("$name")
	done
	[ ${#wanted[@]} = 0 ] && return 0
	command -v apt-get >/dev/null || die "these Debian packages are needed, and there is no apt-get: ${wanted[*]}"
	say "Installing ${wanted[*]}"
	export DEBIAN_FRONTEND=noninteractive
	apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null 2>&1 || {
		apt-get update -qq
		apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null
	}
}

# python: print the path of a Python of 3.11 or newer that can make virtual environments.
python() {
	local candidate
	for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
		command -v "$candidate" >/dev/null || continue
		"$candidate" -I -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
		"$candidate" -I -c 'import sys; print(sys.executable)'
		return
	done
	packages python3 python3-venv >&2
	/usr/bin/python3 -I -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' ||
		die "no Python of 3.11 or newer that can make virtual environments was found"
	echo /usr/bin/python3
}

# venv DIRECTORY: make a virtual environment, and make it again where its Python is of another release than it was made
# for (after an upgrade of the host): it finds none of what was installed then. What else lies in there stays.
venv() {
	local directory=$1 interpreter
	fits "$directory" && return
	interpreter=$(python)
	say "Setting up $directory with $("$interpreter" --version)"
	rm -rf "${directory:?}"/{bin,include,lib,lib64,share,pyvenv.cfg}
	"$interpreter" -I -m venv "$directory"
}

# fits DIRECTORY: whether the virtual environment there has a Python that finds pip, and is new enough.
fits() {
	"$1/bin/python" -I -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# environment EXTRA: make .venv, or bring it up to date when pyproject.toml or the extra has changed.
environment() {
	local extra=$1 stamp want
	stamp=$top/.venv/vmm-stamp
	want="$(sha256sum "$top/pyproject.toml" | cut -d' ' -f1)"
	# The environment for tests holds all that the one for use does.
	if [ -x "$top/.venv/bin/vmm" ] && fits "$top/.venv" && grep -qsxE "$want (dev|$extra)" "$stamp"; then
		"$top/.venv/bin/python" -I -m compileall -q "$top/src" || true
		return 0
	fi
	venv "$top/.venv"
	"$top/.venv/bin/python" -I -m pip install -q --disable-pip-version-check -e "$top${extra:+[$extra]}" 2> >(grep -v '^WARNING: Location' >&2)
	"$top/.venv/bin/python" -I -m compileall -q "$top/.venv/lib" "$top/src" >/dev/null 2>&1 || true
	echo "$want $extra" >"$stamp"
}
