#!/usr/bin/env bash
# compare.sh FLOOR: stormpost bench beside the two programs in the folder FLOOR
# (pipeline, the floor under the design; river, a rival), on the PostgreSQL and
# Kafka of STORMPOST_TEST_DSN and STORMPOST_TEST_KAFKA, alternated, ROUNDS times
# (5): each line is one run. `make compare FLOOR=…` starts the stores. Round 0
# counts for nothing: it warms the stores up, and the floor fails in a Kafka that
# nobody has consumed from.
#
# MODE=peak (default) measures top rates; MODE=steady the latency at 500/s.
set -euo pipefail
floor=$(cd "$1" && pwd)
rounds=${ROUNDS:-5} mode=${MODE:-peak} count=${COUNT:-200000}
bin=$(cd "$(dirname "$0")/.." && pwd)/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$floor" && go build -o "$work/pipeline" ./pipeline && go build -o "$work/river" ./river)

# A new database for each run, dropped after it.
base=${STORMPOST_TEST_DSN%/*}
query=${STORMPOST_TEST_DSN##*\?}
fresh() {
	psql -q "$STORMPOST_TEST_DSN" -c "drop database if exists $1 with (force)" -c "create database $1" -c checkpoint
}
dsn() { echo "$base/$1?$query${2:+&$2}"; }

for ((i = 0; i <= rounds; i++)); do
	echo "round $i of $rounds" >&2
	if ((i == 0)); then
		fresh compare && "$bin/stormpost" bench --dsn "$(dsn compare)" --brokers "$STORMPOST_TEST_KAFKA" --count "$count" >&2
		fresh compare && "$work/pipeline" -dsn "$(dsn compare pool_max_conns=16)" -brokers "$STORMPOST_TEST_KAFKA" -n "$count" >&2
	elif [[ $mode == peak ]]; then
		fresh compare && echo "floor     $("$work/pipeline" -dsn "$(dsn compare pool_max_conns=16)" -brokers "$STORMPOST_TEST_KAFKA" -n "$count" | tail -1)"
		fresh compare && echo "stormpost $("$bin/stormpost" bench --dsn "$(dsn compare)" --brokers "$STORMPOST_TEST_KAFKA" --count "$count" 2>/dev/null | tr '\n' ';')"
		fresh compare && echo "river     $("$work/river" "$(dsn compare pool_max_conns=32)" unique | grep end-to-end)"
	else
		fresh compare && echo "floor     $("$work/pipeline" -dsn "$(dsn compare pool_max_conns=16)" -brokers "$STORMPOST_TEST_KAFKA" -rate 500 -n 5000 | tail -1)"
		fresh compare && echo "stormpost $("$bin/stormpost" bench --dsn "$(dsn compare)" --brokers "$STORMPOST_TEST_KAFKA" --rate 500 --count 5000 2>/dev/null | tr '\n' ';')"
	fi
done
psql -q "$STORMPOST_TEST_DSN" -c "drop database if exists compare with (force)"
