"""Attention, forward and backward, over its own matrix products."""
import json

from bench_lib.rows import medians, row
from bench_lib.turns import BUILD, output_of

SHAPES = ((4, 8, 1024, 64), (1, 8, 4096, 64))  # B, heads, S, D


def parts(options):
    return options.rounds * len(SHAPES)


def run(options, progress):
    rows = []
    for shape in SHAPES:
        pairs = []
        for turn in range(options.rounds):
            progress.next(f"attention, S = {shape[2]}, turn {turn + 1}")
            result = json.loads(output_of([BUILD / "tests" / "bench" / "product_floor", "attention", *shape]))
            pairs.append((result["dropcycle_seconds"], result["floor_seconds"]))
        ours, floor = medians(pairs)
        rows.append(row("attention forward + backward, B {} heads {} S {} D {}".format(*shape), "ms", 1e3 * ours,
                        "its products alone", 1e3 * floor, ours / floor, ("<=", 1.6), "tools/bench attention"))
    return rows
