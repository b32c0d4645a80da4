# Each target is one call; what takes more than a line lives in hack/.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VERSION := $(or $(patsubst v%,%,$(shell git describe --tags --exact-match 2>/dev/null)),0.1.0-dev+g$(shell git rev-parse --short HEAD 2>/dev/null))
PREFIX ?= /usr/local
BIN ?= bin/gantry
FUZZTIME ?= 10s

# The same for all that is built, so that each package is compiled once: a static,
# reproducible program, and no debugging information to be stripped later.
export CGO_ENABLED := 0
export GOFLAGS := $(GOFLAGS) -buildvcs=false -trimpath -gcflags=all=-dwarf=0 -ldflags=-s

.PHONY: help build demo test test-node lint bench fuzz package install clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build bin/gantry
	go build -ldflags '-s -X main.version=$(VERSION)' -o $(BIN) ./cmd/gantry

demo: build ## Show a pod from registry to clean-up, checked at every step (root)
	hack/demo

test: build ## Run all tests: unit, golden, scripts, CRI, kubelet, Prometheus (root)
	hack/test

test-node: package ## Run the suites in a virtual node with systemd and cgroup v2, reboot it, cut its power (root)
	$(MAKE) package VERSION=$(VERSION)+next BIN=bin/gantry-next
	VERSION=$(VERSION) hack/test-node

lint: ## Run golangci-lint with the rules of the architecture
	go tool -modfile=hack/tools/go.mod golangci-lint run ./...

bench: build ## Measure beside containerd, podman, tar and cp; write docs/benchmarks.md (root)
	hack/bench

fuzz: ## Fuzz every fuzz target for FUZZTIME each
	FUZZTIME=$(FUZZTIME) hack/fuzz

package: build ## Make dist/gantry_VERSION_amd64.deb
	VERSION=$(VERSION) BIN=$(BIN) hack/package/build

install: build ## Install bin/gantry below PREFIX
	install -D -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/gantry

clean: ## Delete what was built
	rm -rf bin dist
