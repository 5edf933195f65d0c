import torch

from fastkd.train.ema import MovingAverage


def test_average_is_the_recursion_in_float32():
    model = torch.nn.Linear(2, 1, bias=False).to(torch.bfloat16)
    average = MovingAverage(model, decay=0.75)
    expected = model.weight.detach().float().clone()
    for value in (1.0, -2.0, 3.0):
        torch.nn.init.constant_(model.weight, value)
        average.update()
        expected = 0.75 * expected + 0.25 * value
    result = average.tensors()["weight"]
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected)


def test_swapping_twice_changes_nothing():
    model = torch.nn.Linear(2, 2)
    average = MovingAverage(model, decay=0.5)
    torch.nn.init.ones_(model.weight)
    before = model.weight.detach().clone(), average.tensors()["weight"].clone()
    average.swap()
    assert torch.equal(model.weight, before[1])
    average.swap()
    assert torch.equal(model.weight, before[0])
    assert torch.equal(average.tensors()["weight"], before[1])


def test_loading_restores_the_bits():
    model = torch.nn.Linear(3, 3)
    average, other = MovingAverage(model, 0.9), MovingAverage(model, 0.9)
    torch.nn.init.normal_(model.weight)
    average.update()
    other.load({name: tensor.clone() for name, tensor in average.tensors().items()})
    assert all(torch.equal(other.tensors()[n], t) for n, t in average.tensors().items())
