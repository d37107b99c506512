# Every target sets up .venv first when it is missing or when pyproject.toml or constraints.txt changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FLOOR := .venv-floor

.PHONY: demo test test-floor lint bench clean

demo: $(STAMP)
	$(BIN)/regaze demo

test: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile -m "not gpu"

# The families once more, on the oldest transformers that is supported.
test-floor: $(FLOOR)/.installed
	$(FLOOR)/bin/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile -p no:cacheprovider -k "not page" \
	  tests/toolkit/prompts/families/test_vision.py tests/toolkit/prompts/families/test_text.py tests/toolkit/model/test_cross_attention.py \
	  tests/toolkit/model/test_vision_towers.py tests/toolkit/test_wrap.py tests/toolkit/record/test_record.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/vulture

bench: $(STAMP)
	$(BIN)/python benchmarks/overhead.py

clean:
	rm -rf $(VENV) $(FLOOR) .mypy_cache .pytest_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(FLOOR)/.installed: pyproject.toml constraints.txt
	test -x $(FLOOR)/bin/python || $(PYTHON) -m venv $(FLOOR)
	grep -vE '^(transformers|tokenizers|huggingface_hub)==' constraints.txt > $(FLOOR)/constraints.txt
	$(FLOOR)/bin/python -m pip install --quiet --constraint $(FLOOR)/constraints.txt 'transformers==5.17.0' --editable '.[dev]'
	touch $@
