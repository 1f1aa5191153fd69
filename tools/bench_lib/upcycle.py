"""`dropcycle upcycle` of a Hugging Face Llama of the paper's 1.5B shape beside reading its bytes and writing the
output's. Both in turns; what was written is removed at once, and the input stays in the page cache of both."""
import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

from bench_lib.llama_folder import Sizes, write_model
from bench_lib.rows import medians, row
from bench_lib.turns import BINARY, BenchError, command_line

SIZES = Sizes(hidden=2048, intermediate=7168, heads=16, kv_heads=8, vocabulary=4096)
LAYERS, EXPERTS = 4, 8
COPY = 'cat "$0"/* > /dev/null && cp -r "$1" "$2" && sync "$2"/* "$2"'


def measured(command):
    """Seconds and peak resident bytes of a command."""
    os.sync()  # what was written before is no part of it
    start = time.monotonic()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise BenchError(f"{command_line(command)} ended with {process.returncode}")
    return seconds, usage.ru_maxrss * 1024


def parts(options):
    return options.rounds


def run(options, progress):
    pairs, peak = [], 0
    with tempfile.TemporaryDirectory(prefix="dropcycle-bench-", dir=options.folder) as folder:
        work = pathlib.Path(folder)
        dense, output, copy = work / "dense", work / "output", work / "copy"
        # In a process of its own: one that is started later would count this one's memory as its peak.
        with concurrent.futures.ProcessPoolExecutor(1) as executor:
            size, largest = executor.submit(write_model, dense, SIZES, LAYERS).result()
        for turn in range(options.rounds):
            progress.next(f"upcycle, turn {turn + 1}")
            ours, bytes_held = measured([BINARY, "upcycle", dense, "--output", output, "--experts", EXPERTS, "--dtype",
                                         "bf16"])
            copying, _ = measured(["sh", "-c", COPY, dense, output, copy])
            written = sum(file.stat().st_size for file in output.iterdir())
            shutil.rmtree(output)
            shutil.rmtree(copy)
            pairs.append((ours, copying))
            peak = max(peak, bytes_held)
    ours, copying = medians(pairs)
    what = f"upcycle {LAYERS} layers of 1.5B to 8 experts, {size * 1e-9:.2f} to {written * 1e-9:.2f} GB of bf16"
    return [row(what, "s", ours, "reading and writing the bytes", copying, ours / copying, ("<=", 1.3),
                "tools/bench upcycle", peak_bytes=peak, largest_tensor_bytes=largest,
                ratios=[mine / theirs for mine, theirs in pairs])]
