"""One step of training, and an epoch end to end with its validation and checkpoint."""

from __future__ import annotations

import itertools

import pytest
from robustode.bench.config.preset import Recipe
from robustode.bench.throughput.measure import training
from robustode.bench.training.train import build_model, train
from robustode.models import MODELS
from timed import CLASSES, EAGER, FIXED_GRID, build, dataset, eager, images


@pytest.mark.benchmark(group="training step")
@pytest.mark.parametrize("name", FIXED_GRID)
def test_training_step(against, device, scale, name):
    model = build(name, device)
    pixels, labels = images(scale.batch, device)
    with training(model, pixels, labels, CLASSES) as step:
        against(step, eager(step), what=name, name=EAGER, batch=scale.batch)


@pytest.mark.benchmark(group="training epoch")
def test_training_epoch(against, device, scale, tried, tmp_path):
    data = dataset(scale.train, scale.test, real=not tried)
    recipe = Recipe(epochs=1, batch_size=scale.batch, learning_rate=0.01, weight_decay=2e-4)
    numbers = itertools.count()

    def epoch():
        model = build_model(MODELS.get("ch-node").build, data, MODELS.get("ch-node").resolve(), 0)
        path = tmp_path / f"{next(numbers)}.safetensors"
        return train(model, data, recipe, seed=0, path=path, facts={"cell": {}}, device=device)

    what = f"ch-node, {len(data.train):,} images, {data.name}"
    goal = "ratio >= 2" if device.type == "cpu" else None
    _, history = against(epoch, eager(epoch), what=what, name=EAGER, batch=scale.batch, goal=goal)
    assert len(history.train_loss) == 1
