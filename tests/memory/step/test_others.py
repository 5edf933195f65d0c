"""What is on a GPU beside a measured step: told from it by an allocator that is made up."""

import pytest
import torch

from fastkd.memory.step import measure
from fastkd.memory.step.others import Others

GPU = torch.device("cuda")
KB = 1024


class Allocator:
    """CUDA's, of two devices: each segment a list of blocks (address or None where free, size)."""

    def __init__(self, *segments, device=0):
        self.segments, self.device = list(segments), device
        self.peak = self.peak_reserved = 0

    def patch(self, monkeypatch):
        names = {
            "get_allocator_backend": lambda: "native",
            "current_device": lambda: 0,
            "memory_snapshot": self.snapshot,
            "synchronize": lambda device: None,
            "reset_peak_memory_stats": self.restart,
            "memory_allocated": lambda device: self.allocated(),
            "max_memory_allocated": lambda device: self.peak,
            "max_memory_reserved": lambda device: self.peak_reserved,
            "mem_get_info": lambda device: (2**30 - self.reserved() - 300 * KB, 2**30),
        }
        for name, function in names.items():
            monkeypatch.setattr(torch.cuda, name, function)
        return self

    def allocated(self):
        return sum(size for blocks in self.segments for address, size in blocks if address)

    def reserved(self):
        return sum(size for blocks in self.segments for _, size in blocks)

    def restart(self, device=None):
        self.peak, self.peak_reserved = self.allocated(), self.reserved()

    def take(self, size):
        self.segments.append([(10 * KB + len(self.segments), size)])
        self.peak = max(self.peak, self.allocated())
        self.peak_reserved = max(self.peak_reserved, self.reserved())

    def snapshot(self):
        return [
            {
                "device": device,
                "address": 7,
                "total_size": sum(size for _, size in blocks),
                "blocks": [
                    {"size": size, "state": "active_allocated" if address else "inactive"}
                    | ({"address": address} if address else {})
                    for address, size in blocks
                ],
            }
            for device in (self.device, 1 - self.device)
            for blocks in self.segments
        ]


class Step:
    """Holds tensors, and takes `size` bytes for as long as it runs."""

    def __init__(self, size=0, allocator=None):
        self.tensors = [torch.ones(3), None, torch.ones(5)]
        self.size, self.allocator = size, allocator

    def addresses(self):
        return [
            tensor.untyped_storage().data_ptr() for tensor in self.tensors if tensor is not None
        ]

    def label(self, tracker):
        tracker.hold(self.tensors, "parameters")

    def __call__(self):
        self.allocator.take(self.size)
        self.allocator.segments.pop()


def blocks_of(step):
    """A segment of others, one that the step shares with others, and one of the step."""
    one, two = step.addresses()
    return [(1, 64 * KB), (None, 8 * KB)], [(2, KB), (one, 2 * KB)], [(two, 4 * KB), (None, KB)]


@pytest.mark.parametrize("device", [GPU, torch.device("cuda", 0), torch.device("cuda", 1)])
def test_blocks_that_hold_nothing_of_the_step(monkeypatch, device):
    step = Step()
    Allocator(*blocks_of(step), device=device.index or 0).patch(monkeypatch)
    assert Others.beside(step, device) == Others(allocated=65 * KB, reserved=72 * KB)


def test_an_allocator_that_tells_of_no_blocks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    assert Others.beside(Step(), GPU) == Others()


@pytest.mark.parametrize("crowded", [False, True])
def test_a_measured_step_is_the_same_beside_others(monkeypatch, crowded):
    """Models that were on the GPU before counted as the step's."""
    allocator = Allocator()
    step = Step(100 * KB, allocator)
    own = [[(address, 2 * KB)] for address in step.addresses()]
    allocator.segments = own + ([[(1, 64 * KB)], [(2, KB), (None, KB)]] if crowded else [])
    allocator.patch(monkeypatch)
    figures = measure._cuda_figures(step, GPU, None)["allocator"]
    assert figures == {
        "allocated before": 4 * KB,
        "peak allocated": 104 * KB,
        "peak reserved": 104 * KB,
        "device in use": 304 * KB,
        "device total": 2**30,
    }
