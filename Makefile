# Few verbs; `make` alone says what they do.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test sim screens check bench experiment golden cross cross-test package-test tools

# rustup's folder, and where distributions put Mosquitto: both are often missing in a non-login shell's PATH.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/usr/local/sbin

target := $(or $(CARGO_TARGET_DIR),target)
onnxruntime := $(or $(SKIFF_ONNXRUNTIME),$(CURDIR)/.cache/onnxruntime/libonnxruntime.so)
binaries := -p skiff-pack -p skiff-agent -p skiff-worker -p skiff-cli -p skiff-demo --bins
demo_options := $(if $(DATA),--data '$(DATA)') $(if $(JSON),--json '$(JSON)') $(if $(ROUNDS),--rounds '$(ROUNDS)') \
    $(if $(AGENTS),--agents '$(AGENTS)') $(if $(ALPHA),--alpha '$(ALPHA)') $(if $(DROPOUT),--dropout '$(DROPOUT)') \
    $(if $(SHARE),--share '$(SHARE)') $(if $(STEPS),--steps '$(STEPS)') $(if $(BATCH),--batch '$(BATCH)') \
    $(if $(LR),--lr '$(LR)') $(if $(SEED),--seed '$(SEED)') $(if $(KEEP),--keep '$(KEEP)')
bench_json := $(if $(BENCH_JSON),--json '$(abspath $(BENCH_JSON))')
# A name without a slash is searched for in PATH.
bench_options := $(bench_json) $(if $(PEERS),--peers '$(if $(findstring /,$(PEERS)),$(abspath $(PEERS)),$(PEERS))') \
    $(if $(DATA),--data '$(abspath $(DATA))') $(if $(QUICK),--quick) $(if $(XXL),--xxl) $(if $(CGROUP),--cgroup '$(CGROUP)')

define help
Skiff fine-tunes a pre-trained transformer on a fleet of small devices; their data stays with them.

  make demo     a fleet on this machine: a coordinator, a broker and four agents learn together, a few minutes
  make test     every test suite, even after one has failed; installs the Mosquitto broker if it is missing
  make sim      simulates whole fleets under faults with virtual time; SEEDS=10000 for a night, SEED=7 repeats one and prints its
                events, SWARM=1 turns random faults off in each seed (make test runs 300 seeds)
  make screens  writes every screen at 80 columns to docs/screens, from real programs, and the picture of the demo
  make check    formatting, lints, plain English, and (with cargo-deny installed) licences and advisories
  make bench    what training steps cost on three sizes of BERT and on real text, what a round costs beyond
                the training, what deciding and the journal do, and what showing 10,000 devices does (half an hour)
  make experiment   compares federated fine-tuning methods on virtual fleets, some minutes: training is real, time is virtual
  make golden   computes the golden numbers anew with PyTorch, and has PEFT, transformers and ONNX's checker read what skiff-pack
                and a fleet write (gigabytes of Python packages; the tests only read the numbers)
  make cross    agent and coordinator as .deb for 64-bit ARM and x86_64, the agent also as a tarball (cross/README.md); ORT=1.20
                packs the agent's ONNX Runtime for JetPack 4
  make cross-test   runs what is in the agent's .deb for ARM under qemu: numbers, a round over Mosquitto, the golden suite
  make package-test   installs the .deb files for x86_64 in a minimal Debian, does a round, upgrades and purges; needs root

The demo writes its own data, commands to a home assistant. To change what it does:

  make demo DATA=FOLDER     your texts: a training and a test file in CSV, TSV or JSON Lines
  make demo JSON=FILE       write the result to FILE too, for programs
  make demo ROUNDS=12 STEPS=30 BATCH=8 LR=0.001 SEED=7
  make demo AGENTS=8 ALPHA=0.1     more devices; a smaller ALPHA makes their data more different
  make demo DROPOUT=0.5     each layer is skipped in half the batches; DROPOUT=bandit lets the coordinator find the rate
  make demo SHARE=3         each device shares its 3 least important layers and keeps the others to itself
  make demo KEEP=FOLDER     keep the pack, the shares and the logs of the run in FOLDER

To change what is measured, on a machine that does nothing else:

  make bench QUICK=1        MiniLM alone, a few minutes
  make bench PEERS=PYTHON   PyTorch and PEFT beside it, in a Python that has torch, transformers and peft
  make bench XXL=1          DeBERTaV2-xxlarge's shape too, in 2 GiB (8 GB of disk for the time being); the limit is systemd's, or
                            that of CGROUP=FOLDER, a memory cgroup of yours
  make bench BENCH_JSON=FILE       write the results to FILE too, for programs

  make bench DATA=FOLDER           your texts in place of the generated ones

To compare more (docs/experiments has a report), where --list says what there is:

  make experiment EXPERIMENT='--list'
  make experiment EXPERIMENT='--seeds 3'      the whole table, in a few hours; interrupted, the next start resumes it
  make experiment DATA=FOLDER                 your texts, or a public data set (docs/data-sets.md), in place of the generated ones

Needed: Linux on x86_64 or aarch64, Rust 1.95 or newer, a C compiler, python3 with pip (it fetches ONNX Runtime and MiniLM).
`make test` also builds an older commit from git's history: a clone, not an archive, and not a shallow one.
endef

help:
	@: $(info $(help))

demo: tools
	@cross/fetch
	@cargo build --release --locked $(binaries)
	@SKIFF_ONNXRUNTIME='$(onnxruntime)' '$(target)/release/skiff-demo' --checkpoint .cache/minilm $(demo_options)

# Without the previous programs, only the tests that start them fail.
test: tools
	@cross/fetch
	@echo "Mosquitto: $$(cross/mosquitto)"
	@cargo build --locked $(binaries)
	-@cross/previous
	@SKIFF_ONNXRUNTIME='$(onnxruntime)' cargo test --locked --workspace --no-fail-fast

sim: tools
	@$(if $(SEEDS),SKIFF_SEEDS='$(SEEDS)') $(if $(SEED),SKIFF_SEED='$(SEED)') $(if $(SWARM),SKIFF_SWARM=1) \
	    cargo test --locked -p skiff-tests --test sim every_seed -- --nocapture

screens: tools
	@cross/fetch
	@cargo build --locked $(binaries)
	@SKIFF_WRITE_SCREENS=1 SKIFF_ONNXRUNTIME='$(onnxruntime)' cargo test --locked -p skiff-tests --test screens

check: tools
	@tests/english
	@cargo fmt --all --check
	@cargo clippy --locked --workspace --all-targets
	@if command -v cargo-deny >/dev/null; then cargo deny check; else echo "cargo-deny is not installed: licences and advisories were not checked"; fi

# An interrupted run leaves no packs behind.
bench: tools
	@cross/fetch
	@echo "Mosquitto: $$(cross/mosquitto)"
	@cargo build --release --locked $(binaries)
	@$(if $(BENCH_JSON),rm -f '$(abspath $(BENCH_JSON))')
	@trap "rm -rf '$(target)'/tmp/bench-*" EXIT; \
	    SKIFF_ONNXRUNTIME='$(onnxruntime)' cargo bench --locked -p skiff-tests --bench steps -- $(bench_options)
	@SKIFF_ONNXRUNTIME='$(onnxruntime)' cargo bench --locked -p skiff-tests --bench rounds -- $(bench_json)
	@cargo bench --locked -p skiff-tests --bench decisions -- $(bench_json)
	@cargo bench --locked -p skiff-tests --bench journal -- $(bench_json)
	@cargo bench --locked -p skiff-tests --bench progress -- $(bench_json) $(if $(QUICK),--quick)

experiment: tools
	@cross/fetch
	@cargo build --release --locked -p skiff-tests --bin skiff-experiment
	@SKIFF_ONNXRUNTIME='$(onnxruntime)' '$(target)/release/skiff-experiment' --out '$(target)/experiment' \
	    $(if $(DATA),--data '$(DATA)') $(or $(EXPERIMENT),--quick)

golden: tools
	@cross/fetch
	@echo "Mosquitto: $$(cross/mosquitto)"
	@python3 -m venv .cache/golden
	@.cache/golden/bin/pip install --quiet torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors onnx huggingface_hub
	@.cache/golden/bin/python tests/golden/make.py tests/golden
	@.cache/golden/bin/python tests/golden/make_tokenizers.py tests/golden/tokenizers
	@.cache/golden/bin/python tests/golden/adapters.py tests/golden
	@cargo build --release --locked $(binaries)
	@tests/golden/roundtrip '$(target)/release/skiff-pack' .cache/golden/bin/python
	@.cache/golden/bin/python tests/golden/adapters.py tests/golden '$(target)/release/skiff-pack'
	@SKIFF_ONNXRUNTIME='$(onnxruntime)' .cache/golden/bin/python tests/golden/fleet.py '$(target)/release' tests/golden

cross: tools
	@ORT='$(ORT)' cross/package

cross-test: tools
	@ORT='$(ORT)' cross/test

package-test: tools
	@cross/fetch
	@cross/test-packages

tools:
	@command -v cargo >/dev/null || { echo "error: Rust is missing (no cargo in PATH)." >&2; \
	    echo "  -> Install Rust 1.95 or newer: https://rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "error: a C compiler is missing; SQLite and ring are built with it." >&2; \
	    echo "  -> Install it: sudo apt-get install build-essential" >&2; exit 1; }
