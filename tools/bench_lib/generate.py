"""`dropcycle generate` beside transformers' generate: one sequence, greedy, with the cache, of the same model."""
import json
import pathlib
import statistics
import tempfile
import time

from bench_lib.rows import row
from bench_lib.training import sizes_of
from bench_lib.turns import BINARY, BenchError, Lines, Program, output_of

PEER = pathlib.Path(__file__).resolve().parent / "peer_generate.py"
SHAPES, DTYPES, TOKENS = ("tiny", "small"), ("bfloat16", "float32"), 128
PROMPT = "The file that a process reads"


def our_seconds(model, times):
    """Seconds of each generation but the first. A prompt's line comes when its tokens are there."""
    prompts = model / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n" * (times + 1))
    seconds = []
    with Lines([BINARY, "generate", model, "--prompts", prompts, "--json", "--temperature", "0", "--tokens",
                TOKENS]) as lines:
        before = time.perf_counter()
        for line in lines:
            now = time.perf_counter()
            seconds.append(now - before)
            before = now
            if (count := len(json.loads(line)["ids"])) != TOKENS:
                raise BenchError(f"dropcycle generate ended after {count} of {TOKENS} tokens")
    return seconds[1:]


def cells(options):
    return [(shape, kind) for shape in options.shape if shape in SHAPES for kind in options.kind]


def parts(options):
    return len(cells(options))


def run(options, progress, python):
    rows = []
    for shape, kind in cells(options):
        progress.next(f"generate, {shape} {kind}")
        with tempfile.TemporaryDirectory(prefix="dropcycle-bench-") as folder:
            model = pathlib.Path(folder)
            output_of([python, PEER, "write", model, json.dumps(sizes_of(shape, kind))])
            rows.append(compare(shape, kind, model, python, options.rounds))
    return rows


def compare(shape, kind, model, python, rounds):
    ours, theirs = [], {}
    for dtype in DTYPES:
        with Program([python, PEER, dtype, model, TOKENS, PROMPT]) as peer:
            for _ in range(rounds):
                theirs.setdefault(dtype, []).extend(peer.run(1)["seconds"])
                ours += our_seconds(model, 2)
    rates = {dtype: TOKENS / statistics.median(seconds) for dtype, seconds in theirs.items()}
    mine, best = TOKENS / statistics.median(ours), max(rates, key=rates.get)
    return row(f"generate {TOKENS} tokens, one sequence, {shape} {kind}", "tokens/s", mine, f"transformers, {best}",
               rates[best], mine / rates[best], (">=", 3), "tools/bench generate", transformers=rates)
