"""A module is moved or trained for a while without a copy, and is as it was afterwards."""

from __future__ import annotations

import threading

import pytest
import robustode
import torch
from robustode.bench.runtime.put_back import change_tensors, put_back, train_all
from torch import nn


class Own(nn.Module):
    """Tied weights, a lock, a number that it counts, a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.two.weight = self.one.weight
        self.one.bias.requires_grad_(False)
        self.one.bias.grad = torch.ones(4)
        self.lock, self.calls, self.plain = threading.Lock(), 0, torch.zeros(4)

    def forward(self, x):
        self.calls += 1
        return self.norm(self.two(self.one(x)))


def test_everything_is_put_back():
    module = Own()
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    values = {name: tensor.clone() for name, tensor in tensors.items()}
    gradient = module.one.bias.grad

    def change():
        with put_back(module):
            change_tensors(module, torch.clone)
            train_all(module)
            assert module.one.bias.requires_grad
            assert module.one.weight is module.two.weight
            module(torch.rand(3, 4)).sum().backward()
            torch.optim.SGD(module.parameters(), lr=1.0).step()
            module.to(torch.float64)
            module.plain, module.extra = torch.ones(4), nn.Linear(1, 1)
            module.register_buffer("late", torch.ones(1))
            module.eval()
            raise KeyError

    with pytest.raises(KeyError):
        change()
    found = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    assert found.keys() == tensors.keys()
    assert all(found[name] is tensors[name] for name in tensors)
    assert all(torch.equal(found[name], values[name]) for name in values)
    assert module.one.bias.grad is gradient
    assert bool((gradient == 1).all())
    assert (module.one.bias.requires_grad, module.two.bias.grad) == (False, None)
    assert (module.calls, module.training, hasattr(module, "extra")) == (0, True, False)
    assert bool((module.plain == 0).all())


def test_a_module_made_in_inference_mode_that_cannot_be_copied_is_attacked():
    with torch.inference_mode():
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)).eval()
        nn.init.zeros_(module[1].weight)
    module.lock = threading.Lock()
    weight = module[1].weight
    with pytest.warns(robustode.UntrainedModelWarning):
        frame = robustode.evaluate(module, threats=["clean", ("fgsm-linf", 0.1)], samples=4)
    assert set(frame["threat"]) == {"clean", "fgsm-linf", "worst-case"}
    assert module[1].weight is weight
    assert weight.is_inference()
