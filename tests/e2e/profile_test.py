"""train --profile: a trace that is JSON, with a process for each rank and spans that nest; phases that add up to the
steps; a table.

usage: profile_test.py DROPCYCLE
"""
import json
import re
import statistics
import sys
import unittest

from fixture import Workspace

BINARY = sys.argv.pop(1)
STEPS = 20


class ProfileTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.space = Workspace(BINARY)
        cls.run_ = cls.space.must("train", "moe.toml", "--profile", "--set", "train.output=run", "--set",
                                  f"train.steps={STEPS}", ranks=2)
        cls.spans = [event for event in json.loads((cls.space.path / "run" / "trace.json").read_text())["traceEvents"]
                     if event["ph"] == "X"]

    def of_rank(self, rank):
        return sorted((span for span in self.spans if span["pid"] == rank), key=lambda span: (span["ts"], -span["dur"]))

    def test_every_rank_has_its_steps(self):
        self.assertEqual({span["pid"] for span in self.spans}, {0, 1})
        for rank in (0, 1):
            steps = [span for span in self.of_rank(rank) if span["cat"] == "step"]
            self.assertEqual(len(steps), STEPS)
            self.assertTrue(all(span["ts"] >= 0 for span in self.of_rank(rank) if span["cat"] == "step"))

    def test_spans_nest(self):
        for rank in (0, 1):
            open_until = []
            for span in self.of_rank(rank):
                while open_until and open_until[-1] <= span["ts"] + 0.002:
                    open_until.pop()
                end = span["ts"] + span["dur"]
                self.assertTrue(not open_until or end <= open_until[-1] + 0.002, span)
                open_until.append(end)

    def test_phases_add_up_to_the_steps(self):
        for rank in (0, 1):
            spans, shares = self.of_rank(rank), []
            for step in (span for span in spans if span["cat"] == "step"):
                inside = [span for span in spans if span["cat"] == "phase" and span["ts"] >= step["ts"]
                          and span["ts"] + span["dur"] <= step["ts"] + step["dur"] + 0.002]
                names = {span["name"] for span in inside}
                self.assertTrue({"data", "forward", "head and loss", "backward", "gradient sums", "optimizer"} <= names,
                                names)
                shares.append(sum(span["dur"] for span in inside) / step["dur"])
            self.assertTrue(max(shares) < 1.001, shares)
            self.assertTrue(statistics.median(shares) > 0.9, shares)  # other programs may interrupt some steps

    def test_operations_and_communication(self):
        for category in ("operation", "communication", "waiting"):
            self.assertTrue(any(span["cat"] == category for span in self.spans), category)

    def test_table(self):
        lines = self.run_.err.splitlines() + self.run_.out.splitlines()
        shares = {}
        for line in lines:
            found = re.match(r"(\S.*?)\s+[\d.]+\s+([\d.]+)%", line)
            if found:
                shares[found.group(1)] = float(found.group(2))
        self.assertEqual(shares["step"], 100.0)
        phases = ("data", "count tokens", "clear gradients", "forward", "head and loss", "backward", "gradient sums",
                  "optimizer")
        self.assertTrue(90 < sum(shares[name] for name in phases) < 100.5, shares)
        parts = ("all operations", "all communication", "all waiting", "none of them")
        self.assertTrue(99.5 < sum(shares[name] for name in parts) < 100.5, shares)


if __name__ == "__main__":
    unittest.main()
