"""bench ops: every operation of a configuration with its rate and its share of a limit.

usage: bench_test.py DROPCYCLE
"""
import re
import sys
import unittest

from fixture import MODEL, Workspace

BINARY = sys.argv.pop(1)


class BenchTest(unittest.TestCase):
    def test_every_operation_has_a_rate_and_a_share(self):
        space = Workspace(BINARY)
        (space.path / "model.toml").write_text(MODEL + "experts = 3\n")
        lines = space.must("bench", "ops", "model.toml", "--set", "data.sequence_length=64").out.splitlines()
        rows = [re.fullmatch(r"(\w+).*? ([\d.]+) +([\d.]+) +([\d.]+) (GFLOP|GB)/s +(\d+)%", line)
                for line in lines[3:]]
        self.assertTrue(all(rows), lines)
        names = {row.group(1) for row in rows}
        self.assertTrue({"linear", "linear_dx", "linear_dw", "grouped_linear", "grouped_linear_dx", "grouped_linear_dw",
                         "attention", "attention_backward", "add_rms_norm", "swiglu", "route", "combine",
                         "cross_entropy", "adamw"} <= names, names)
        self.assertEqual(len({row.group(4) for row in rows if row.group(5) == "GFLOP"}), 1)
        for row in rows:
            rate, limit = float(row.group(3)), float(row.group(4))
            self.assertTrue(0.1 < limit < 1e5, row.group(0))
            share = 100 * rate / limit
            self.assertTrue(abs(share - float(row.group(6))) <= 1 + (5 + 0.05 * share) / limit, row.group(0))


if __name__ == "__main__":
    unittest.main()
