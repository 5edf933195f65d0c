"""The learned mix of heads by layers, over training."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from fastkd.tables import Table

_MOMENTS = 5  # of a training that a table or a picture shows


def moments(updates: Iterable[int]) -> list[int]:
    """The first, the last and some between them, in order."""
    ordered = sorted(updates)
    places = {round(n * (len(ordered) - 1) / (_MOMENTS - 1)) for n in range(_MOMENTS)}
    return [ordered[place] for place in sorted(places)]


def by_layers(mix: Tensor, student_heads: int, teacher_heads: int) -> Tensor:
    """Shares of a mix (teacher maps, student maps): (teacher layers, student layers), rows of 1."""
    shares = mix.double() / mix.double().sum(1, keepdim=True)
    teacher_layers, student_layers = (
        maps // heads for maps, heads in zip(mix.shape, (teacher_heads, student_heads), strict=True)
    )
    layers = shares.view(teacher_layers, teacher_heads, student_layers, student_heads)
    return layers.mean(1).sum(2)


def table_of(
    mixes: Mapping[int, Mapping[str, Tensor]], student_heads: int, teacher_heads: int
) -> Table:
    """A line a teacher layer, a column a moment; its shares of the student's layers in a cell."""
    updates = moments(mixes)
    lines = []
    for kind in mixes[updates[-1]]:
        at = {
            update: by_layers(mixes[update][kind], student_heads, teacher_heads)
            for update in updates
            if kind in mixes[update]
        }
        for layer in range(len(at[updates[-1]])):
            cells = [_shares(at[update][layer]) if update in at else "" for update in updates]
            lines.append([f"{kind} {layer + 1}", *cells])
    remark = (
        "percent that each layer of the student has of what a layer of the teacher is held against"
    )
    header = ["teacher's layer", *(f"{update:,}" for update in updates)]
    return Table("mix of heads by update", header, lines, [remark])


def _shares(row: Tensor) -> str:
    return " ".join(f"{100 * share:.0f}" for share in row.tolist())
