# Reproduce nano: draw scenes on the image tiles of TILES, train, score, pack. Hours on two cores; needs the extra
# "train". REAL=FOLDER also scores real pairs; SET="--set key=value ..." changes the recipe, for a short trial.
RUN ?= runs/nano
TILES ?= tiles
SCENES ?= 300

.PHONY: nano
nano:
	python -m deltacli train configs/train_nano.yaml -o $(RUN) --set scenes.ground_folder=$(TILES) $(SET)
	python -m deltacli weights export $(RUN)/model
	python benchmarks/nano_scores.py --model $(RUN)/model --scenes $(SCENES) $(if $(REAL),--real $(REAL)) --json $(RUN)/scores.json
	python benchmarks/pack_nano.py $(RUN)
