# Every target sets up .venv first when it is missing or when pyproject.toml or constraints.txt changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FLOOR := .venv-floor
MIDDLE := .transformers-middle
NEWEST := .transformers-newest
# dill, by which datasets names a table, refers to a library's objects only in a folder of this name.
HARNESS := .harness/site-packages
VLLM := .venv-vllm
MUTANT_PROCESSES ?= 2
# By itself xdist begins with the files that have most tests; tests/conftest.py, with those that have slow ones.
PYTEST := -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# What depends on how transformers works: every family, and the ways of running a model.
ON_TRANSFORMERS := tests/toolkit/prompts/families/test_vision.py tests/toolkit/prompts/families/test_text.py \
  tests/toolkit/model tests/toolkit/test_wrap.py tests/toolkit/record/test_record.py

.PHONY: demo docs test test-exhaustive test-floor test-middle test-newest test-harness test-vllm mutants lint bench figures counts clean

demo: $(STAMP)
	$(BIN)/regaze demo

# On the transformers that constraints.txt pins, the newest that was tested.
test: $(STAMP)
	$(BIN)/python $(PYTEST) -m "not gpu and not exhaustive"

# Thousands of bad inputs, dozens of kills and interrupts, all pairs of methods, the slow blocks of pages: beside .ci/run.
test-exhaustive: $(STAMP)
	$(BIN)/python $(PYTEST) -m "exhaustive and not gpu"

# The families once more, on the oldest transformers that is supported.
test-floor: $(FLOOR)/.installed
	$(FLOOR)/bin/python $(PYTEST) -m "not gpu and not exhaustive" -p no:cacheprovider $(ON_TRANSFORMERS)

# What runs models, on the last transformers that calls the cache `past_key_values`.
test-middle: $(MIDDLE)/.installed
	PYTHONPATH=$(MIDDLE) $(BIN)/python $(PYTEST) -m "not gpu and not slow and not exhaustive" -p no:cacheprovider \
	  tests/toolkit/model tests/toolkit/test_wrap.py tests/toolkit/record/test_record.py

# The families on the newest transformers that there is, also where it is newer than what was tested: it says whether
# the upper bound in pyproject.toml, compat/release.py and constraints.txt can move.
test-newest: $(STAMP)
	rm -rf $(NEWEST)
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(NEWEST) transformers
	PYTHONPATH=$(NEWEST) $(BIN)/python $(PYTEST) -m "not gpu and not exhaustive" -p no:cacheprovider $(ON_TRANSFORMERS)

# Inside lm-eval and lmms-eval, which are installed beside the environment without all that they require.
test-harness: $(HARNESS)/.installed
	PYTHONPATH=$(HARNESS) $(BIN)/python $(PYTEST) -p no:cacheprovider tests/eval/harness

# Inside vLLM, in an environment of its own: its build for CPUs takes one torch and older transformers. The threads of OpenMP
# would wait for each other in busy loops where cores are shared. Two processes, as engines are large.
test-vllm: $(VLLM)/.installed
	OMP_NUM_THREADS=1 $(VLLM)/bin/python $(PYTEST) --maxprocesses 2 -p no:cacheprovider -m "not gpu" tests/serving

# Every small change (a mutant) to the files that pyproject.toml names under tool.mutmut, and whether a test fails of it.
# Ends with what became of each file's mutants; `.venv/bin/mutmut results` names the survivors, `mutmut show NAME` and
# `mutmut browse` show them, `mutmut run 'regaze.eval.run.journal*'` tries those of one file again.
mutants: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,mutation]'
	rm -rf mutants
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children $(MUTANT_PROCESSES)
	$(BIN)/mutmut results --all true | sed -E 's/\.x[^.]*: /: /' | sort | uniq -c

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache
	$(BIN)/vulture

# The site into out/site, with warnings as errors and nothing fetched; `.venv/bin/mkdocs serve` shows it while pages change.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: $(STAMP)
	$(BIN)/python benchmarks/overhead.py

# Before a release: measure what the bundled model shows, and write the figures on all pages from the results.
figures: $(STAMP)
	$(BIN)/python benchmarks/pages.py --measure demo

# The whole suite, and its counts into docs/reliability.md.
counts: $(STAMP)
	$(BIN)/python $(PYTEST) -m "not gpu" -o junit_family=xunit1 --junitxml=out/tests.xml
	$(BIN)/python benchmarks/count_tests.py out/tests.xml --json benchmarks/results/tests.json
	$(BIN)/python benchmarks/pages.py

clean:
	rm -rf $(VENV) $(FLOOR) $(MIDDLE) $(NEWEST) $(VLLM) .harness mutants .mypy_cache .pytest_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(FLOOR)/.installed: pyproject.toml constraints.txt
	test -x $(FLOOR)/bin/python || $(PYTHON) -m venv $(FLOOR)
	grep -vE '^(transformers|tokenizers|huggingface_hub)==' constraints.txt > $(FLOOR)/constraints.txt
	$(FLOOR)/bin/python -m pip install --quiet --constraint $(FLOOR)/constraints.txt 'transformers==5.17.0' --editable '.[dev]'
	touch $@

$(MIDDLE)/.installed: $(STAMP)
	rm -rf $(MIDDLE)
	$(BIN)/python -m pip install --quiet --no-deps --target $(MIDDLE) 'transformers==5.23.0'
	touch $@

$(HARNESS)/.installed: $(STAMP) tests/eval/harness/requirements.txt
	rm -rf $(HARNESS)
	$(BIN)/python -m pip install --quiet --no-deps --target $(HARNESS) --requirement tests/eval/harness/requirements.txt
	touch $@

$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-deps --requirement constraints-vllm.txt
	$(VLLM)/bin/python tests/serving/mend_torchvision.py
	$(VLLM)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@
