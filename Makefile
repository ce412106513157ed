PYTHON ?= python3

.PHONY: environment reproduce test fast docs gpu
environment: .venv/installed

reproduce: environment
	.venv/bin/journey experiment=digits

test: environment
	.venv/bin/pytest

# The tests that start no process and train no model, for development.
fast: environment
	.venv/bin/pytest -m "not slow"

# The documents as a site: site/index.html. A dead link is an error.
docs: environment
	.venv/bin/mkdocs build --quiet

# What a GPU does with this code, as JSON under experiments/accelerator/: seven parts of less than ten minutes.
gpu: environment
	.venv/bin/python benchmarks/accelerator.py

# A new virtual environment when the pinned versions or the package's requirements change.
.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "journey needs Python 3.11 or newer: make PYTHON=…")'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet --requirement requirements.txt
	.venv/bin/pip install --quiet --no-deps --editable .
	touch $@
