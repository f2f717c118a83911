# All one does with a checkout. Needs Python 3.11+ and a package index, nothing else: each target makes the virtual
# environment it runs in from the locks in requirements/, and makes it anew when a lock has changed.

PYTHON ?= python3
PORT ?= 8000

.DEFAULT_GOAL := help
.PHONY: help run test fuzz lint format bench soak gpu-acceptance train image image-test lock clean

help:  ## This list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s%s\n", $$1, $$2 }' Makefile

run: .venv/.package  ## The service with the embedded model, on port 8000 (PORT=...).
	@.venv/bin/sd35 serve --port $(PORT)

# One process per core, and at most 8 for the sake of memory. tests/conftest.py says which tests share a process.
IN_PARALLEL = --numprocesses logical --maxprocesses 8 --dist loadgroup

test: lint  ## All that is checked on every change: lint, then the tests.
	.venv-test/bin/python -m pytest -m 'not serial' $(IN_PARALLEL); parallel=$$?; \
	.venv-test/bin/python -m pytest -m serial && exit $$parallel

fuzz: .venv-test/.package  ## Ten times the cases with which every change tries the API's description.
	FUZZ_CASES=10000 .venv-test/bin/python -m pytest tests/api/test_openapi.py

lint: .venv-test/.package  ## Format, lint, types and import contracts.
	.venv-test/bin/ruff format --check
	.venv-test/bin/ruff check
	.venv-test/bin/mypy
	.venv-test/bin/lint-imports
	.venv-test/bin/hadolint Dockerfile

format: .venv-test/.package  ## Puts right what can be put right without a person.
	.venv-test/bin/ruff check --fix-only
	.venv-test/bin/ruff format

bench: .venv-test/.package  ## Measures all that the README claims, and renews its table.
	.venv-test/bin/python -m benchmarks --readme

soak: .venv-test/.package  ## Half an hour of everything at once: does memory grow with the images?
	.venv-test/bin/python -m benchmarks.soak

gpu-acceptance: .venv-test/.package  ## BF16, compiled, FP8 and TensorRT side by side on the GPU; without one, a small run.
	.venv-test/bin/python -m benchmarks.gpu_acceptance

train: .venv-test/.package  ## Makes the embedded model again, from nothing: hours; goes on where it was stopped.
	.venv-test/bin/python -m training.pipeline

TARGET ?= cpu
image:  ## The container image sd35:cpu, by docker, podman or buildah (TARGET=cuda, TARGET=tensorrt).
	@deploy/image/build.sh $(TARGET)

image-test:  ## Builds the image `cpu`, runs it with a read-only root, and tries it; needs root where only buildah is.
	@$(PYTHON) deploy/image/test.py

clean:  ## Removes the environments and the tools' caches; leaves build/, where training keeps its state.
	rm -rf .venv .venv-test .venv-lock .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# The locks. What is locked stays where it still fits; LOCK_FLAGS=--upgrade takes the newest of everything.

UV_COMPILE = .venv-lock/bin/uv pip compile --quiet
LOCK = $(UV_COMPILE) $(LOCK_FLAGS) --universal --generate-hashes --custom-compile-command 'make lock'
# The oldest systems that have a wheel of everything: glibc 2.28, macOS 14 (ONNX Runtime's). TensorRT-RTX's own package is
# but a few lines of Python, and comes as source.
PLATFORMS = x86_64-manylinux_2_28 aarch64-manylinux_2_28 aarch64-apple-darwin
# `ui` is what `make run` installs; `default` is the same without the page. The container images have IMAGE. PyTorch for CUDA,
# with NVIDIA's libraries, is a lock and a layer of its own; what else it needs is in the other locks.
IMAGE = --extra postgres --extra otel --extra ui
NOT_OF_TORCH = $(addprefix --no-emit-package ,filelock fsspec jinja2 markupsafe mpmath networkx setuptools sympy typing-extensions)

lock: .venv-lock/.installed  ## Resolves requirements/*.txt again after a change in pyproject.toml.
	$(LOCK) pyproject.toml --extra ui -o requirements/ui.txt
	$(LOCK) pyproject.toml -c requirements/ui.txt -o requirements/default.txt
	$(LOCK) --group build -c requirements/ui.txt -o requirements/build.txt
	$(LOCK) pyproject.toml --group test --extra diffusers --extra bench --extra otel --extra postgres --extra train --extra ui \
		-c requirements/ui.txt --no-emit-package torch --no-emit-package openvino-telemetry -o requirements/test.txt
	$(LOCK) --group sbom -o requirements/sbom.txt
	$(LOCK) pyproject.toml $(IMAGE) -c requirements/ui.txt -o requirements/cpu.txt
	$(LOCK) pyproject.toml $(IMAGE) --extra diffusers -c requirements/cpu.txt --no-emit-package torch -o requirements/cuda.txt
	$(LOCK) pyproject.toml $(IMAGE) --extra tensorrt -c requirements/cuda.txt --no-emit-package torch -o requirements/tensorrt.txt
	echo torch==2.13.0 | $(LOCK) --no-config - -c requirements/cuda.txt $(NOT_OF_TORCH) -o requirements/torch.txt
	printf 'openvino-genai\nopenvino-tokenizers\n' | $(LOCK) --no-config --no-deps - -c requirements/test.txt -o requirements/openvino.txt
	for platform in $(PLATFORMS); do for lock in default ui build test sbom cpu; do \
		MACOSX_DEPLOYMENT_TARGET=14.0 $(UV_COMPILE) requirements/$$lock.txt --no-deps --only-binary :all: --no-binary tensorrt-rtx-cu12 \
			--python-platform $$platform > .venv-lock/wheels || exit 1; \
	done; done

# The environments. `--no-deps`, because a lock is complete: pip has nothing to add to it, and nothing to resolve.

PIP_INSTALL = $(@D)/bin/python -m pip --disable-pip-version-check install
define NEW_VENV
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; '$(PYTHON)' is not. Name one: make ... PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(@D)
endef

.venv/.installed: requirements/ui.txt requirements/build.txt
	$(NEW_VENV)
	$(PIP_INSTALL) --require-hashes --no-deps -r requirements/ui.txt -r requirements/build.txt
	@touch $@

# PyTorch is not in the lock: its build for this machine is pip's choice. What it needs is, so it comes last, alone.
.venv-test/.installed: requirements/test.txt
	$(NEW_VENV)
	$(PIP_INSTALL) --require-hashes --no-deps -r requirements/test.txt
	$(PIP_INSTALL) torch==2.13.0
	@touch $@

.venv-lock/.installed:
	$(NEW_VENV)
	$(PIP_INSTALL) uv==0.13.9
	@touch $@

# Editable: a change of the sources needs no installation, a change of pyproject.toml does.
%/.package: %/.installed pyproject.toml
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@
