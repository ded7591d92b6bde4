# make smoke   set up .venv and run the main job on the embedded model: ends with a verified pack
# make test    set up .venv and run all tests
# make lint    ruff, mypy, snakefmt, snakemake --lint
# make image   build the image of the container profile: images/invarlock-runtime.sif
# make container-smoke  a part of the main job inside that image, ending with a pack that verifies strictly
# make mutants switch off each check of the verifier and show that attacks then get through (5 minutes)
# make results measure clean edits and damage on the embedded model: docs/results.md (about an hour)
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
OUT := evidence_pack_runs/smoke
CONTAINER_OUT := evidence_pack_runs/container
# harmless edits, and damage for two guards
CONTAINER_SCENARIOS := noop_clean,quant_8bit_clean,nan_injection,rank1_projection

.PHONY: smoke image container-smoke test lint setup docs results mutants benchmark clean

smoke: setup
	@set -e; key=$$($(BIN)/invarlock advanced evidence-pack keygen --if-missing --out "$(KEY)"); echo "$$key"; \
	$(BIN)/python tools/workflow.py --profile cpu --config suite=smoke signing_key="$(KEY)"; \
	cat $(OUT)/reports/final_verdict.txt; \
	echo; echo "Evidence pack: $(OUT)/evidence_pack"; \
	$(BIN)/invarlock advanced evidence-pack verify $(OUT)/evidence_pack --strict --replay \
		--expected-fingerprint "$$(echo "$$key" | grep -o 'sha256:[0-9a-f]*')"

image: setup
	@PYTHON=$(BIN)/python TORCH="$(TORCH)" bash tools/build_image.sh

container-smoke: image
	@set -e; key=$$($(BIN)/invarlock advanced evidence-pack keygen --if-missing --out "$(KEY)"); echo "$$key"; \
	PATH="$$(bash tools/build_image.sh engine):$$PATH" $(BIN)/python tools/workflow.py --profile container \
		--config suite=smoke scenarios=$(CONTAINER_SCENARIOS) out=$(CONTAINER_OUT) signing_key="$(KEY)" \
		assurance=strict profile=release; \
	cat $(CONTAINER_OUT)/reports/final_verdict.txt; \
	$(BIN)/invarlock advanced evidence-pack verify $(CONTAINER_OUT)/evidence_pack --strict --replay \
		--report-assurance strict --profile release \
		--expected-fingerprint "$$(echo "$$key" | grep -o 'sha256:[0-9a-f]*')"; \
	digest=$$(sha256sum images/invarlock-runtime.sif | cut -c1-64); \
	find $(CONTAINER_OUT)/evidence_pack/reports -name runtime.manifest.json | sort | while read -r file; do \
		grep -q "\"image_digest\": \"sha256:$$digest\"" "$$file" || { echo "$$file: not made in $$digest"; exit 1; }; \
	done; \
	echo "Every report was made in images/invarlock-runtime.sif, sha256:$$digest"

test: setup
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/snakefmt --check Snakefile rules
	@$(BIN)/snakemake --lint

docs: setup
	@$(BIN)/python tools/make_config_readme.py

results: setup
	@$(BIN)/python tools/detection_table.py

mutants: setup
	@$(BIN)/python tools/mutants.py

benchmark: setup
	@$(BIN)/python benchmarks/speed.py
	@$(BIN)/python benchmarks/verify.py
	@$(BIN)/python benchmarks/edit_memory.py
	@$(BIN)/python benchmarks/coverage.py

setup: $(VENV)/ready

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

clean:
	rm -rf $(VENV) .snakemake evidence_pack_runs
