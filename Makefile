# Everything runs in .venv, which is made on first use.
PYTHON ?= python3
OUT ?= out
BIN := .venv/bin

.PHONY: demo test test-soak test-serving lowest clean

demo: .venv/.ready
	$(BIN)/python examples/emoji/demo.py --output $(OUT)
	$(BIN)/python examples/fashion/demo.py --output $(OUT)

test: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p arforge
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# what goes wrong only under load, which takes minutes
test-soak: .venv/.ready
	$(BIN)/python -m pytest -m soak tests/reliability

# what starts Triton, Ray or a browser, which come apart from what all else needs
test-serving: .venv/.serving build/triton/.ready
	$(BIN)/python -m pytest -m servers tests/serving tests/runner/cpp/test_triton.py

.venv/.serving: .venv/.ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,serve,ray]'
	$(BIN)/pip install --quiet --no-deps tritonclient==2.73.0 python-rapidjson==1.25
	$(BIN)/pip install --quiet playwright==1.65.2
	touch $@

# The server of the wheel alone: what the wheel needs beside it does not go with numpy 2. Of numpy 1 for texts, see
# serving/triton/model.py
build/triton/.ready: .venv/.ready
	rm -rf build/triton build/numpy-1.26
	$(BIN)/pip install --quiet --no-deps --target build/triton nvidia-pytriton==0.7.0
	$(BIN)/pip install --quiet --no-deps --target build/numpy-1.26 numpy==1.26.4
	version=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])') && \
	  cd build/triton/pytriton/tritonserver && \
	  cp python_backend_stubs/$$version/triton_python_backend_stub backends/python/
	touch $@

# the lowest versions that pyproject.toml declares, in an environment of their own
lowest: .venv/.ready
	$(BIN)/python .ci/lowest.py build/lowest

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build out
