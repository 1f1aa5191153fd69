"""tools/gpu-check without a driver: a line for each missing thing and exit status 2. With a program and a shard maker as
arguments: its benchmark of a tiny model with them.

usage: gpu_check_test.py [PROGRAM PARITY_LAYOUTS]
"""
import pathlib
import re
import subprocess
import sys
import unittest

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools" / "gpu-check"
PROGRAMS = [sys.argv.pop(1) for _ in sys.argv[1:]]


class WithoutDriver(unittest.TestCase):
    def test_says_what_is_missing(self):
        done = subprocess.run([sys.executable, TOOL], env={"PATH": "/nowhere"}, capture_output=True, text=True)
        self.assertEqual(done.returncode, 2)
        lines = done.stderr.splitlines()
        self.assertGreaterEqual(len(lines), 2)
        self.assertTrue(lines[0].startswith("gpu-check: no NVIDIA driver: "), lines)
        self.assertTrue(lines[1].startswith("gpu-check: no GPU: "), lines)
        self.assertEqual(done.stdout, "")


class Benchmark(unittest.TestCase):
    def test_benchmark(self):
        done = subprocess.run([sys.executable, TOOL, "--gpus", "2", "--tiny", *PROGRAMS], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        row = re.search(r"^tiny +2 +2 +([\d.]+) ms +(\d+) +[\d.]+% +[\d.]+% +([\d.]+)% +([\d.]+)x$", done.stdout,
                        re.MULTILINE)
        self.assertTrue(row, done.stdout)
        self.assertGreater(float(row[1]), 0)
        self.assertGreater(int(row[2]), 0)


if __name__ == "__main__":
    unittest.main(defaultTest="Benchmark" if PROGRAMS else "WithoutDriver")
