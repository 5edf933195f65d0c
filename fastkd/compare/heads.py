"""The learned mix of heads by layers, over training."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fastkd.errors import InputError
from fastkd.runs.folder import RunFolder
from fastkd.tables import Table
from fastkd.train.heads import Mixes, logged_teacher_heads, read
from fastkd.train.log import read_log

_MOMENTS = 5  # of a training that a table or a picture shows


@dataclass(frozen=True)
class Mixed:
    """By update what a run's log tells of its mix, and how many heads layers have."""

    mixes: dict[int, Mixes]
    student_heads: int
    teacher_heads: int

    @classmethod
    def read(cls, run: RunFolder) -> "Mixed":
        """InputError where the log tells of none, or nothing tells the teacher's heads."""
        log = read_log(run.log_file)
        mixes = read(log)
        if not mixes:
            raise InputError(
                f"{run.log_file}: tells of no mix of heads; expected a run with a2d among its "
                "losses, trained since version 0.2"
            )
        shapes = {
            update: {kind: mix.shape for kind, mix in m.items()} for update, m in mixes.items()
        }
        last = shapes[max(shapes)]
        same = {update: mixes[update] for update in mixes if shapes[update] == last}
        teacher_heads, student_heads = heads_of(run, same[max(same)])
        return cls(same, student_heads, teacher_heads)


def heads_of(run: RunFolder, mix: Mapping[str, Tensor]) -> tuple[int, int]:
    """Heads of a layer of the teacher and of the student, which `mix` has whole layers of.

    InputError where it has not, or nothing tells the teacher's.
    """
    theirs, ours = _teacher_heads_of(run), run.config.model.heads
    if any(len(each) % theirs or each.shape[1] % ours for each in mix.values()):
        raise InputError(
            f"{run.log_file}: damaged, or of other models: the run's last mix of heads is not one "
            f"of layers of {theirs} and {ours} heads, of the teacher and the student"
        )
    return theirs, ours


def _teacher_heads_of(run: RunFolder) -> int:
    """Of a layer, by the run's log, or the teacher's folder, which older logs leave it to."""
    known = logged_teacher_heads(read_log(run.log_file))
    if known:
        return known
    teacher = run.config.teacher
    place = teacher.run if teacher else None
    try:
        if place is None:
            raise InputError("none is given")
        return RunFolder.open(place).config.model.heads
    except InputError as error:
        raise InputError(
            f"{run.config_file}: teacher.run: expected the teacher's run, whose config.yaml"
            f" tells how many heads a layer has; {error}"
        ) from None


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
