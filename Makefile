# `make help` lists what there is. Everything but build, check and fuzz wants
# root: the tests mount file systems and run servers under other user ids.

SHELL := /bin/bash
GO    ?= go
BIN   := bin/slotfs

# Parameters, all optional:
#   make test   RUN=Regexp TIMEOUT=80m PARALLEL=2
#   make fuzz   FUZZTIME=30s
#   make soak   SEED=1 ROUNDS=1000
#   make bench  BENCH="-rounds 5 -only dovecot"
#   make demo   KEEP=1
TIMEOUT  ?= 80m
PARALLEL ?= 2
RUN      ?=
FUZZTIME ?= 20s
SEED     ?=
ROUNDS   ?= 1000
BENCH    ?=
KEEP     ?=

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

run_flag = $(if $(RUN),-run '$(RUN)')

.DEFAULT_GOAL := build
.PHONY: build race deps test unit integration model fuzz check bench demo demo-stop soak install clean help FORCE

build: $(BIN) ## build bin/slotfs

$(BIN): FORCE
	$(GO) build -trimpath -o $@ ./cmd/slotfs

bin/slotfs-race: FORCE
	$(GO) build -race -o $@ ./cmd/slotfs

race: bin/slotfs-race ## build bin/slotfs-race, with the race detector: what the integration tests run

deps: ## install the Debian packages that tests, demo and bench need, where missing
	@.ci/deps

# Unit tests first, several packages at a time; then the integration tests, one
# package at a time: those that measure times of real processes alone, then
# PARALLEL of the others at a time, because they wait more than they work. Both
# run even if the first fails, and the last lines are go test's own results.
test: deps race ## all tests, with the race detector, on real mounts and a real Dovecot
	@status=0; \
	$(MAKE) --no-print-directory unit || status=1; \
	repl/model/all.sh quick || status=1; \
	$(MAKE) --no-print-directory integration || status=1; \
	exit $$status

unit: ## the tests of the packages, without integration
	@$(GO) test -race -timeout $(TIMEOUT) $(run_flag) $$($(GO) list ./... | grep -v '/integration')

integration: race ## the tests of the built binary
	@SLOTFS_BIN=$(CURDIR)/bin/slotfs-race $(GO) test -race -count=1 -p 1 -parallel $(PARALLEL) -timeout $(TIMEOUT) $(run_flag) ./integration/...

model: ## search the role protocol's model exhaustively, and models with mistakes in them
	@.ci/deps spin gcc libc6-dev
	@repl/model/all.sh

fuzz: ## every fuzz test for FUZZTIME
	@set -e; grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r pkg; do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "$$pkg $$f"; \
			$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

check: ## vet, staticcheck, gofmt, go.mod tidy, forbidden imports
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	@out=$$(gofmt -l .); if [ -n "$$out" ]; then echo "gofmt -w these:"; echo "$$out"; exit 1; fi
	$(GO) mod tidy -diff
	$(GO) test -count=1 ./integration/arch

bench: deps build ## speed: bare ext4, one slot, a pair; file system calls and Dovecot
	$(GO) run ./integration/bench -bin $(CURDIR)/$(BIN) $(BENCH)

demo: deps build ## two nodes and a witness, a Dovecot, a killed primary, failover; KEEP=1 leaves all running before the kill
	@SLOTFS_BIN=$(CURDIR)/$(BIN) $(GO) run ./integration/demo $(if $(KEEP),-keep)

demo-stop: build ## end what `make demo KEEP=1` left running
	@SLOTFS_BIN=$(CURDIR)/$(BIN) $(GO) run ./integration/demo -stop

soak: deps build ## ROUNDS rounds of load under faults: kill -9, lost power, cut links, stopped processes …, from SEED; then a million steps of the explorer for each
	@SLOTFS_BIN=$(CURDIR)/$(BIN) SLOTFS_SOAK_ROUNDS=$(ROUNDS) SLOTFS_SEED=$(SEED) \
		$(GO) test -v -count=1 -timeout 0 -run '^(TestKill|TestPowerLoss|TestFaults|TestRot)' ./integration
	$(GO) test -v -count=1 -timeout 0 -run '^TestExplore$$' ./repl -args -explore-steps $(ROUNDS)000000

install: build ## PREFIX/sbin/slotfs and the systemd units
	install -D -m 755 $(BIN) $(DESTDIR)$(or $(PREFIX),/usr/local)/sbin/slotfs
	install -D -m 644 -t $(DESTDIR)/etc/systemd/system packaging/slotfs.service packaging/slotfs@.service packaging/slotfs-witness.service

clean: ## remove what the targets above built
	rm -rf bin

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

FORCE:
