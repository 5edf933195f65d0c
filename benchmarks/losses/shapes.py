"""Pictures of the divergences and of their gradients, over the student for a fixed teacher.

    python -m benchmarks.losses.shapes [--out benchmarks/results/divergences]

Of two ids with teacher probabilities q and 1 − q, the student's p against each loss and against its
derivative by the logit of the first id. Then a teacher of two bumps and, of all students that have
only one, the nearest by each divergence.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from fastkd import token_distillation_loss

SHOWN: dict[str, float | None] = {
    "kl": None,
    "reverse_kl": None,
    "jsd": 0.5,
    "skew_kl": 0.1,
    "skew_reverse_kl": 0.1,
    "tvd": None,
}
Q = 0.9
IDS = 200


def over_p(form: str, beta: float | None, q: float = Q) -> tuple[Tensor, Tensor, Tensor]:
    """p (N,) from near 0 to near 1, the loss, and its derivative by the logit of p."""
    logits = torch.linspace(-7, 7, 401, dtype=torch.float64)
    student = torch.stack([logits, torch.zeros_like(logits)], -1).requires_grad_()
    teacher = torch.tensor([q, 1 - q], dtype=torch.float64).log().expand_as(student)
    loss = _loss(student, teacher, form, beta)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    return logits.sigmoid(), loss.detach(), gradient[:, 0]


def fitted(form: str, beta: float | None) -> tuple[Tensor, Tensor]:
    """(teacher, student) (V,) probabilities: two bumps, and of all single bumps the nearest."""
    places = torch.linspace(-1, 1, IDS, dtype=torch.float64)
    teacher = 0.65 * _bump(places, -0.5, 0.12) + 0.35 * _bump(places, 0.45, 0.1)
    middles = torch.linspace(-0.9, 0.9, 91, dtype=torch.float64)
    widths = torch.linspace(-3, 0.5, 71, dtype=torch.float64).exp()
    shapes = torch.cartesian_prod(middles, widths).unsqueeze(-1)  # (N, 2, 1)
    students = -0.5 * ((places - shapes[:, 0]) / shapes[:, 1]) ** 2  # (N, V) logits
    losses = _loss(students, teacher.log().expand_as(students), form, beta)
    return teacher, students[losses.argmin()].softmax(-1)


def _bump(places: Tensor, middle: float, width: float) -> Tensor:
    return (-0.5 * ((places - middle) / width) ** 2).softmax(-1)


def _loss(student: Tensor, teacher: Tensor, form: str, beta: float | None) -> Tensor:
    return token_distillation_loss(
        student, teacher, ce_weight=0.0, kd_weight=1.0, divergence=form, beta=beta,
        reduction="none", backend="reference",
    ).loss  # fmt: skip


def draw(folder: Path) -> list[Path]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = {f: f if beta is None else f"{f}, β {beta}" for f, beta in SHOWN.items()}
    figure, (losses, gradients) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    for form, beta in SHOWN.items():
        p, loss, gradient = over_p(form, beta)
        losses.plot(p, loss, label=names[form])
        gradients.plot(p, gradient)
    for axes, title in ((losses, "loss"), (gradients, "derivative by the logit of p")):
        axes.axvline(Q, color="0.8", zorder=0)
        axes.set(xlabel=f"student p, teacher q = {Q}", title=title)
    losses.set_ylim(0, 2)
    losses.legend(fontsize="small")
    written = [folder / "over_p.png"]
    figure.savefig(written[0], dpi=110)
    figure, places = plt.subplots(
        2, 3, figsize=(8.4, 3.6), layout="constrained", sharex=True, sharey=True
    )
    for axes, (form, beta) in zip(places.flat, SHOWN.items(), strict=True):
        teacher, student = fitted(form, beta)
        axes.fill_between(range(IDS), teacher, color="0.85")
        axes.plot(student)
        axes.set_title(names[form], fontsize="medium")
        axes.set(xticks=[], yticks=[])
    written.append(folder / "fitted.png")
    figure.savefig(written[1], dpi=110)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/divergences"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print("\n".join(map(str, draw(options.out))))


if __name__ == "__main__":
    main()
