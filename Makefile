# Go and make are all that is needed.

GO       ?= go
DURATION ?= 60s
FUZZTIME ?= 10s
BENCH    ?= --op put --clients 64 --duration 10s
PEER     ?=
SESSIONS ?= 1000000
JEPSEN   ?=
MODULES  := . test/jepsen-lite tools
PROTOS   := wire/code.proto wire/log.proto wire/client.proto wire/peer.proto
VERSION  ?= dev

.PHONY: help
help: ## show this list
	@echo 'make TARGET'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/baton
	$(GO) build -ldflags '-X main.version=$(VERSION)' -o bin/baton ./cmd/node

.PHONY: demo
demo: build ## three real nodes, live sessions, kills, restarts, and a verdict
	bin/baton demo

# Packages one after the other: clusters of several share two cores badly. The limit
# is for what hangs.
GOTEST = $(GO) test -p 1 -timeout 40m

.PHONY: test
test: ## all tests of all modules
	@set -e; for m in $(MODULES); do echo "== $$m"; (cd $$m && $(GOTEST) ./...); done

.PHONY: race
race: export GORACE = suppressions=$(CURDIR)/test/race.supp
race: ## all tests under the race detector (but those that only build and run other tests, without it)
	@set -e; for m in $(MODULES); do echo "== $$m"; (cd $$m && $(GOTEST) -race $$($(GO) list ./... | grep -v '/test/mutants$$')); done

.PHONY: vet
vet: ## go vet in all modules
	@set -e; for m in $(MODULES); do (cd $$m && $(GO) vet ./...); done

.PHONY: fmt-check
fmt-check: ## fail if a file is not formatted
	@out=$$(gofmt -l .); if [ -n "$$out" ]; then echo "run gofmt -w on:"; echo "$$out"; exit 1; fi

.PHONY: generate
generate: ## write the protobuf code again
	cd tools && $(GO) run ./protogen .. $(PROTOS)

.PHONY: generate-check
generate-check: generate ## fail if the committed protobuf code is not what generate writes
	git diff --exit-code -- wire

.PHONY: explore
explore: ## every order of events in small clusters, to the end of each scope: the cores that ship, and what workers do
	@BATON_EXPLORE=1 $(GO) test -count=1 -v -timeout 1h ./test/explore/... -run 'TestExplore$$|TestRules|TestStories|TestScenarios|TestLedger$$' 2>&1 | \
	  awk '/^FAIL/ { bad = 1 } !/^=== / && !/--- PASS/ { print; fflush() } END { exit bad }'

# As large as the memory and the patience that there are.
LIMIT ?= 30000000
MEM   ?= 8GiB

.PHONY: explore-deep
explore-deep: ## the same with more of everything, for LIMIT=30000000 states a scope in about MEM=8GiB
	GOMEMLIMIT=$(MEM) BATON_EXPLORE=deep BATON_EXPLORE_LIMIT=$(LIMIT) $(GO) test -count=1 -v -timeout 0 -run 'TestExplore$$' ./test/explore

.PHONY: matrix
matrix: ## the failure matrix of a move: who fails, how, at which step; prints its table
	@$(GO) test -count=1 -v -run TestMatrix ./test/matrix 2>&1 | \
	  awk '/^FAIL/ { bad = 1 } !/^=== / && !/--- PASS/ { print; fflush() } END { exit bad }'

# New seeds each time, unless they are given; each runs for HOURS. Both grades run
# unless one is named: light for 20 hours in all, whole for 1.
ifndef SEEDS
SEEDS := $(shell for i in 1 2 3 4; do od -An -N3 -tu4 /dev/urandom | tr -d ' '; done | paste -sd,)
endif
HOURS_light ?= 5
HOURS_whole ?= 0.25
GRADE       ?= light whole

.PHONY: sim
sim: ## clusters in virtual time under faults drawn from SEEDS="1,5-9", HOURS=… each, GRADE=light|whole
	@set -e; for g in $(GRADE); do case $$g in light) h=$(or $(HOURS),$(HOURS_light));; *) h=$(or $(HOURS),$(HOURS_whole));; esac; \
	  echo "make sim GRADE=$$g SEEDS=$(SEEDS) HOURS=$$h"; \
	  BATON_SIM_GRADE=$$g BATON_SIM_SEEDS=$(SEEDS) BATON_SIM_HOURS=$$h $(GO) test -count=1 -v -timeout 3h -run TestSim ./test/sim 2>&1 | \
	    awk '/^FAIL/ || /^ *--- FAIL/ { bad = 1 } !/^ *=== / && !/--- PASS/ { print; fflush() } END { exit bad }'; \
	done

.PHONY: jepsen
jepsen: ## processes, faults, recorded histories, checkers, for DURATION=60s; flags in JEPSEN="--seed 7 --report r.html --namespaces"
	cd test/jepsen-lite && $(GO) run . -duration $(DURATION) $(JEPSEN)

.PHONY: mutants
mutants: ## the tests on the product with one rule taken out at a time: some layer must notice
	BATON_MUTANTS=1 $(GO) test -count=1 -timeout 3h -run TestCaught -v ./test/mutants
	BATON_MUTANTS=1 $(GO) test -count=1 -timeout 1h -run TestLedgerMutants -v ./test/explore
	BATON_MUTANTS=1 $(GO) test -count=1 -timeout 1h -run TestDemoFindsMutants -v ./cmd/node
	cd test/jepsen-lite && BATON_MUTANTS=1 $(GO) test -count=1 -timeout 1h -run TestMutants -v .

.PHONY: fuzz-smoke
fuzz-smoke: ## run every fuzz target for FUZZTIME=10s
	@set -e; for f in $$(grep -rl --include='*_test.go' '^func Fuzz' . | sort); do \
	  d=$$(dirname $$f); \
	  for t in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$f); do \
	    echo "== $$d $$t"; (cd $$d && $(GO) test -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME) .); \
	  done; \
	done

.PHONY: bench
bench: build ## a simple bench on three nodes of its own
	bin/baton bench --self $(BENCH)

.PHONY: bench-smoke
bench-smoke: ## every stage of a write runs a few times and counts right; no figure is judged
	$(GO) test -run '^$$' -bench Stage -benchtime 20x ./rpcnet ./worker ./cluster ./fsm
	BATON_SCALE=2000 $(GO) test -run '^$$' -bench Scale -benchtime 256x ./fsm

.PHONY: bench-scale
bench-scale: ## SESSIONS=1000000 and a tenth of them in one state: heap a session, cost of a write, stalls, restore
	BATON_SCALE=$(SESSIONS) $(GO) test -run '^$$' -bench Scale -benchtime 300000x -timeout 1h ./fsm

# Not among MODULES, because its peer is large to compile.
.PHONY: bench-etcd
bench-etcd: build ## figures beside etcd's (-ops echo: grpc-go's) in one run, with flags in PEER="-clients 512 -conns 16"
	cd test/bench && $(GO) run . -baton ../../bin/baton $(PEER)
