"""Training steps of Dropcycle beside others of its own: numbers of experts, and two ranks beside two threads."""
import os
import re
import statistics
from typing import NamedTuple

from bench_lib.rows import medians, row
from bench_lib.turns import STEP, Program, median_of, output_of, steps_within

MPI = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
           OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_hwloc_base_binding_policy="none")
EXPERTS = (8, 16, 64)
PER_PARAMETER = ("optimizer", "clear gradients")


class Layout(NamedTuple):
    name: str
    experts: int
    two_ranks: tuple = ()  # settings of two ranks
    both: tuple = ()       # of one rank, too
    steps_before: int = 0


# A router that has learned nothing yet gives one rank more rows than the other, which waits. Some steps of a strong
# balancing loss even them out, as training does.
EXPERT_PARALLEL = ("parallel.expert=2",)
BALANCING = ("train.balance_scope=per_layer", "train.balance_coefficient=1", "optimizer.learning_rate=3e-4")
LAYOUTS = (Layout("dp 2, dense", 0), Layout("dp 2, 8 experts", 8), Layout("ep 2, 8 experts", 8, EXPERT_PARALLEL),
           Layout("ep 2, 8 experts, router balanced", 8, EXPERT_PARALLEL, BALANCING, 13))


def token_seconds(profile):
    """Seconds of a step without the phases that go over all parameters, from a table of `--profile`."""
    found = dict(re.findall(r"^(\S.*?) {2,}([\d.]+) ", profile, re.MULTILINE))
    return 1e-3 * (float(found["step"]) - sum(float(found[phase]) for phase in PER_PARAMETER))


def experts_parts(options):
    return options.rounds * len(EXPERTS)


def experts(options, progress):
    """A step's work on tokens must not depend on how many experts share it."""
    seconds = []
    for turn in range(options.rounds):
        seconds.append([])
        for count in EXPERTS:
            progress.next(f"tiny, {count} experts, turn {turn + 1}")
            table = output_of([STEP, "tiny", count, "profile"], errors=True, input="4\n")
            seconds[-1].append(token_seconds(table))
    median = medians(seconds)
    return [row(f"tiny, {count} experts, 2 per token: step without optimizer", "ms", 1e3 * mine, "the fastest of them",
                1e3 * min(median), mine / min(median), ("<=", 1.1), "tools/bench experts")
            for count, mine in zip(EXPERTS, median)]


def launch(layout, count):
    command = [STEP, "tiny", layout.experts, *layout.both]
    if count == 1:
        return Program(command)
    return Program(["mpirun", "-n", count, *command, *layout.two_ranks, "device.threads=1", "train.micro_batch=4"],
                   env=MPI)


def turn_of(layout, count):
    """Seconds of a step, and the rows of the fullest rank's experts over those of an even router."""
    with launch(layout, count) as program:
        seconds = program.run(1 + layout.steps_before)["seconds"][-1]
        answer = program.run(steps_within(seconds, 5, 5))
        return median_of([answer]), answer["fullest_rank"]


def layouts(options):
    return [layout for layout in LAYOUTS if ("moe" if layout.experts else "dense") in options.kind]


def ranks_parts(options):
    return options.rounds * len(layouts(options))


def ranks(options, progress):
    """Two ranks of one thread beside one rank of two, the same global batch; now one first, now the other."""
    rows = []
    for layout in layouts(options):
        pairs, fullest = [], 1
        for turn in range(options.rounds):
            progress.next(f"tiny, {layout.name}, turn {turn + 1}")
            answers = {count: turn_of(layout, count) for count in ((2, 1) if turn % 2 == 0 else (1, 2))}
            (mine, fullest), (whole, _) = answers[2], answers[1]
            pairs.append((mine, whole))
        two, one = medians(pairs)
        ratios = sorted(whole / mine for mine, whole in pairs)
        share = f"; fullest rank {fullest:.2f} of its even share" if fullest > 1.005 else ""
        rows.append(row(f"tiny, 2 ranks of 1 thread, {layout.name}", "ms", 1e3 * two,
                        f"1 rank of 2 threads; median of {len(pairs)} ratios of speeds, {ratios[0]:.2f} to "
                        f"{ratios[-1]:.2f}{share}", 1e3 * one, statistics.median(ratios), (">=", 0.95),
                        "tools/bench ranks"))
    return rows
