# Stormpost. `make` says what there is.

GO      ?= go
# The longest package first: the others run beside it.
PKGS    ?= ./internal/promise ./...
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# Counts of the tests' events are divided by this: 8 fits CI, 1 is all of it.
STORMPOST_TEST_SCALE ?= 8
export STORMPOST_TEST_SCALE

# Starts PostgreSQL and Apache Kafka once for all packages, and stops them.
WITH_STORES := bin/teststack --

# Two packages at a time: the stores share the machine with the tests.
TEST_FLAGS := -p 2 -timeout 45m

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.DEFAULT_GOAL := help
.PHONY: help deps deps-race build test race quick previous torture planted bench compare lint generate verify clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## see to what the tests need; installs it as root on Debian
	@deploy/deps.sh

deps-race:
	@deploy/deps.sh race

build: ## build bin/stormpost
	$(GO) build -trimpath -ldflags '-X github.com/stormpost/stormpost/internal/cli.Version=$(VERSION)' -o bin/stormpost ./cmd/stormpost

# What promises seconds beside a backlog has the machine for itself.
ALONE := DelaysNobody

test: deps ## all tests, against real PostgreSQL and Apache Kafka
	$(WITH_STORES) sh -c '$(GO) test $(TEST_FLAGS) -run $(ALONE) ./internal/promise && $(GO) test $(TEST_FLAGS) -skip $(ALONE) $(PKGS)'

race: STORMPOST_TEST_SCALE := 32
race: export STORMPOST_TEST_RACE := 1
race: deps-race ## all tests, and the programs that they start, with the race detector; smaller counts
	CGO_ENABLED=1 $(WITH_STORES) $(GO) test -race $(TEST_FLAGS) $(PKGS)

quick: ## what can be said in seconds: -short, an in-process broker instead of Kafka
	$(GO) build -o bin/teststack ./internal/devstack/cmd/teststack
	bin/teststack -kafka=false -- $(GO) test -short -p 2 -timeout 5m $(PKGS)

# The commit of the release before this one.
PREVIOUS ?= 9d53cdb

previous: deps ## the previous release's own ledger tests, on the schema of this one
	@set -e; old=$$(mktemp -d); trap 'rm -rf "$$old"' EXIT; \
	git archive $(PREVIOUS) | tar -x -C "$$old"; cp dedupe/migrations/*.sql "$$old/dedupe/migrations/"; \
	$(WITH_STORES) $(GO) -C "$$old" test $(TEST_FLAGS) ./dedupe ./delivery

torture: deps ## all tests at full counts; ended and begun again, it goes on
	$(WITH_STORES) deploy/torture.sh

planted: deps ## that the drills' judge calls each planted bug; some 20 minutes
	$(WITH_STORES) $(GO) test -tags planted -count=1 -timeout 60m -v -run Planted ./internal/drill

bench: build deps ## messages/s and latencies through the whole pipe; BENCH='--rate 500 …'
	$(WITH_STORES) sh -c 'bin/stormpost bench --dsn "$$STORMPOST_TEST_DSN" --brokers "$$STORMPOST_TEST_KAFKA" $(BENCH)'

compare: build deps ## bench beside the programs in FLOOR=DIR, alternated; MODE=peak or steady
	$(WITH_STORES) deploy/compare.sh $(FLOOR)

lint: ## gofmt, go vet and staticcheck (staticcheck.conf explains its exceptions)
	@unformatted=$$(gofmt -l $$($(GO) list -f '{{.Dir}}' ./...)); \
	if [ -n "$$unformatted" ]; then echo "gofmt -w these:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet $(PKGS)
	$(GO) run $(STATICCHECK) $(PKGS)

generate: ## what is generated from the code
	$(GO) generate ./...

verify: generate ## that nothing generated and no module is out of date
	$(GO) mod verify
	$(GO) mod tidy -diff
	git diff --exit-code

clean: ## remove what was built
	rm -rf bin
