"""Our numbers against PyTorch and transformers, live: models drawn from a seed, each compared as the committed ones are.

    live_test.py GOLDEN_PARITY_TEST [MODELS [SEED]]     without a seed one is taken from the clock and printed
"""
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main():
    binary, models, seed = (sys.argv[1:] + ["8", str(int(time.time()))][len(sys.argv) - 2:])
    print(f"seed {seed}: to repeat, {sys.argv[0]} {binary} {models} {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([ROOT / "tools" / "golden", "--random", models, "--seed", seed, "--output", folder], check=True)
        # bf16 is a matter of averages over many batches: the committed models' test.
        subprocess.run([binary, "--test-case=*float*"], env=os.environ | {"DROPCYCLE_GOLDEN": folder}, check=True)


if __name__ == "__main__":
    main()
