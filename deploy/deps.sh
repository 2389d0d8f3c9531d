#!/usr/bin/env bash
# deps.sh [race]: see to what the tests need beside Go: PostgreSQL's server
# programs, Java 17 and Apache Kafka's jars, fetched by Maven, Alertmanager, Postfix
# and Dovecot's submission service, as relays to hand email to, and Python's
# http-ece, in a virtual environment of its own, which decrypts what Web Push sends;
# for `race` a C compiler, too. As root on Debian it installs what is missing,
# elsewhere it says what to install. With nothing missing it is done at once.
set -euo pipefail
cd "$(dirname "$0")/.."

have() { command -v "$1" >/dev/null 2>&1; }

have_postgres() {
	local bin
	for bin in "$(dirname "$(command -v postgres || echo /none/postgres)")" /usr/lib/postgresql/*/bin /usr/pgsql-*/bin \
		/opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin; do
		if [[ -x $bin/postgres && -x $bin/initdb ]] && (($("$bin/postgres" --version | sed -E 's/.*\) ([0-9]+).*/\1/') >= 15)); then
			return 0
		fi
	done
	return 1
}

have_java() {
	local java=java version
	if [[ -n ${JAVA_HOME:-} && -x $JAVA_HOME/bin/java ]]; then
		java=$JAVA_HOME/bin/java
	fi
	have "$java" || return 1
	version=$("$java" -version 2>&1 | sed -nE 's/.* version "([0-9]+).*/\1/p' | head -n 1)
	((${version:-0} >= 17))
}

# Where the tests look for what was fetched: devstack.DefaultCache.
case $(uname) in
Darwin) cache=${STORMPOST_CACHE:-$HOME/Library/Caches/stormpost} ;;
*) cache=${STORMPOST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stormpost} ;;
esac
ece=$cache/http-ece

have_ece() { "$ece/bin/python3" -c 'import http_ece, cryptography' 2>/dev/null; }

have_venv() { have python3 && python3 -c 'import venv, ensurepip' 2>/dev/null; }

# Both are found in sbin, too, which isn't on everybody's PATH.
have_postfix() { PATH=$PATH:/usr/sbin:/sbin have postconf; }

have_dovecot() {
	local bin lib
	bin=$(PATH=$PATH:/usr/sbin:/opt/homebrew/sbin:/usr/local/sbin command -v dovecot) || return 1
	for lib in /usr/lib/dovecot /usr/libexec/dovecot "${bin%/sbin/*}"/libexec/dovecot; do
		[[ -x $lib/submission-login ]] && return 0
	done
	return 1
}

# The packages that lack, by Debian's names.
missing() {
	have_postgres || echo postgresql
	have_java || echo default-jre-headless
	bin/teststack -fetched || have mvn || echo maven
	have prometheus-alertmanager || have alertmanager || echo prometheus-alertmanager
	have_postfix || echo postfix
	have_dovecot || echo dovecot-core dovecot-submissiond
	have_ece || have_venv || echo python3-venv
	if [[ ${1:-} == race ]]; then
		have gcc || have clang || echo gcc libc6-dev
	fi
}

install() {
	echo "deps: installing $*" >&2
	export DEBIAN_FRONTEND=noninteractive
	# The tests make clusters of their own: the package shall make and start none.
	local quiet=/etc/postgresql-common/createcluster.d/stormpost-deps.conf
	mkdir -p "$(dirname "$quiet")"
	echo "create_main_cluster = false" >"$quiet"
	# Nor shall any other package start its service.
	local policy=/usr/sbin/policy-rc.d
	if [[ ! -e $policy ]]; then
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod +x "$policy"
	else
		policy=
	fi
	trap 'rm -f "'"$quiet"'" "'"$policy"'"' EXIT
	{
		apt-get update -q
		if [[ " $* " == *" postfix "* ]]; then
			echo "postfix postfix/main_mailer_type select No configuration" | debconf-set-selections
		fi
		if ! apt-get install -q -y --no-install-recommends --no-remove "$@"; then
			echo "deps: if another mail server is in Postfix's place, whether to replace it is yours to say: apt-get install $*"
			exit 1
		fi
		# Nor do these listen from the next boot on.
		local service
		for service in postfix dovecot; do
			if [[ " $* " == *" $service"* ]]; then
				update-rc.d "$service" disable || echo "deps: keep the service $service from starting at boot"
			fi
		done
	} >&2
}

if ! have go; then
	echo "deps: Go is missing: install the version that go.mod names, https://go.dev/doc/install" >&2
	exit 1
fi
go build -o bin/teststack ./internal/devstack/cmd/teststack

lacking=$(missing "$@")
lacking=${lacking//$'\n'/ }
if [[ -n $lacking && $(id -u) == 0 && -f /etc/debian_version ]] && have apt-get; then
	# shellcheck disable=SC2086 # one word per package
	install $lacking
	lacking=$(missing "$@")
fi
if [[ -n $lacking ]]; then
	{
		echo "deps: missing: $lacking (PostgreSQL must be 15 or newer, Java 17 or newer)."
		echo "deps: on Debian or Ubuntu: sudo apt-get install $lacking"
		echo "deps: on Fedora: sudo dnf install postgresql-server java-21-openjdk-headless maven gcc python3 postfix dovecot; alertmanager by hand"
		echo "deps: on macOS: brew install postgresql@17 openjdk maven alertmanager python dovecot"
	} >&2
	exit 1
fi
bin/teststack -fetch
if ! have_ece; then
	echo "deps: installing http-ece into $ece" >&2
	python3 -m venv --clear "$ece"
	"$ece/bin/python3" -m pip install --quiet --disable-pip-version-check http-ece==1.2.1
fi
