"""From the start of `dropcycle train` to the end of the first step, on text of this repository."""
import json
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

from bench_lib.rows import row
from bench_lib.training import EXPERTS
from bench_lib.turns import BINARY, ROOT, Lines, output_of

CONFIG = """
[model]
vocab_size = 16384
hidden_size = 256
intermediate_size = 1024
layers = 6
heads = 4
[data]
sequence_length = 512
tokenizer = "tokenizer.model"
[[data.train]]
name = "text"
shards = ["text-*.h5"]
weight = 1.0
[train]
output = "run"
steps = 2
log_interval = 1
"""
BATCHES = ((1, ("<=", 1.0)), (8, None))  # sequences a step, and the target in seconds


def prepare(folder):
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "include").rglob("*.hpp"))]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    output_of([BINARY, "tokenizer", "train", "--vocab-size", "1024", "--output", folder / "tokenizer.model",
               folder / "text.jsonl"])
    output_of([BINARY, "preprocess", "--tokenizer", folder / "tokenizer.model", "--source", "text", "--output",
               folder / "text", folder / "text.jsonl"])
    (folder / "tiny.toml").write_text(CONFIG)


def first_steps(folder, settings):
    """Seconds from the start to the end of the first step, and from there to the end of the second."""
    words = [word for setting in settings for word in ("--set", setting)]
    shutil.rmtree(folder / "run", ignore_errors=True)
    ends = []
    start = time.perf_counter()
    with Lines([BINARY, "train", "tiny.toml", *words], cwd=folder, stderr=subprocess.STDOUT) as lines:
        ends += [time.perf_counter() for line in lines if line.startswith("step ")]
    return ends[0] - start, ends[1] - ends[0]


def parts(options):
    return options.rounds * len(BATCHES) * len(EXPERTS)


def run(options, progress):
    rows = []
    with tempfile.TemporaryDirectory(prefix="dropcycle-bench-") as name:
        folder = pathlib.Path(name)
        prepare(folder)
        for kind, experts in EXPERTS.items():
            for batch, target in BATCHES:
                settings = [f"train.global_batch={batch}", f"train.micro_batch={batch}"]
                settings += [f"model.experts={experts}", "model.experts_per_token=2"] if experts else []
                times = []
                for turn in range(options.rounds):
                    progress.next(f"start, tiny {kind}, {batch} x 512 tokens, turn {turn + 1}")
                    times.append(first_steps(folder, settings))
                first, second = (statistics.median(column) for column in zip(*times))
                rows.append(row(f"start to the end of the first step, tiny {kind}, {batch} x 512 tokens", "s", first,
                                "the second step; target in seconds", second, first, target, "tools/bench start"))
    return rows
