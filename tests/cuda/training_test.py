"""The program on the stand-in: device.backend = cuda trains, resumes, evaluates and speaks as the CPU backend does.

usage: training_test.py DROPCYCLE_ON_STAND_IN
"""
import json
import pathlib
import shutil
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from fixture import WorkspaceTest  # noqa: E402

BINARY = sys.argv.pop(1)
TIMES = {"step_seconds", "tokens_per_second", "product_share", "seconds_left", "bytes_sent"}
DROP = ["init.method=drop", "init.from=dense", "train.z_coefficient=0.001", "train.jitter=0.1"]


class TrainingTest(WorkspaceTest):
    binary = BINARY

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.space.train("dense.toml", "dense")
        cls.space.train("moe.toml", "cpu", *DROP)

    def train(self, name, *settings, **options):
        return self.space.train("moe.toml", name, "device.backend=cuda", *DROP, *settings, **options)

    def assert_close(self, found, expected, what):
        self.assertTrue(abs(found - expected) <= 1e-5 * abs(expected), f"{what}: {found} instead of {expected}")

    def assert_same_course(self, run, other):
        for one, two in zip(self.space.metrics(run), self.space.metrics(other), strict=True):
            for key in ("loss", "balance_loss", "z_loss", "gradient_norm"):
                self.assert_close(one[key], two[key], f"{run}, step {one['step']}, {key}")

    def test_training_is_that_of_the_cpu_and_resumes_bitwise(self):
        self.train("whole", "checkpoint.interval=2", "checkpoint.keep_last=9", "device.cuda_graphs=true")
        self.assert_same_course("whole", "cpu")
        shutil.copytree(self.space.path / "whole", self.space.path / "parts")
        for step in (4, 6):
            shutil.rmtree(self.space.path / "parts" / f"step_{step:08d}")
        result = self.train("parts", "checkpoint.interval=2", "checkpoint.keep_last=9", "device.cuda_graphs=true",
                            resume=True)
        self.assertIn("step_00000002", result.err)
        slices = [[parameter["slices"] for parameter in self.space.manifest(f"{run}/step_00000006")["parameters"]]
                  for run in ("whole", "parts")]
        self.assertGreater(len(slices[0]), 20)
        self.assertEqual(*slices)
        whole, parts = ([{key: value for key, value in line.items() if key not in TIMES}
                         for line in self.space.metrics(run)] for run in ("whole", "parts"))
        self.assertEqual(whole, parts)

    def test_three_ranks_with_experts_apart(self):
        self.train("apart", "parallel.expert=3", ranks=3)
        self.assert_same_course("apart", "cpu")

    def test_evaluation_and_text(self):
        losses = []
        for backend in ("cpu", "cuda"):
            out = self.space.must("eval", "cpu", "--set", f"device.backend={backend}").out
            losses.append(float(out.splitlines()[1].split()[1]))
        self.assert_close(losses[1], losses[0], "held-out loss")
        texts = [self.space.must("generate", "cpu", "--prompt", "the file", "--tokens", "12", "--temperature", "0",
                                 "--json", "--set", f"device.backend={backend}").out for backend in ("cpu", "cuda")]
        self.assertEqual(*[json.loads(text.splitlines()[0])["text"] for text in texts])


if __name__ == "__main__":
    unittest.main()
