# make check   the fast tests, in two minutes          make test   all tests
# make demo   train, measure and use a Micro-YOLO on the embedded data set
# make reproduce   the paper's tables beside measured figures, on the embedded data set, in results/smoke
# make install   the virtual environment alone          make clean   take away what these targets made
# Everything is installed into .venv and nowhere else.

PYTHON ?= python3
DEMO_EPOCHS ?= 15
DEMO_SIZE ?= 320
TEST_WORKERS ?= 2
# A mirrored digit is no digit, and the digits' boxes are slimmer than those the default anchors were made for.
DEMO_WEIGHTS ?= weights/micro-yolo-voc5.pt
DEMO_FLAGS ?= --augment no-flip --fit-anchors --close-mosaic 5 --val-interval 5

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input
DEMO := runs/demo

export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: help install check test demo reproduce clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# make/make/p' Makefile

install: $(VENV)/installed

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is `$(PYTHON) --version 2>&1`: Python 3.10 or newer is needed;" \
		"name one: make PYTHON=python3.12"; exit 5; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 5; }
	@touch $@

# Of the two OpenCV wheels exactly one stays (see requirements.txt): the one with windows where its system libraries
# load, the headless one elsewhere. Both come out first, for pip never notices that they share a folder.
LIBRARIES := 'libGL.so.1', 'libxcb.so.1', 'libgthread-2.0.so.0'
CAN_SHOW := import ctypes, sys; sys.platform != 'linux' or [ctypes.CDLL(name) for name in ($(LIBRARIES))]

$(VENV)/installed: requirements.txt requirements-gui.txt | $(VENV)/made
	$(PIP) install -q -r requirements.txt
	@if $(PY) -c "$(CAN_SHOW)" 2>/dev/null; then \
		$(PIP) uninstall -qq -y opencv-python opencv-python-headless && \
		$(PIP) install -q --no-deps --no-warn-conflicts -r requirements-gui.txt; \
	elif $(PIP) show -q opencv-python 2>/dev/null; then \
		$(PIP) uninstall -qq -y opencv-python opencv-python-headless && $(PIP) install -q -r requirements.txt; \
	fi
	@$(PY) -c 'import cv2; print("OpenCV", cv2.__version__)'
	@touch $@

# The development list asks for requirements.txt again, which would bring the second OpenCV back: its -r lines are left
# out, and the runtimes, whose tests run too, are named here.
$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt requirements-export.txt
	@sed '/^-r /d' requirements-dev.txt > $(VENV)/dev.txt
	$(PIP) install -q --no-warn-conflicts -r $(VENV)/dev.txt -r requirements-export.txt
	@touch $@

# What the exported page needs of npm, for its tests; without npm, or a network, these are skipped.
web/node_modules/.package-lock.json: web/package-lock.json
	@if command -v npm >/dev/null; then cd web && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error || true; fi

# Threads that spin while they wait cost more than they give on a machine with few or busy cores. The tests of a file
# share its fixtures, so they stay in one process; were a process that crashed replaced, the run might never end.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest -n $(TEST_WORKERS) --dist loadfile --max-worker-restart 0

check: $(VENV)/installed-dev
	@$(PYTEST) -m 'not slow'

test: $(VENV)/installed-dev $(if $(wildcard web/package-lock.json),web/node_modules/.package-lock.json)
	@$(PYTEST)

demo: $(VENV)/installed
	$(PY) train.py --cfg micro-yolo --weights $(DEMO_WEIGHTS) --data scenes --imgsz $(DEMO_SIZE) --epochs $(DEMO_EPOCHS) \
		$(DEMO_FLAGS) --project $(DEMO) --name demo --exist-ok
	$(PY) val.py --weights $(DEMO)/demo/weights/best.pt --data scenes --imgsz $(DEMO_SIZE) \
		--project $(DEMO) --name val --exist-ok
	$(PY) detect.py --weights $(DEMO)/demo/weights/best.pt --source 'datasets/scenes/images/val_000*.jpg' --imgsz $(DEMO_SIZE) \
		--project $(DEMO) --name detect --exist-ok
	@echo "report:   $(DEMO)/demo/report.html"
	@echo "images:   $(DEMO)/detect"

# The accuracies are of the embedded set and say nothing about the paper's; stopped, the same command continues.
reproduce: $(VENV)/installed
	$(PY) tables.py --profile smoke
	@echo "tables: results/smoke"

# Own runs and data sets stay: only what demo and test made goes.
clean:
	rm -rf $(VENV) $(DEMO) web/node_modules .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
