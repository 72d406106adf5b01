# Everything runs in .venv, which is made on first use.
PYTHON ?= python3
OUT ?= out
BIN := .venv/bin

.PHONY: demo test lowest clean

demo: .venv/.ready
	$(BIN)/python examples/emoji/demo.py --output $(OUT)
	$(BIN)/python examples/fashion/demo.py --output $(OUT)

test: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p arforge
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# the lowest versions that pyproject.toml declares, in an environment of their own
lowest: .venv/.ready
	$(BIN)/python .ci/lowest.py build/lowest

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build out
