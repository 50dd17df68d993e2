#!/bin/sh
# all.sh [quick]: what "make model" runs.
set -eu
cd "$(dirname "$0")"
export MODEL_OPT=-O1
find() { # a mistake that must be found
	name=$1
	shift
	status=0
	./run.sh "$name" "$@" "-D$name" || status=$?
	if [ $status != 1 ]; then
		echo "$name was not found"
		exit 1
	fi
}
./run.sh "two slots, two changes, a crash" -DN=2 -DNONCES=2 -DCRASHES=1 -DENTRIES=1
[ "${1:-}" = quick ] && exit 0
for bug in BUG_UNKNOWN_WON BUG_RULE_FIRST BUG_NO_WAIT BUG_ACKS_ON; do
	find $bug -DN=2 -DNONCES=2 -DCRASHES=1 -DENTRIES=2
done
./run.sh "without the seal, which is a second line of defence" -DN=2 -DNONCES=2 -DCRASHES=1 -DENTRIES=2 -DBUG_NO_SEAL
export MODEL_OPT=-O2
./run.sh "three slots, one change" -DN=3 -DNONCES=1 -DCRASHES=0 -DENTRIES=1
./run.sh "two slots, two changes, two crashes, two calls" -DN=2 -DNONCES=2 -DCRASHES=2 -DENTRIES=2
./run.sh "two slots, three changes, a crash" -DN=2 -DNONCES=3 -DCRASHES=1 -DENTRIES=1
