"""Whole training steps of Dropcycle beside PyTorch + transformers, and over the product floor."""
import json
import pathlib

from bench_lib.turns import BUILD, STEP, Program, median_of, output_of, steps_within, worst_memory

PEER = pathlib.Path(__file__).resolve().parent / "peer.py"
SHAPES = ("tiny", "small", "152m")
EXPERTS = {"dense": 0, "moe": 8}
VARIANTS = {
    "dense": ("autocast", "autocast-compiled", "bf16", "bf16-compiled"),
    "moe": ("autocast", "autocast-grouped", "autocast-compiled-grouped", "bf16", "bf16-grouped",
            "bf16-compiled-grouped"),
}
TURN_SECONDS, MOST_STEPS = 20, 5


def sizes_of(shape, kind):
    """The model's sizes as bench_train_step knows them."""
    with Program([STEP, shape, EXPERTS[kind]]) as ours:
        return ours.ready


def our_turn(shape, kind):
    with Program([STEP, shape, EXPERTS[kind]]) as ours:
        first = ours.run(1)
        return ours.run(steps_within(first["seconds"][0], TURN_SECONDS, MOST_STEPS))


def result(shape, kind, sizes, own, pairs):
    """A row, of our answers and, for each of the peer's variants, (ours, theirs) that took turns."""
    tokens, seconds = sizes["batch"] * sizes["sequence"], median_of(own)
    peers = {variant: {"tokens_per_second": tokens / median_of([theirs for _, theirs in turns]),
                       "peak_bytes": worst_memory([theirs for _, theirs in turns]),
                       "ratios": [median_of([theirs]) / median_of([ours]) for ours, theirs in turns]}
             for variant, turns in pairs.items()}
    return {"shape": shape, "kind": kind, "sizes": sizes, "step_seconds": seconds,
            "tokens_per_second": tokens / seconds, "peak_bytes": worst_memory(own),
            "gflops": 1e-9 * tokens * sizes["flops_per_token"] / seconds, "peers": peers}


def compare(shape, kind, python, variants, rounds, progress, save):
    """One row: both in turns, for every variant of the peer. save(row) after each turn: a long run may be cut off."""
    sizes, own, pairs = sizes_of(shape, kind), [], {}
    for variant in variants:
        progress.next(f"{shape} {kind}: PyTorch {variant} and Dropcycle in turns")
        warm_up = 3 if "compiled" in variant else 2
        with Program([python, PEER, variant, warm_up, json.dumps(sizes)]) as peer:
            steps = steps_within(min(peer.ready["warm_up"]), TURN_SECONDS, MOST_STEPS)
            for turn in range(rounds):
                theirs = peer.run(steps)
                if turn + 1 == rounds:
                    peer.close()  # both need not fit into memory at once
                own.append(our_turn(shape, kind))
                pairs.setdefault(variant, []).append((own[-1], theirs))
                save(result(shape, kind, sizes, own, pairs))
    if not own:
        own = [our_turn(shape, kind) for _ in range(rounds)]
    return result(shape, kind, sizes, own, pairs)


def add_floor(rows, shape, kinds):
    """Measures the product floor of a shape's rows."""
    lines = output_of([BUILD / "tests" / "bench" / "product_floor", shape, *[EXPERTS[kind] for kind in kinds]])
    for kind, line in zip(kinds, lines.splitlines()):
        for row in rows:
            if (row["shape"], row["kind"]) == (shape, kind):
                row["floor_seconds"] = json.loads(line)["floor_seconds"]


def best(row, prefix=""):
    """The fastest peer whose variant starts with prefix: (variant, result), or None."""
    found = [(result["tokens_per_second"], variant) for variant, result in row["peers"].items()
             if variant.startswith(prefix)]
    return (max(found)[1], row["peers"][max(found)[1]]) if found else None


def memory_ratio(row):
    """Peak memory over the least of PyTorch's autocast variants: (ratio, theirs), or None."""
    least = min((result["peak_bytes"] for variant, result in row["peers"].items() if variant.startswith("autocast")),
                default=None)
    return (row["peak_bytes"] / least, least) if least else None


def markdown(rows):
    """A table of its own: rates, ratios, step over floor, memory."""
    yield "| model | Dropcycle | PyTorch autocast | ratio | PyTorch, best of any | ratio | step / floor | memory / autocast's |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        mine, cells = row["tokens_per_second"], []
        for found in (best(row, "autocast"), best(row)):
            cells += ([f"{found[1]['tokens_per_second']:,.0f} ({found[0]})",
                       f"{mine / found[1]['tokens_per_second']:.2f}"] if found else ["-", "-"])
        floor, held = row.get("floor_seconds"), memory_ratio(row)
        cells += [f"{row['step_seconds'] / floor:.2f}" if floor else "-",
                  f"{1e-9 * row['peak_bytes']:.2f} / {1e-9 * held[1]:.2f} GB = {held[0]:.2f}" if held else "-"]
        yield f"| {row['shape']}, {row['kind']} | {mine:,.0f} tokens/s | {' | '.join(cells)} |"


def table(rows):
    lines = [f"{'shape':<6} {'model':<6} {'Dropcycle':>10} {'autocast':>10} {'ratio':>6} {'any':>8} {'ratio':>6}"
             f" {'floor':>9} {'step/floor':>11} {'memory':>8} {'autocast':>9} {'ratio':>6}   fastest variants"]
    for row in rows:
        mine = row["tokens_per_second"]
        text = f"{row['shape']:<6} {row['kind']:<6} {mine:>8.0f}/s"
        fair, fastest = best(row, "autocast"), best(row)
        for found, width in ((fair, 8), (fastest, 6)):
            text += (f" {found[1]['tokens_per_second']:>{width}.0f}/s {mine / found[1]['tokens_per_second']:>6.2f}"
                     if found else f" {'-':>{width + 2}} {'-':>6}")
        floor = row.get("floor_seconds")
        text += f" {1e3 * floor:>6.0f} ms {row['step_seconds'] / floor:>11.2f}" if floor else f" {'-':>9} {'-':>11}"
        text += f" {1e-9 * row['peak_bytes']:>5.2f} GB"
        if fair:
            ratio, lowest = memory_ratio(row)
            text += f" {1e-9 * lowest:>6.2f} GB {ratio:>6.2f}   {fair[0]}, {fastest[0]}"
        lines.append(text)
    return "\n".join(lines)
