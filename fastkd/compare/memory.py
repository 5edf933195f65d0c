"""Where the memory of each method's training step goes, predicted for a CPU."""

from collections.abc import Callable, Sequence

from fastkd.compare.methods import Method
from fastkd.errors import InputError
from fastkd.memory.step.fit import predicted_steps
from fastkd.memory.step.report import StepMemory
from fastkd.memory.step.training_step import teacher_config
from fastkd.memory.step.workload import workload

Steps = list[tuple[str, StepMemory]]


def steps_of(methods: Sequence[Method], progress: Callable[[int], None] | None = None) -> Steps:
    """The heaviest step of each method, by its title; without those whose teacher is not there.

    progress: called with the number of methods that were looked at since its last call

    Raises InputError where a prepared corpus is damaged.
    """
    found: Steps = []
    for method in methods:
        config = method.first.config
        work = workload(config)
        try:
            teacher, tokens = teacher_config(config), config.training.batch_tokens
            steps = predicted_steps(config, work, teacher, tokens, "cpu")
            found.append((method.title, max((m for _, m in steps), key=lambda m: m.peak)))
        except InputError:
            continue
        finally:
            if progress:
                progress(1)
    return found
