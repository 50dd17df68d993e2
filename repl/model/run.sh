#!/bin/sh
# run.sh NAME [-Dname=value]...: searches all states of the model, bounded by the
# definitions; says what it found, and fails if that is a violated assertion.
set -eu
dir=$(cd "$(dirname "$0")" && pwd)
name=$1
shift
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
spin -a "$@" "$dir/roles.pml" >spin.log 2>&1 || { cat spin.log; exit 2; }
cc ${MODEL_OPT:--O2} -w -DSAFETY -DCOLLAPSE -DVECTORSZ=2048 -DMEMLIM=${MODEL_MB:-3000} -o pan pan.c
./pan -m200000 -w22 -n >pan.log 2>&1 || true
states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' pan.log)
errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' pan.log)
if grep -q 'max search depth too small\|out of memory\|pan: reached' pan.log; then
	echo "$name: the search did not end"
	grep -m3 'depth too small\|out of memory\|reached' pan.log
	exit 2
fi
echo "$name: $states states, $errors errors"
if [ "${errors:-1}" != 0 ]; then
	sed -n 's/^pan:[0-9]*: \(assertion violated.*\)/  \1/p' pan.log
	if [ -n "${MODEL_TRAIL:-}" ]; then
		spin -t -p -g "$@" "$dir/roles.pml" 2>/dev/null || cp "$dir/roles.pml" . && spin -t -p -g "$@" roles.pml
	fi
	exit 1
fi
