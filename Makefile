# The tasks of a checkout. They need Python 3.11 or newer and a package index. Each target creates its virtual environment
# from the locks in requirements/, and creates it again when a lock has changed.

PYTHON ?= python3
PORT ?= 8000

.DEFAULT_GOAL := help
.PHONY: help run test fuzz lint format docs bench soak gpu-acceptance train image image-test lock clean

help:  ## Print this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s%s\n", $$1, $$2 }' Makefile

run: .venv/.package  ## Run the service with the embedded model on port 8000 (PORT=...).
	@.venv/bin/sd35 serve --port $(PORT)

# One process per core, and at most 8 to save memory. tests/conftest.py says which tests share a process.
IN_PARALLEL = --numprocesses logical --maxprocesses 8 --dist loadgroup

test: lint  ## Run all checks of a change: lint, then the tests.
	.venv-test/bin/python -m pytest -m 'not serial' $(IN_PARALLEL); parallel=$$?; \
	.venv-test/bin/python -m pytest -m serial && exit $$parallel

fuzz: .venv-test/.package  ## Test the API against its description with ten times the usual cases.
	FUZZ_CASES=10000 .venv-test/bin/python -m pytest tests/api/test_openapi.py

lint: .venv-test/.package  ## Check format, lint, types and import contracts.
	.venv-test/bin/ruff format --check
	.venv-test/bin/ruff check
	.venv-test/bin/mypy
	.venv-test/bin/lint-imports
	.venv-test/bin/hadolint Dockerfile

format: .venv-test/.package  ## Format, and fix lint errors that can be fixed automatically.
	.venv-test/bin/ruff check --fix-only
	.venv-test/bin/ruff format

docs: .venv-test/.package  ## Generate the reference pages and the tables of figures of the documentation.
	.venv-test/bin/python -m docs_generator

bench: .venv-test/.package  ## Measure all figures of the documentation, and update their tables.
	.venv-test/bin/python -m benchmarks --readme

soak: .venv-test/.package  ## Run a mixed load for half an hour, to see whether memory grows.
	.venv-test/bin/python -m benchmarks.soak

gpu-acceptance: .venv-test/.package  ## Compare BF16, compiled, FP8 and TensorRT on the GPU; a small run without one.
	.venv-test/bin/python -m benchmarks.gpu_acceptance

train: .venv-test/.package  ## Train the embedded model from scratch. Takes hours; resumes if interrupted.
	.venv-test/bin/python -m training.pipeline

TARGET ?= cpu
image:  ## Build the container image sd35:cpu with docker, podman or buildah (TARGET=cuda, TARGET=tensorrt).
	@deploy/image/build.sh $(TARGET)

image-test:  ## Build the image `cpu`, and test it with a read-only root. Needs root with buildah alone.
	@$(PYTHON) deploy/image/test.py

clean:  ## Remove the environments and the tools' caches, but not build/, the state of training.
	rm -rf .venv .venv-test .venv-lock .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# The locks. Versions stay locked if they still fit; LOCK_FLAGS=--upgrade takes the newest of everything.

UV_COMPILE = .venv-lock/bin/uv pip compile --quiet
LOCK = $(UV_COMPILE) $(LOCK_FLAGS) --universal --generate-hashes --custom-compile-command 'make lock'
# The oldest systems for which every package has a wheel: glibc 2.28, macOS 14 (for ONNX Runtime). TensorRT-RTX's own package
# is a few lines of Python, available only as source.
PLATFORMS = x86_64-manylinux_2_28 aarch64-manylinux_2_28 aarch64-apple-darwin
# `make run` installs `ui`; `default` is the same without the user interface. The container images install IMAGE. PyTorch for
# CUDA and NVIDIA's libraries have a separate lock and layer. The other dependencies of PyTorch are in the other locks.
IMAGE = --extra postgres --extra otel --extra ui
NOT_OF_TORCH = $(addprefix --no-emit-package ,filelock fsspec jinja2 markupsafe mpmath networkx setuptools sympy typing-extensions)

lock: .venv-lock/.installed  ## Resolve requirements/*.txt again after a change in pyproject.toml.
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

# The environments. With `--no-deps`, pip resolves nothing, because a lock is complete.

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

# PyTorch is not in the lock, because pip chooses the build for this machine. Its dependencies are, so it is installed last.
.venv-test/.installed: requirements/test.txt
	$(NEW_VENV)
	$(PIP_INSTALL) --require-hashes --no-deps -r requirements/test.txt
	$(PIP_INSTALL) torch==2.13.0
	@touch $@

.venv-lock/.installed:
	$(NEW_VENV)
	$(PIP_INSTALL) uv==0.13.9
	@touch $@

# The installation is editable, so it is repeated only if pyproject.toml changes.
%/.package: %/.installed pyproject.toml
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@
