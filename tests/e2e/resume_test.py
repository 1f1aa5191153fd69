"""A run that is stopped and resumed is bitwise the run that wasn't: weights, moments, losses, data.

usage: resume_test.py DROPCYCLE
"""
import json
import signal
import sys
import time
import unittest

from fixture import Workspace

BINARY = sys.argv.pop(1)


def digests(manifest):
    """Kind, name -> digests of the slices, from a manifest."""
    found = {}

    def walk(node):
        if isinstance(node, dict):
            if "kind" in node and "name" in node and "slices" in node:
                found[node["kind"], node["name"]] = [piece["digest"] for piece in node["slices"]]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(manifest)
    return found


def without_times(metrics):
    timing = {"step_seconds", "tokens_per_second", "product_share", "seconds_left"}
    return [{key: value for key, value in line.items() if key not in timing} for line in metrics]


class ResumeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.space = Workspace(BINARY)
        cls.space.train("dense.toml", "dense")

    def assert_same_run(self, one, other, step):
        space = self.space
        name = f"step_{step:08d}"
        left, right = (digests(space.manifest(f"{run}/{name}")) for run in (one, other))
        self.assertGreater(len(left), 20)
        self.assertEqual(left, right)
        self.assertEqual(without_times(space.metrics(one)), without_times(space.metrics(other)))

    def check_interrupted(self, ranks, dtype, *more):
        settings = ["init.method=drop", "init.from=dense", "checkpoint.interval=2", "checkpoint.keep_last=9",
                    f"parallel.expert={ranks}", f"device.compute_dtype={dtype}", *more]
        whole, parts = f"whole-{ranks}-{dtype}", f"parts-{ranks}-{dtype}"
        self.space.train("moe.toml", whole, *settings, ranks=ranks)
        self.space.train("moe.toml", parts, *settings, ranks=ranks)
        for step in (4, 6):  # as if the run had died after step 3: the checkpoint of step 2 is the newest
            folder = self.space.path / parts / f"step_{step:08d}"
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        result = self.space.train("moe.toml", parts, *settings, ranks=ranks, resume=True)
        self.assertIn("step_00000002", result.err)
        self.assert_same_run(whole, parts, 6)

    def test_one_rank_float32(self):
        self.check_interrupted(1, "f32")

    def test_three_ranks_bfloat16(self):
        self.check_interrupted(3, "bf16", "train.jitter=0.1", "train.z_coefficient=0.001",
                               "data.reset_at_document_end=true")

    def test_signal_commits_and_asks_for_requeue(self):
        settings = ["train.steps=400", "optimizer.schedule=constant", "train.eval_batches=1"]
        words = ["train", "dense.toml", "--set", "train.output=signalled"]
        for setting in settings:
            words += ["--set", setting]
        process = self.space.start(*words)
        path = self.space.path / "signalled" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (path.exists() and path.read_text().count("\n") >= 3):
            self.assertIsNone(process.poll(), "the run ended before it could be stopped")
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR1)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 75, err)
        self.assertIn("--resume auto", err)
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        self.assertEqual(steps, list(range(1, len(steps) + 1)))
        self.assertLess(len(steps), 400)
        end = len(steps) + 3
        self.space.train("dense.toml", "signalled", *settings[1:], f"train.steps={end}", resume=True)
        self.space.train("dense.toml", "unsignalled", *settings[1:], f"train.steps={end}")
        self.assert_same_run("signalled", "unsignalled", end)


if __name__ == "__main__":
    unittest.main(verbosity=2)
