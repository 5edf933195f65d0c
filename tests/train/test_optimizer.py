import torch

from fastkd.config.tree import OptimizerConfig
from fastkd.train.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors


def stepped(steps, model=None, optimizer=None):
    torch.manual_seed(0)
    model = model or torch.nn.Linear(3, 2)
    optimizer = optimizer or build_optimizer(OptimizerConfig(), list(model.parameters()))
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def test_state_goes_through_named_tensors_unchanged():
    straight, _ = stepped(5)
    model, optimizer = stepped(3)
    fresh = build_optimizer(OptimizerConfig(), list(model.parameters()))
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    load_optimizer_tensors(fresh, saved)
    resumed, _ = stepped(2, model, fresh)
    assert torch.equal(resumed.weight, straight.weight)


def test_only_matrices_decay():
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(OptimizerConfig(weight_decay=0.5), list(model.parameters()))
    decays = {
        tuple(p.shape): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]
    }
    assert decays == {(2, 3): 0.5, (2,): 0.0}
