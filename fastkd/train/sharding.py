"""Parameters, gradients and optimizer state divided over processes by FSDP2, and whole again."""

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fastkd.nn.layers import DecoderLayer, EncoderLayer


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Leaves each process of `mesh` its part of each parameter; all must hold the same before.

    A layer is whole while it computes, forwards and backwards. What belongs to no layer is whole
    in `module`'s forward and backward, so outside of them only parts are to be seen.
    """
    layers = [m for m in module.modules() if isinstance(m, EncoderLayer | DecoderLayer)]
    for part in (*layers, module):
        fully_shard(part, mesh=mesh)
        assert isinstance(part, FSDPModule)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no mean


def whole(tensor: Tensor) -> Tensor:
    """All processes' parts together; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a divided tensor that lies in this process; another tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole `tensor`, divided as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    mesh, placements = like.device_mesh, like.placements
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)
