"""The paper's arms behave: right after conversion, drop's held-out loss lies above naive's and below scratch's; the
naive model starts at its parent's loss exactly; a larger ratio starts higher.

usage: arms_test.py DROPCYCLE
"""
import json
import sys
import unittest

from fixture import Workspace

BINARY = sys.argv.pop(1)


class ArmsTest(unittest.TestCase):
    def test_order_of_the_starts(self):
        space = Workspace(BINARY)
        space.train("dense.toml", "dense", "train.steps=120", "train.global_batch=8", "train.micro_batch=8",
                    "train.eval_batches=0")

        def held_out(run, step):
            lines = map(json.loads, (space.path / run / "eval.jsonl").read_text().splitlines())
            return next(line["loss"] for line in lines if line["step"] == step)

        start = {}
        for name, settings in {"scratch": ["init.method=scratch"], "naive": ["init.method=naive"],
                               "drop_025": ["init.method=drop", "init.ratio=0.25"],
                               "drop_05": ["init.method=drop", "init.ratio=0.5"],
                               "drop_1": ["init.method=drop", "init.ratio=1"]}.items():
            space.train("moe.toml", name, *settings, "init.from=dense" if name != "scratch" else "init.from=",
                        "train.steps=1", "optimizer.warmup_steps=0", "train.eval_batches=0")
            start[name] = held_out(name, 0)
        self.assertAlmostEqual(start["naive"], held_out("dense", 120), delta=1e-5)
        ordered = ["naive", "drop_025", "drop_05", "scratch"]
        for lower, higher in zip(ordered, ordered[1:]):
            self.assertGreater(start[higher], start[lower] + 1e-3, start)
        self.assertGreater(start["drop_1"], start["drop_05"], start)


if __name__ == "__main__":
    unittest.main(verbosity=2)
