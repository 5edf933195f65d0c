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

from fastkd.backends.attention.precision import SMALLEST
from fastkd.backends.attention.torch.sources import Workspace

# With |a| and |m| up to this, exp(a), exp(d) and their product, summed over any map, stay within
# the normal range of float32.
EVEN = 25.0
# With a up to this besides, no small part of Z decides 1 + D + E: it keeps its digits.
MILD = 2.0


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
        near = self._log_growth() - self.mean
        return torch.where(self.log_total == -torch.inf, 0, near)

    def log_ratio(self) -> Tensor:
        """log of Σ exp(m) over Σ exp(a)."""
        return _finite(self.centre + self._log_growth())

    def _log_growth(self) -> Tensor:
        """log(1 + D + E), where D + E keeps its digits; they cancel near −1."""
        near = torch.log1p(self.mean + self.excess)
        if self.far is None:
            return near
        direct = self.far - self.log_total - self.centre
        return torch.where((near > -0.5) & (near < EVEN), near, direct)


def _finite(tensor: Tensor) -> Tensor:
    return torch.nan_to_num(tensor, nan=0.0)


class Even:
    """Groups whose a is known to be at most `MILD`, |m| at most `EVEN`: nothing needs a maximum."""

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
        mixed = self.teacher + self.difference
        log_total = _logsumexp(self.teacher)
        weight = _finite(_less(self.teacher, log_total).exp_())
        centre = (weight * self.difference).sum(-1)
        difference = self.difference - centre[..., None]
        growth = _growth(weight, _less(mixed, log_total + centre), difference)
        mean = (weight * difference).sum(-1)
        excess = (growth - weight * difference).sum(-1)
        # Cells past the clamp in _growth leave E unknown, and Σ exp(m) to take its place.
        past = mixed.amax(-1) - log_total - centre > 2 * EVEN
        excess = excess.masked_fill(past, torch.inf)
        return Sums(log_total, centre, mean, excess, _logsumexp(mixed))

    def gradient(self, sums: Sums) -> tuple[Tensor, None]:
        log_ratio = sums.log_ratio()
        weight = _finite(_less(self.teacher, sums.log_total).exp_())
        mixed = _less(self.teacher + self.difference, sums.log_total + log_ratio)
        return _finite(_growth(weight, mixed, _less(self.difference, log_ratio))), None


def _growth(weight: Tensor, mixed: Tensor, difference: Tensor) -> Tensor:
    """weight · (exp(difference) − 1), also where one underflows and the other overflows;
    mixed: log of weight · exp(difference)."""
    large = mixed.clamp_(max=2 * EVEN).exp_().sub_(weight)
    return torch.where(difference > 1, large, weight * difference.clamp(max=1).expm1_())


def _logsumexp(cells: Tensor) -> Tensor:
    """Over the last dimension, in float64: as large numbers, logarithms lose what sums have."""
    top = cells.amax(-1).nan_to_num(neginf=0.0)
    return top.double() + (cells - top[..., None]).exp_().sum(-1).log_().double()


def _less(cells: Tensor, amount: Tensor) -> Tensor:
    """cells − amount, of each group in float64; an error in it would move all cells alike, and
    what their gradients add up to."""
    high = amount.to(cells.dtype)
    rest = (amount - high).to(cells.dtype)
    return (cells - high[..., None]).sub_(rest[..., None])


def mixture(teacher: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher ‖ mixed) over the last dimension, and its gradient; `mixed` is overwritten."""
    below = mixed < SMALLEST
    ratio = torch.div(teacher, mixed.clamp_(min=SMALLEST), out=mixed)
    divergence = torch.xlogy(teacher, ratio).sum(-1)
    return divergence, ratio.neg_().masked_fill_(below, 0)
