"""tools/quickstart as a user types it, then again: the second run reuses everything.

usage: quickstart_test.py DROPCYCLE
"""
import pathlib
import subprocess
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def quickstart(*words):
    start = time.monotonic()
    process = subprocess.run([ROOT / "tools" / "quickstart", *words], capture_output=True, text=True)
    return process, time.monotonic() - start


class QuickstartTest(unittest.TestCase):
    def test_twice(self):
        for seconds in (1800, 60):
            process, took = quickstart()
            self.assertEqual(process.returncode, 0, process.stdout[-3000:] + process.stderr[-3000:])
            self.assertLess(took, seconds)
            for method in ("dense", "scratch", "naive", "drop"):
                self.assertIn(method, process.stdout)
            self.assertIn("What to try next", process.stdout)
            self.assertTrue((ROOT / "run" / "quickstart" / "compare.svg").stat().st_size > 10_000)


if __name__ == "__main__":
    unittest.main(argv=["quickstart_test"], verbosity=2)
