#!/usr/bin/env bash
# torture.sh: all tests at full counts, one after another, on the stores of
# STORMPOST_TEST_DSN and STORMPOST_TEST_KAFKA. What has passed on this commit is
# noted in bin/torture-COMMIT with the seconds it took, and not run again: ended at
# any time, it goes on from there. With changes that are not committed it begins
# anew. `make torture` starts the stores.
set -euo pipefail
cd "$(dirname "$0")/.."
export STORMPOST_TEST_SCALE=1
trap 'exit 130' INT

# What is tested: a commit, or nothing that could be found again.
tested() {
	if [[ -n $(git status --porcelain) ]]; then echo changed; else git rev-parse --short=12 HEAD; fi
}
commit=$(tested)
notes=bin/torture-$commit
if [[ $commit == changed ]]; then
	rm -f "$notes"
fi
touch "$notes"

# What promises takes longest: one test at a time. The rest goes by package.
promises=./internal/promise
listed=$(go test -list '^Test' "$promises" | grep '^Test')
all=$(for t in $listed; do echo "$promises ^$t\$"; done; go list ./... | grep -v '/promise$' | sed 's/$/ ./')

failed=0 done=0
total=$(wc -l <<<"$all")
while read -r pkg run; do
	done=$((done + 1))
	if grep -qF "$pkg $run passed" "$notes"; then
		continue
	fi
	echo "== $done of $total: $pkg $run"
	began=$SECONDS
	if go test -p 1 -count=1 -timeout 60m -v -run "$run" "$pkg" </dev/null; then
		if [[ $(tested) == "$commit" ]]; then
			echo "$pkg $run passed, $((SECONDS - began)) s" >>"$notes"
		else
			echo "== passed, and not noted: the tree is no longer $commit"
		fi
	else
		failed=1
		echo "== failed: $pkg $run"
	fi
done <<<"$all"
echo "== what passed on $commit:"
cat "$notes"
awk -F ', ' '{ n += $2 } END { printf "%d in %d s\n", NR, n }' "$notes"
exit $failed
