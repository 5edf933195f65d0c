"""The divergence of one block's maps and its gradient, with few passes over memory.

A group is what one softmax runs over, the last dimension here: a map's cells or a row's. With
a = Q/τ, m = M/τ, a constant c and d = m − a − c, all of it follows from sums over the group that
add over blocks:

    Z = Σ exp(a)    D = Σ exp(a)·d / Z    E = Σ exp(a)·(exp(d) − 1 − d) / Z
    KL = log1p(D + E) − D        dKL/dm = exp(a)/Z · (exp(d) / (1 + D + E) − 1)

E is a sum of small positive terms, so nearly equal maps keep their digits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastkd.backends.attention_precision import SMALLEST
from fastkd.backends.attention_torch.sources import Workspace

# With |a| and |m| up to this, exp(a), exp(d) and their product, summed over any map, stay within
# the normal range of float32.
EVEN = 30.0


@dataclass
class Groups:
    """What is known of a block's groups before their cells are."""

    counted: Tensor | None  # (sentences, 1, groups, cells); None: every cell
    centre: Tensor | None  # (sentences, maps, groups) c, near the mean of m − a; None: 0


@dataclass
class Sums:
    """The sums of groups, (sentences, maps, groups) each."""

    log_total: Tensor  # log Z
    centre: Tensor  # c
    mean: Tensor  # D
    excess: Tensor  # E
    far: Tensor | None = None  # log Σ exp(m), where exp(d) may leave the range

    def double(self) -> "Sums":
        return Sums(
            self.log_total.double(),
            self.centre.double(),
            self.mean.double(),
            self.excess.double(),
            None if self.far is None else self.far.double(),
        )

    def merged(self, other: "Sums") -> "Sums":
        """The sums of the union of two groups' cells."""
        log_total = torch.logaddexp(self.log_total, other.log_total)
        ours, theirs = (_finite((s.log_total - log_total).exp()) for s in (self, other))
        centre = ours * self.centre + theirs * other.centre
        left, right = self._centred(centre), other._centred(centre)
        far = None
        if self.far is not None and other.far is not None:
            far = torch.logaddexp(self.far, other.far)
        mean, excess = (ours * left[i] + theirs * right[i] for i in (0, 1))
        return Sums(log_total, centre, mean, excess, far)

    def _centred(self, centre: Tensor) -> tuple[Tensor, Tensor]:
        """D and E for another c."""
        shift = self.centre - centre
        grown = shift.expm1()
        return self.mean + shift, (grown + 1) * self.excess + grown * self.mean + (grown - shift)

    def divergence(self) -> Tensor:
        """KL, 0 for groups without cells."""
        near = torch.log1p(self.mean + self.excess) - self.mean
        if self.far is not None:
            direct = self.far - self.log_total - self.centre - self.mean
            near = torch.where(near < EVEN, near, direct)
        return torch.where(self.log_total == -torch.inf, 0, near)

    def log_ratio(self) -> Tensor:
        """log of Σ exp(m) over Σ exp(a)."""
        near = torch.log1p(self.mean + self.excess)
        if self.far is None:
            return _finite(self.centre + near)
        direct = self.far - self.log_total
        return _finite(torch.where(near < EVEN, self.centre + near, direct))


def _finite(tensor: Tensor) -> Tensor:
    return torch.nan_to_num(tensor, nan=0.0)


class Even:
    """Groups whose |a| and |m| are known to be at most `EVEN`: nothing needs a maximum."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def prepare(self, teacher: Tensor, difference: Tensor, groups: Groups) -> None:
        """teacher: a, difference: m − a, (sentences, maps, groups, cells); both are overwritten."""
        self.groups = groups
        if groups.centre is not None:
            difference.sub_(groups.centre[..., None])
        self.difference = difference
        self.weight = teacher.exp_()
        if groups.counted is not None:
            self.weight.masked_fill_(~groups.counted, 0)
        self.grown = torch.expm1(difference, out=self.workspace.take("grown", *difference.shape))

    def measure(self) -> Sums:
        total = self.weight.sum(-1)
        mean = torch.linalg.vecdot(self.weight, self.difference)
        excess = torch.sub(self.grown, self.difference, out=self.difference)
        excess = torch.linalg.vecdot(self.weight, excess)
        centre = self.groups.centre
        return Sums(
            total.log(),
            torch.zeros_like(total) if centre is None else centre,
            _finite(mean / total),
            _finite(excess / total),
        )

    def gradient(self, sums: Sums) -> tuple[Tensor, Tensor]:
        """dKL/dm as a tensor and a factor of each group."""
        centre = self.groups.centre
        log_ratio = sums.log_ratio() if centre is None else sums.log_ratio() - centre
        factor = torch.exp(-sums.log_total - log_ratio)
        factor = torch.where(sums.log_total == -torch.inf, 0, factor)
        dtype = self.grown.dtype
        gradient = self.grown.sub_(log_ratio.expm1().to(dtype)[..., None]).mul_(self.weight)
        return gradient, factor.to(dtype)


class Steep:
    """Groups of any exponents, at the price of more passes and memory."""

    def prepare(self, teacher: Tensor, difference: Tensor, groups: Groups) -> None:
        """teacher: a, difference: m − a, (sentences, maps, groups, cells)."""
        self.groups = groups
        if groups.counted is not None:
            teacher = teacher.masked_fill(~groups.counted, -torch.inf)
        self.teacher = teacher
        self.difference = difference

    def measure(self) -> Sums:
        log_total = self.teacher.logsumexp(-1)
        weight = self._weight(log_total)
        centre = (weight * self.difference).sum(-1)
        difference = self.difference - centre[..., None]
        growth = self._growth(weight, log_total, difference)
        mean = (weight * difference).sum(-1)
        excess = (growth - weight * difference).sum(-1)
        mixed = self.teacher + self.difference
        # Cells past the clamp in _growth leave E unknown, and Σ exp(m) to take its place.
        past = mixed.amax(-1) - log_total - centre > 2 * EVEN
        excess = excess.masked_fill(past, torch.inf)
        return Sums(log_total, centre, mean, excess, mixed.logsumexp(-1))

    def _weight(self, log_total: Tensor) -> Tensor:
        return _finite((self.teacher - log_total[..., None]).exp())

    def _growth(self, weight: Tensor, log_total: Tensor, difference: Tensor) -> Tensor:
        """weight · (exp(difference) − 1), also where one underflows and the other overflows."""
        exponent = self.teacher - log_total[..., None] + difference
        large = exponent.clamp(max=2 * EVEN).exp() - weight
        return torch.where(difference > 1, large, weight * difference.clamp(max=1).expm1())

    def gradient(self, sums: Sums) -> tuple[Tensor, None]:
        log_total = sums.log_total.to(self.teacher.dtype)
        difference = self.difference - sums.log_ratio().to(self.teacher.dtype)[..., None]
        gradient = self._growth(self._weight(log_total), log_total, difference)
        return _finite(gradient), None


def mixture(teacher: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher ‖ mixed) over the last dimension, and its gradient; `mixed` is overwritten."""
    below = mixed < SMALLEST
    ratio = torch.div(teacher, mixed.clamp_(min=SMALLEST), out=mixed)
    divergence = torch.xlogy(teacher, ratio).sum(-1)
    return divergence, ratio.neg_().masked_fill_(below, 0)
