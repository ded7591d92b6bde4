# make smoke   set up .venv and run the main job on the embedded model: ends with a verified pack
# make smoke-all  every scenario of the catalogue that fits the embedded model (about an hour); its table
#              goes into docs/results.md
# make setup   set up .venv with what tests and linters need; smoke alone installs less
# make telemetry  the smallest evaluation of the embedded model on the CPU: its telemetry and the line of it
# make test    the same, and run all tests
# make cases  subjects as people make them, through the workflow on the embedded model: what comes out of
#              each (about half an hour)
# make backends  compile llama.cpp into .venv, which runs GGUF models (once; seven minutes on two cores)
# make deployable-smoke  GGUF files of the embedded model, quantized by llama.cpp, through the workflow: what is
#              sound passes, two bits and exchanged scales fail; ends with a pack that verifies (needs backends)
# make lint    ruff, mypy, snakefmt, snakemake --lint
# make dev-install, make runtime-image  other names of setup and image
# make image   build the image of the container profile: images/invarlock-runtime.sif
# make container-smoke  a part of the main job inside that image, ending with a pack that verifies strictly
#              INVARLOCK_CONTAINER_ENGINE=podman (or docker): the same with invarlock-runtime:local in its storage
# make slurm   install what the profile slurm needs
# make slurm-smoke  a small part of the main job on a SLURM cluster of one node with pretend GPUs, which is
#              started for it (as root; packages munge and slurm-wlm)
# make mutants switch off each check of the verifier and show that attacks then get through (5 minutes)
# make architectures  every causal class of the library, small, through edits, damage, guards and a pack:
#              docs/architectures.md (about ten minutes)
# make results suite detection on the embedded model, once for each of four seeds of the windows:
#              docs/results.md (about two hours)
#
# PYTHON  the interpreter to build .venv with (3.11 to 3.13)
# TORCH   what to install torch from. The plain package brings CUDA on Linux; for a CPU build give
#         pip's arguments, for example  make smoke TORCH="torch==2.13.0 --index-url URL"

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
CONFIG_HOME := $(or $(XDG_CONFIG_HOME),$(HOME)/.config)
KEY ?= $(CONFIG_HOME)/invarlock/signing-key.pem
# further settings of smoke, smoke-all and results, for example CONFIG="scenarios=noop_clean,nan_injection"
CONFIG ?=
CONTAINER_OUT := evidence_pack_runs/container
TELEMETRY_OUT := evidence_pack_runs/telemetry
TELEMETRY_REPORT := $(TELEMETRY_OUT)/huggingfacetb__smollm2-135m-instruct/reports/noop_clean/run_1/evaluation.report.json
DEPLOYABLE_OUT := evidence_pack_runs/deployable
SLURM_OUT := evidence_pack_runs/slurm
DETECTION_OUT := evidence_pack_runs/detection
# of the windows; damage is measured with the first. Each run calibrates on the three seeds after its
# own, so they are four apart.
DETECTION_SEEDS := 101 105 109 113
INVARLOCK_CONTAINER_ENGINE ?= apptainer
export INVARLOCK_CONTAINER_ENGINE
# Each process would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE
# what has to pass, and damage that has to be found
CONTAINER_SCENARIOS := noop_clean,nan_injection

.PHONY: smoke smoke-all backends deployable-smoke telemetry image runtime-image dev-install container-smoke slurm slurm-smoke test cases lint setup docs results architectures mutants benchmark clean

# the suite of the target's name, ending with a verified pack
define run_suite
@set -e; key=$$($(BIN)/invarlock advanced evidence-pack keygen --if-missing --out "$(KEY)"); echo "$$key"; \
	$(BIN)/python tools/workflow.py --profile profiles/cpu --config suite=$@ signing_key="$(KEY)" $(CONFIG); \
	cat evidence_pack_runs/$@/reports/final_verdict.txt; \
	echo; echo "Evidence pack: evidence_pack_runs/$@/evidence_pack"; \
	$(BIN)/invarlock advanced evidence-pack verify evidence_pack_runs/$@/evidence_pack --strict --replay \
		--expected-fingerprint "$$(echo "$$key" | grep -o 'sha256:[0-9a-f]*')"
endef

smoke: $(VENV)/ready
	$(run_suite)

smoke-all: $(VENV)/ready
	$(run_suite)
	@$(BIN)/python tools/results_page.py evidence_pack_runs/$@

# subjects that llama.cpp's quantizer makes, each loaded and asked in fresh processes, too
deployable-smoke: $(VENV)/ready-backends
	@set -e; key=$$($(BIN)/invarlock advanced evidence-pack keygen --if-missing --out "$(KEY)"); echo "$$key"; \
	$(BIN)/python tools/workflow.py --profile profiles/cpu --config suite=deployable deploy_backends=llama_cpp \
		out=$(DEPLOYABLE_OUT) signing_key="$(KEY)" $(CONFIG); \
	cat $(DEPLOYABLE_OUT)/reports/final_verdict.txt; \
	echo; echo "Evidence pack: $(DEPLOYABLE_OUT)/evidence_pack"; \
	$(BIN)/invarlock advanced evidence-pack verify $(DEPLOYABLE_OUT)/evidence_pack --strict --replay \
		--expected-fingerprint "$$(echo "$$key" | grep -o 'sha256:[0-9a-f]*')"

backends: $(VENV)/ready-backends
	@$(BIN)/python -c 'import llama_cpp; print("llama-cpp-python", llama_cpp.__version__, "runs GGUF models")'

# what the report of a run says of itself; of that run alone
telemetry: $(VENV)/ready
	@rm -rf $(TELEMETRY_OUT)
	@$(BIN)/python tools/workflow.py $(TELEMETRY_REPORT) --profile profiles/cpu \
		--config suite=smoke scenarios=noop_clean out=$(TELEMETRY_OUT) tier=none telemetry=true device=cpu \
		calibration="{seeds: 3, windows: 8}" long_context="{windows: 0}" \
		windows="{seq_len: 64, preview: 6, final: 6, seed: 43}" $(CONFIG)
	@$(BIN)/python -c 'import json, sys; t = json.load(open(sys.argv[1]))["telemetry"]; \
		line = t.pop("summary_line"); print(json.dumps(t, indent=2, sort_keys=True)); print(line)' $(TELEMETRY_REPORT)

dev-install: setup

runtime-image: image

image: $(VENV)/ready
	@PYTHON=$(BIN)/python TORCH="$(TORCH)" bash tools/build_image.sh

container-smoke: image
	@set -e; key=$$($(BIN)/invarlock advanced evidence-pack keygen --if-missing --out "$(KEY)"); echo "$$key"; \
	PATH="$$(bash tools/build_image.sh engine):$$PATH" $(BIN)/python tools/workflow.py --profile profiles/container \
		--config suite=smoke scenarios=$(CONTAINER_SCENARIOS) out=$(CONTAINER_OUT) signing_key="$(KEY)" \
		assurance=strict profile=release container_engine=$(INVARLOCK_CONTAINER_ENGINE); \
	cat $(CONTAINER_OUT)/reports/final_verdict.txt; \
	$(BIN)/invarlock advanced evidence-pack verify $(CONTAINER_OUT)/evidence_pack --strict --replay \
		--report-assurance strict --profile release \
		--expected-fingerprint "$$(echo "$$key" | grep -o 'sha256:[0-9a-f]*')"; \
	image=images/invarlock-runtime.sif; digest=$$(sha256sum $$image 2>/dev/null | cut -c1-64); \
	case $(INVARLOCK_CONTAINER_ENGINE) in podman|docker) image=invarlock-runtime:local; \
		digest=$$($(INVARLOCK_CONTAINER_ENGINE) image inspect --format '{{.Id}}' $$image); digest=$${digest#sha256:};; esac; \
	find $(CONTAINER_OUT)/evidence_pack/reports -name runtime.manifest.json | sort | while read -r file; do \
		grep -q "\"image_digest\": \"sha256:$$digest\"" "$$file" || { echo "$$file: not made in $$digest"; exit 1; }; \
	done; \
	echo "Every report was made in $$image, sha256:$$digest"

slurm: $(VENV)/ready-slurm

slurm-smoke: $(VENV)/ready-slurm
	@set -e; key=$$($(BIN)/invarlock advanced evidence-pack keygen --if-missing --out "$(KEY)"); echo "$$key"; \
	bash tools/slurm_up.sh run $(BIN)/python tools/workflow.py --profile slurm --latency-wait 5 \
		--slurm-init-seconds-before-status-checks 1 --seconds-between-status-checks 2 \
		--set-resources baseline_report:gpu=1 calibrate:gpu=1 evaluate:gpu=1 \
		--config suite=smoke scenarios=noop_clean,nan_injection out=$(SLURM_OUT) signing_key="$(KEY)" \
		device=auto tier=none calibration="{seeds: 3, windows: 8}" \
		windows="{seq_len: 144, preview: 24, final: 24, seed: 43}"; \
	cat $(SLURM_OUT)/reports/final_verdict.txt; \
	$(BIN)/invarlock advanced evidence-pack verify $(SLURM_OUT)/evidence_pack --strict --replay \
		--expected-fingerprint "$$(echo "$$key" | grep -o 'sha256:[0-9a-f]*')"; \
	for log in $(SLURM_OUT)/logs/*/baseline_report.log $(SLURM_OUT)/logs/*/calibrate.log \
		$(SLURM_OUT)/logs/*/noop_clean/evaluate.1.log; do \
		grep -q '^GPU [01], given by SLURM$$' "$$log" || { echo "$$log: held no device"; exit 1; }; \
	done; \
	for log in $(SLURM_OUT)/logs/*/nan_injection/evaluate.1.log; do \
		! grep '^GPU' "$$log" || { echo "$$log: held a device, and its subject was rejected"; exit 1; }; \
	done; \
	echo "Every measurement held a device of its own, and the rejected subject none"

test: setup
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

cases: setup
	@$(BIN)/python -m pytest tests/test_cases.py tests/test_compare.py -m cases

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/snakefmt --check Snakefile rules
	@$(BIN)/snakemake --lint

docs: $(VENV)/ready
	@$(BIN)/python tools/make_detection.py
	@$(BIN)/python tools/make_config.py
	@$(BIN)/python tools/make_kinds.py
	@$(BIN)/python tools/make_contracts.py
	@$(BIN)/python tools/make_api.py
	@$(BIN)/python tools/make_cli.py

results: $(VENV)/ready
	@set -e; only=; for seed in $(DETECTION_SEEDS); do \
		$(BIN)/python tools/workflow.py --profile profiles/cpu --config suite=detection tier=none \
			out=$(DETECTION_OUT)/seed_$$seed windows="{preview: 90, final: 90, seed: $$seed}" \
			long_context="{windows: 0}" $$only $(CONFIG); \
		only=categories=clean; \
	done
	@$(BIN)/python tools/results_page.py $(DETECTION_SEEDS:%=$(DETECTION_OUT)/seed_%)

architectures: setup
	@mkdir -p evidence_pack_runs; rm -f evidence_pack_runs/architectures.jsonl
	@$(BIN)/python benchmarks/architectures.py evidence_pack_runs/architectures.jsonl

mutants: setup
	@$(BIN)/python tools/mutants.py

benchmark: $(VENV)/ready
	@$(BIN)/python benchmarks/speed.py
	@$(BIN)/python benchmarks/verify.py
	@$(BIN)/python benchmarks/edit_memory.py
	@$(BIN)/python benchmarks/coverage.py

# for tests, linters and benchmarks; a run needs less, and starts faster with less
setup: $(VENV)/ready-test

# The stamp is made last: an interrupted set-up is simply done again.
$(VENV)/ready: envs/requirements.lock envs/requirements-embedded.lock pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed; this is %d.%d. Name another: make PYTHON=python3.12" % v)'
	@echo "Setting up $(VENV) (once; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r envs/requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r envs/requirements-embedded.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/ready-slurm: $(VENV)/ready envs/requirements-slurm.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r envs/requirements-slurm.lock
	@touch $@

$(VENV)/ready-test: $(VENV)/ready-slurm envs/requirements-test.lock envs/requirements-formats.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r envs/requirements-test.lock \
		-r envs/requirements-formats.lock
	@touch $@

$(VENV)/ready-backends: $(VENV)/ready envs/requirements-backends.lock
	@command -v cmake >/dev/null && command -v c++ >/dev/null || \
		{ echo "llama.cpp is compiled, which needs the Debian packages cmake and g++: apt-get install cmake g++"; exit 1; }
	@echo "Compiling llama.cpp into $(VENV) (once; pip keeps the wheel)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r envs/requirements-backends.lock
	@touch $@

clean:
	rm -rf $(VENV) .snakemake evidence_pack_runs
