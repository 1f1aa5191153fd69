"""Training steps of Dropcycle beside others of its own: numbers of experts, and two ranks beside two threads."""
import os
import re

from bench_lib.rows import medians, row
from bench_lib.turns import STEP, Program, median_of, output_of, steps_within

MPI = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
           OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_hwloc_base_binding_policy="none")
EXPERTS = (8, 16, 64)
PER_PARAMETER = ("optimizer", "clear gradients")
LAYOUTS = (("dp 2, dense", 0, ()), ("dp 2, 8 experts", 8, ()), ("ep 2, 8 experts", 8, ("parallel.expert=2",)))


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


def launch(experts_count, settings, ranks):
    command = [STEP, "tiny", experts_count, *settings]
    if ranks == 1:
        return Program(command)
    return Program(["mpirun", "-n", ranks, *command, "device.threads=1", "train.micro_batch=4"], env=MPI)


def turn_of(experts_count, settings, ranks):
    """Seconds of a step, and the rows of the fullest rank's experts over those of an even router."""
    with launch(experts_count, settings, ranks) as program:
        seconds = program.run(1)["seconds"][0]
        answer = program.run(steps_within(seconds, 5, 5))
        return median_of([answer]), answer["fullest_rank"]


def layouts(options):
    return [layout for layout in LAYOUTS if ("moe" if layout[1] else "dense") in options.kind]


def ranks_parts(options):
    return options.rounds * len(layouts(options))


def ranks(options, progress):
    """Two ranks of one thread beside one rank of two, the same global batch."""
    rows = []
    for name, count, settings in layouts(options):
        pairs, fullest = [], 1
        for turn in range(options.rounds):
            progress.next(f"tiny, {name}, turn {turn + 1}")
            (mine, fullest), (whole, _) = turn_of(count, settings, 2), turn_of(count, (), 1)
            pairs.append((mine, whole))
        two, one = medians(pairs)
        share = f", fullest rank {fullest:.2f} of its share" if fullest > 1.005 else ""
        rows.append(row(f"tiny, 2 ranks of 1 thread, {name}{share}", "ms", 1e3 * two,
                        "1 rank of 2 threads; ratio of speeds", 1e3 * one, one / two, (">=", 0.95),
                        "tools/bench ranks"))
    return rows
