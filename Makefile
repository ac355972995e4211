# Millrace, from a clone to a running mesh. `make` alone says what there is.
#
# What is built lies in bin/, what is fetched in one cache folder; nothing is
# installed system-wide. Where a Debian package is missing, the target names it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

MILLRACE_CACHE ?= $(CURDIR)/.cache
override MILLRACE_CACHE := $(abspath $(MILLRACE_CACHE))
export MILLRACE_CACHE
# The headers of go-nvml mark functions that it wraps as deprecated: noise.
export CGO_CFLAGS ?= -Wno-deprecated-declarations

# What -version says of a build: the commit, and whether there were changes.
COMMIT := $(shell git describe --always --abbrev=12 --exclude '*' --dirty 2>/dev/null)
PROGRAMS := . ./extproc ./xds ./nodeagent ./engine
PROTOS := $(wildcard */*pb/*.proto)
DASHBOARDS := manifests/dashboards manifests/charts/millrace/files/dashboards
GENERATED = $(PROTOS:%.proto=%*.go) internal/*/zz_generated.* manifests/crds/* manifests/charts/millrace/crds/* $(DASHBOARDS:%=%/*)
TOOLS := bin/tools/.built
CLIENT := $(MILLRACE_CACHE)/client
CLIENTS := $(MILLRACE_CACHE)/clients
TEMPLATES := $(MILLRACE_CACHE)/templates
PAGE := $(MILLRACE_CACHE)/page
# Debian's package of Prometheus, of which the tests take the two programs.
PROMETHEUS_VERSION := 2.42.0+ds-5+deb12u1
PROMETHEUS_SHA256 := 81d59a24fce84f7fbe97a45a4f2914b6a5881b5cd1db2a6a0e129e515e1a5f55
PROMETHEUS := $(MILLRACE_CACHE)/prometheus-2.42.0
# Debian's Redis, which the tests run as a shared store of conversations, and the libraries that
# it needs: package, version, the file's hash.
REDIS_PACKAGES := \
	redis-tools=5:7.0.15-1~deb12u10=f791cfcbf3054832bd6e786546acb0d4e046888f8e63bcf567c1c65fbfaf69e2 \
	liblzf1=3.6-3=9854b0866201b63e04f1e446f45f01ef4a6f72c61f2250b75f944f6046cc7e8c \
	libjemalloc2=5.3.0-1=a4117c23c5c8acf6c9678a6cb086f000b79476369da7efe8a78a70826956ad3d
REDIS := $(MILLRACE_CACHE)/redis-7.0.15
# Packages whose tests need nothing but Go; those below e2e run real processes.
# Those that count allocations do so without the race detector.
ALLOCATING := ./extproc/internal/...
UNIT = $$(go list ./... | grep -v '^millrace.dev/millrace/e2e')
# What starts goroutines, or is called by those of others. The other packages simulate and read
# much: to watch them for races takes minutes, and can find none.
CONCURRENT := ^\s*go [a-z(]|\.Go\(|t\.Parallel|"sync|"net/http|"google.golang.org/grpc|"golang.org/x/sync
RACED = $$(grep -rlE --include='*.go' '$(CONCURRENT)' * | sed 's,^,millrace.dev/millrace/,; s,/[^/]*$$,,' | sort -u)

.PHONY: help run setup client prometheus redis build test test-unit test-e2e test-short test-clients test-page test-templates soak test-vllm kube test-kube test-conformance kube-programs bench replay images lint generate clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: build ## start a whole mesh on this machine; ARGS="-nodes 4" passes flags
	@exec bin/millrace up $(ARGS)

setup: build ## fetch what a mesh needs into the cache, pinned and checked by hash
	@bin/millrace setup

build: | need-go need-g++ ## build the five programs into bin/
	@mkdir -p bin
	go build -ldflags "-X millrace.dev/millrace/internal/program.commit=$(COMMIT)" -o bin/ $(PROGRAMS)

test: test-unit test-e2e ## run every test, those on the real processes too

# lint is what vets: beside it, as .ci/run has them, everything would be compiled twice.
test-unit: | need-go need-g++ ## run the tests that need nothing but Go, with the race detector
	go test -race -vet=off $$(comm -12 <(printf '%s\n' $(UNIT) | sort) <(printf '%s\n' $(RACED)))
	go test -vet=off $$(comm -23 <(printf '%s\n' $(UNIT) | sort) <(printf '%s\n' $(RACED)))
	cd e2e/tools && go test -vet=off ./...
	go test -vet=off -run Allocates $(ALLOCATING)

# One package at a time: they measure time, and each wants the whole machine.
test-e2e: build setup client prometheus redis ## run the tests on real processes; e2e/README.md says what each proves
	go test -vet=off -tags redis -count=1 ./engine/internal/valkey
	go test -vet=off -count=1 -p 1 -timeout 40m ./e2e/...

test-short: | need-go need-g++ ## run the tests that need nothing but Go, in a minute or so
	go test $(UNIT) ./e2e/house

test-clients: build setup $(CLIENTS)/.installed ## ask a mesh with the clients that people use, Python's and Node's: 1.1 GB in the cache, 3 min
	go test -vet=off -tags clients -count=1 -timeout 20m ./e2e/clients

test-page: build setup $(PAGE)/.installed ## open the live page in a headless Chromium, in every state and on a mesh: 110 MB to fetch, 2 min. Pictures: .cache/page/shots
	go test -vet=off -tags page -count=1 -timeout 10m -v -run 'Chromium|PageOfAMesh' ./xds/internal/page ./e2e/browser

soak: build setup ## keep a mesh busy and hurt for 30 min, and compare what each process takes before and after; ARGS="-lasts 5m"
	go test -tags soak -count=1 -timeout 90m -v ./e2e/soak $(ARGS)

test-templates: setup $(TEMPLATES)/.installed ## hold the rendering of chat templates to Python's Jinja2, and of gpt-oss to Harmony's library: 7 MB to fetch, 7 min. ARGS="-count 100000 -seed 9", "-update"
	go test -tags templates -count=1 -timeout 60m -v -run 'Templates|Committed|Agrees' ./extproc/internal/jinja $(ARGS)
	go test -tags templates -count=1 -v -run 'TemplatesOfModels|HarmonyAgrees' ./extproc/internal/token

test-vllm: build setup $(CLIENTS)/.installed ## run meshes of real vLLM on CPUs, extproc in front of two, and clients: 7 GB to fetch, 9 GB of memory, 35 min
	@python3 e2e/noxds/testdata/vllm.py $(MILLRACE_CACHE)/vllm $(MILLRACE_CACHE)/models/SmolLM2-135M-Instruct.Q4_1.gguf
	go test -tags vllm -count=1 -p 1 -timeout 60m -v -run TestVLLM ./e2e/kinds ./e2e/noxds
	go test -tags vllm,clients -count=1 -timeout 30m -v -run TestVLLM ./e2e/clients

kube-programs: | need-go ## build what clusters of the tests are made of into the user's cache, once: 10 min, 5 GB of memory
	go run ./e2e/cluster/kube -build

kube: kube-programs setup images ## bring up Kubernetes with Millrace in it on this machine, until Ctrl-C; needs root. ARGS="-nodes 2 -istio"
	@go build -o bin/tools/kube ./e2e/cluster/kube; exec bin/tools/kube $(ARGS)

test-kube: kube-programs build setup images ## run the tests on a real Kubernetes cluster of this machine; needs root
	go test -vet=off -tags kube -count=1 -p 1 -timeout 60m ./e2e/cluster ./e2e/control ./e2e/kubernetes

test-conformance: kube-programs build setup images ## run the conformance suites of Gateway API and its inference extension; ARGS="-picker lwepp" for the latter's own picker
	go run ./e2e/cluster/kube -build -suites
	go test -tags kube,conformance -count=1 -timeout 60m -v -run Conformance ./e2e/kubernetes $(ARGS)

bench: build setup ## measure; prints JSON lines and a table that explain themselves. ARGS="-h" lists the rows
	go run ./e2e/bench $(ARGS)

replay: | need-go ## run traces (TRACES=folder) or generated workloads (ARGS="-workloads FOLDER") through the policies, against simulated engines
	go run ./extproc/replay -traces "$(TRACES)" $(ARGS)

# As many images as there are programs, and what they share: no root, no container engine.
images: | need-go need-g++ ## write the programs' container images to bin/images/*.tar, for ctr, docker and skopeo
	cd e2e/tools && go build -o ../../bin/tools/ ./images
	bin/tools/images -cache $(MILLRACE_CACHE) $(ARGS)

# ST1012 is about the names of errors; protoc-gen-validate writes `var _ error`.
lint: $(TOOLS) ## check format, go vet, staticcheck, and that generated code is up to date
	@echo gofmt -l; bad=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$bad" ]; then echo "not formatted: $$bad" >&2; exit 1; fi
	go vet ./...
	go vet -tags vllm ./e2e/...
	go vet -tags clients ./e2e/clients
	go vet -tags clients,vllm ./e2e/clients
	go vet -tags page ./xds/internal/page ./e2e/browser
	go vet -tags soak ./e2e/soak
	go vet -tags templates ./extproc/internal/jinja ./extproc/internal/token
	go vet -tags kube ./e2e/cluster/... ./e2e/control ./e2e/kubernetes
	cd e2e/tools && go vet ./...
	cd e2e/kube && go vet ./pid1
	bin/tools/staticcheck -checks inherit,-ST1012 ./...
	@was=$$(cat $(GENERATED) | sha256sum); $(MAKE) --no-print-directory generate; \
		if [ "$$was" != "$$(cat $(GENERATED) | sha256sum)" ]; then \
		echo "generated code was not up to date with its .proto or Go types: commit what make generate has changed" >&2; exit 1; fi

generate: $(TOOLS) ## make Go code of the .proto files, CRDs of the Go types, dashboards of their tables
	bin/tools/protogen -validate $$(go list -m -f '{{.Dir}}' github.com/envoyproxy/protoc-gen-validate) -plugins bin/tools $(PROTOS)
	bin/tools/crdgen -to manifests/crds,manifests/charts/millrace/crds ./internal/kubeapi ./internal/config
	bin/tools/dashgen -rules manifests/dashboards/rules.yaml -to manifests/dashboards,manifests/charts/millrace/files/dashboards

clean: ## remove bin/ and what meshes left behind; rm -r .cache removes what was fetched
	@! bin/millrace status -dir .millrace >/dev/null 2>&1 || { echo "make: a mesh runs in .millrace: bin/millrace down ends it" >&2; exit 1; }
	rm -rf bin .millrace

# client is the Python client of the end-to-end tests, in a virtual environment.
# It is filled from outside, as Debian's venv comes without pip.
client: $(CLIENT)/.installed ## make the Python client of the end-to-end tests

$(CLIENT)/.installed: e2e/requirements.txt
	@echo "set-up: Python client for the tests (10 to 30 s)"; rm -rf $(CLIENT); mkdir -p $(MILLRACE_CACHE)
	@python3 -m venv --without-pip $(CLIENT)
	@PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 python3 -m pip install --quiet --no-cache-dir --disable-pip-version-check \
		--no-deps --root-user-action=ignore --require-hashes --only-binary=:all: --requirement $< \
		--target "$$($(CLIENT)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@touch $@

# Prometheus is unpacked into the cache, not installed: no service is started. Where apt has
# no list of packages yet, it gets one of its own in the cache, which takes no root.
prometheus: $(PROMETHEUS)/.installed ## fetch the Prometheus of the end-to-end tests

$(PROMETHEUS)/.installed: | need-apt
	@echo "set-up: Prometheus for the tests (20 MB)"; rm -rf $(PROMETHEUS); mkdir -p $(PROMETHEUS)/apt/lists/partial $(PROMETHEUS)/apt/archives/partial
	@cd $(PROMETHEUS); own="-o Dir::State::Lists=$(PROMETHEUS)/apt/lists -o Dir::Cache=$(PROMETHEUS)/apt -o APT::Sandbox::User="; \
		apt-get -qq -o APT::Sandbox::User= download prometheus=$(PROMETHEUS_VERSION) 2>/dev/null || \
		{ apt-get -qq $$own update && apt-get -qq $$own download prometheus=$(PROMETHEUS_VERSION); } || \
		{ echo "make: apt has no prometheus $(PROMETHEUS_VERSION): put a newer version and its hash into the Makefile" >&2; exit 4; }; \
		echo "$(PROMETHEUS_SHA256)  $$(ls *.deb)" | sha256sum --check --quiet; \
		dpkg-deb --extract *.deb unpacked; mv unpacked/usr/bin/* unpacked/usr/share/doc/prometheus/copyright .; rm -r unpacked apt *.deb
	@touch $@

# Redis is unpacked into the cache, too; its server is one program by several names.
redis: $(REDIS)/.installed ## fetch the Redis of the end-to-end tests

$(REDIS)/.installed: | need-apt
	@echo "set-up: Redis for the tests (2 MB)"; rm -rf $(REDIS); mkdir -p $(REDIS)/apt/lists/partial $(REDIS)/apt/archives/partial $(REDIS)/lib
	@cd $(REDIS); own="-o Dir::State::Lists=$(REDIS)/apt/lists -o Dir::Cache=$(REDIS)/apt -o APT::Sandbox::User="; \
		for package in $(REDIS_PACKAGES); do \
			at=$${package%=*}; \
			apt-get -qq -o APT::Sandbox::User= download $$at 2>/dev/null || \
			{ apt-get -qq $$own update && apt-get -qq $$own download $$at; } || \
			{ echo "make: apt has no $$at: put a newer version and its hash into the Makefile" >&2; exit 4; }; \
			echo "$${package##*=}  $$(ls *.deb)" | sha256sum --check --quiet; \
			dpkg-deb --extract *.deb unpacked; rm *.deb; \
		done; \
		mv unpacked/usr/bin/redis-check-rdb redis; mv unpacked/usr/lib/*/*.so* lib/; mv unpacked/usr/share/doc/redis-tools/copyright .; \
		printf '%s\n' '#!/bin/bash' 'here=$$(dirname "$$(readlink -f "$$0")")' 'export LD_LIBRARY_PATH=$$here/lib' 'exec -a redis-server "$$here/redis" "$$@"' > redis-server; \
		chmod +x redis-server; rm -r unpacked apt
	@touch $@

# clients are those of the matrix, beside the one above: in python those that take the newest
# of OpenAI's own, in older the others, in load what measures servers, and Node's.
$(CLIENTS)/.installed: e2e/requirements.txt $(wildcard e2e/clients/*.txt e2e/clients/*.json) | need-npm
	@echo "set-up: clients for the tests (30 to 90 s)"; rm -rf $(CLIENTS); mkdir -p $(CLIENTS)/node
	@pins() { \
		python3 -m venv --without-pip $(CLIENTS)/$$1; \
		PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 python3 -m pip install --quiet --no-cache-dir --disable-pip-version-check \
			--no-deps --no-compile --root-user-action=ignore --require-hashes --only-binary=:all: "$${@:2}" \
			--target "$$($(CLIENTS)/$$1/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
	}; \
	pins python --requirement e2e/requirements.txt --requirement e2e/clients/requirements.txt; \
	pins older --requirement e2e/clients/older.txt; \
	pins load --requirement e2e/clients/load.txt
	@cp e2e/clients/package.json e2e/clients/package-lock.json $(CLIENTS)/node/
	@npm ci --prefix $(CLIENTS)/node --ignore-scripts --no-audit --no-fund --silent
	@touch $@

# Debian's Chromium is unpacked into the cache with the libraries that this machine lacks. It has no
# hash here, as Debian keeps the newest of its security updates alone: apt checks what it fetches.
CHROMIUM := chromium-headless-shell fonts-dejavu-core
$(PAGE)/.installed: e2e/browser/package.json e2e/browser/package-lock.json | need-npm need-apt
	@echo "set-up: Chromium for the tests of the page (110 MB)"; rm -rf $(PAGE); mkdir -p $(PAGE)/node $(PAGE)/apt/lists/partial $(PAGE)/apt/archives/partial
	@cp e2e/browser/package.json e2e/browser/package-lock.json $(PAGE)/node/
	@npm ci --prefix $(PAGE)/node --ignore-scripts --no-audit --no-fund --silent
	@cd $(PAGE)/apt; own="-o Dir::State::Lists=$(PAGE)/apt/lists -o Dir::Cache=$(PAGE)/apt"; \
		missing() { apt-get $$1 install --reinstall --print-uris -qq -y --no-install-recommends $(CHROMIUM) 2>/dev/null | awk '{print $$2}' | sed 's/_.*//'; }; \
		get() { names=$$(missing "$$1"); [ -n "$$names" ] && apt-get -qq $$1 -o APT::Sandbox::User= download $$names 2>/dev/null; }; \
		get "" || { rm -f *.deb; apt-get -qq $$own -o APT::Sandbox::User= update && get "$$own"; } || \
		{ echo "make: apt has no $(CHROMIUM): Debian 12 or newer has" >&2; exit 4; }; \
		for package in *.deb; do dpkg-deb --extract $$package ../root; done; rm -rf ../apt
	@printf '%s\n' '#!/bin/bash' 'root=$$(dirname "$$(readlink -f "$$0")")/root' 'libs=$$root/usr/lib/$$(uname -m)-linux-gnu' \
		'export LD_LIBRARY_PATH=$$libs:$$libs/pulseaudio' 'exec "$$root/usr/lib/chromium/chromium-headless-shell" "$$@"' > $(PAGE)/chromium; chmod +x $(PAGE)/chromium
	@touch $@

# templates are Jinja2, and templates that models were published with, of a package that has them.
JINJA := extproc/internal/jinja/testdata
HARMONY := extproc/internal/harmony/testdata
OLLAMA_UTILS := @huggingface/ollama-utils@0.0.18
OLLAMA_UTILS_SUM := 5dd14f4906369c55f7210aef88bd80e11a92180b12e7ae79088d654264f64d5cf76165441571c527d2c4be62992a66f58a18e110d694cb6fd125ce1fa1a5a940

$(TEMPLATES)/.installed: $(JINJA)/requirements.txt $(HARMONY)/requirements.txt | need-go need-npm
	@echo "set-up: Jinja2 and Harmony for the tests (10 s)"; rm -rf $(TEMPLATES); mkdir -p $(TEMPLATES)
	@python3 -m venv --without-pip $(TEMPLATES)/python
	@PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 python3 -m pip install --quiet --no-cache-dir --disable-pip-version-check \
		--no-deps --root-user-action=ignore --require-hashes --only-binary=:all: $(addprefix --requirement ,$^) \
		--target "$$($(TEMPLATES)/python/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@cd $(TEMPLATES) && npm pack $(OLLAMA_UTILS) --silent >/dev/null && echo "$(OLLAMA_UTILS_SUM)  $$(ls *.tgz)" | sha512sum --check --quiet && tar xzf *.tgz
	@touch $@

$(TOOLS): e2e/tools/go.mod e2e/tools/go.sum $(wildcard e2e/tools/*/*.go) | need-go
	@mkdir -p bin/tools
	cd e2e/tools && go build -o ../../bin/tools/ ./protogen ./crdgen ./dashgen \
		google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc \
		github.com/envoyproxy/protoc-gen-validate honnef.co/go/tools/cmd/staticcheck
	@touch $@

.PHONY: need-go need-g++ need-npm need-apt
need-go:
	@command -v go >/dev/null || { echo "make: go is missing: install Go 1.26 or newer" >&2; exit 4; }
need-npm:
	@command -v npm >/dev/null || { echo "make: npm is missing: install Node.js 20 or newer" >&2; exit 4; }
need-apt:
	@command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo "make: apt-get is missing: put prometheus and promtool 2.42 or newer into $(PROMETHEUS), and an empty file .installed beside them" >&2; exit 4; }
need-g++:
	@command -v g++ >/dev/null || { echo "make: g++ is missing: apt-get install g++" >&2; exit 4; }
