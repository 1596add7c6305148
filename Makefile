# make leaderboard: attack the embedded zoo in a folder that is not committed, and say whether the committed
# results are found again: of the first N samples, each by itself; N=500 is all of them.
# make test: everything that guards a change.
# Both make their own virtual environment first; PYTHON chooses the interpreter.

PYTHON ?= python3
VENV ?= .venv-run
DEV_VENV ?= .venv-dev
RESULTS ?= build/leaderboard
SUITE ?= standard
N ?= 150

bin := $(VENV)/bin
dev := $(abspath $(DEV_VENV))/bin
sources := $(shell find robench model_zoo -type f ! -name '*.pyc')
pip-install := -m pip install --quiet --disable-pip-version-check

# Tests start the package anew many times: it is compiled once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: leaderboard test lint package docs bench clean

leaderboard: $(VENV)/installed
	$(bin)/robench run --dataset digits --suite $(SUITE) --n $(N) --results $(RESULTS)
	case "$(SUITE)-$(RESULTS)" in *-results) ;; standard-*) \
	  $(bin)/robench reproduce results --results $(RESULTS) --stored --n $(N);; esac

test: lint package docs
	$(dev)/python -m pytest --numprocesses auto

lint: $(DEV_VENV)/installed
	$(dev)/ruff check .
	$(dev)/ruff format --check .
	$(dev)/mypy
	$(dev)/lint-imports

# A wheel brings the digits' zoo along and works from any folder.
package: $(DEV_VENV)/installed
	rm -rf build/package && mkdir -p build/package
	$(dev)/python $(pip-install) --no-deps --target build/package .
	cd build && PYTHONPATH=$(abspath build/package) $(dev)/python -P -m robench zoo verify --dataset digits

# A broken link or reference ends the build, and so does a page that would fetch something.
docs: $(DEV_VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(dev)/mkdocs build --strict --quiet

bench: $(DEV_VENV)/installed
	for script in benchmarks/*.py; do echo "== $$script"; $(dev)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) $(DEV_VENV) build

# A stamp each, so that nothing is installed twice. Not editable: what runs is what a wheel holds.
$(VENV)/installed: pyproject.toml $(sources)
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	$(bin)/python $(pip-install) .
	touch $@

# Editable: tests, types and style look at the working tree, so only pyproject.toml matters.
$(DEV_VENV)/installed: pyproject.toml
	test -x $(dev)/python || $(PYTHON) -m venv $(DEV_VENV)
	$(dev)/python $(pip-install) --editable '.[dev]'
	touch $@
