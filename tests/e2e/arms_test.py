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
    @classmethod
    def setUpClass(cls):
        cls.space = Workspace(BINARY)
        cls.space.train("dense.toml", "dense", "train.steps=120", "train.global_batch=8", "train.micro_batch=8",
                        "train.eval_batches=0")

    @classmethod
    def tearDownClass(cls):
        cls.space.temporary.cleanup()

    def test_the_command_and_a_run_build_the_same_model(self):
        space = self.space
        space.must("upcycle", "dense", "--output", "upcycled", "--ratio", "0.5", "--experts", "3")
        in_place = ["init.method=drop", "init.from=dense", "init.ratio=0.5"]
        space.train("moe.toml", "in_place", *in_place)
        space.train("moe.toml", "loaded", "init.method=checkpoint", "init.from=upcycled")
        space.train("moe.toml", "three_ranks", *in_place, "parallel.expert=3", ranks=3)

        def losses(run):
            return [(line["loss"], line["gradient_norm"]) for line in space.metrics(run)]

        self.assertEqual(losses("loaded"), losses("in_place"))  # bit for bit
        for one, three in zip(losses("in_place"), losses("three_ranks"), strict=True):
            for expected, found in zip(one, three):
                self.assertTrue(abs(found - expected) <= 1e-6 * expected, (expected, found))

    def test_order_of_the_starts(self):
        space = self.space

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
