"""Layouts that cannot run: every axis and combinations of them are refused on all ranks with one line, before anything
is allocated, with the numbers and the nearest valid choices; `dropcycle plan` says the same without MPI.

usage: layouts_test.py DROPCYCLE
"""
import sys
import unittest

from fixture import WorkspaceTest

BINARY = sys.argv.pop(1)
USAGE = 2

# The test's models: H 24, F 40, L 2, Nq 6, Nkv 2, V 320, S 32, 12 sequences a step in microbatches of 1; E 3 in moe.toml.
# configuration, ranks, settings, words of the message
CASES = [
    ("dense", 4, "tensor=4", ["parallel.tensor is 4", "model.heads (6)", "choose 2"]),
    ("dense", 3, "tensor=3", ["parallel.tensor is 3", "model.kv_heads (2)", "choose 2"]),
    ("dense", 2, "tensor=2 model.intermediate_size=41", ["parallel.tensor is 2", "model.intermediate_size (41)", "choose 1"]),
    ("dense", 2, "tensor=2 data.sequence_length=33", ["parallel.tensor is 2", "data.sequence_length", "(33)", "choose 1"]),
    ("dense", 8, "tensor=4 context=2 data.sequence_length=28 model.heads=4 model.kv_heads=4",
     ["parallel.tensor is 4", "parallel.context (14)", "choose 2"]),
    ("dense", 3, "pipeline=3", ["model.layers", "2", "3"]),
    ("dense", 2, "pipeline=2 pipeline_layers=[2,1]", ["pipeline_layers", "2"]),
    ("dense", 2, "pipeline=2 schedule=interleaved virtual_stages=2", ["model.layers", "2", "4"]),
    ("dense", 2, "pipeline=2 virtual_stages=2", ["parallel.virtual_stages is 2", "interleaved"]),
    ("dense", 2, "schedule=interleaved virtual_stages=2", ["interleaved", "pipeline 1", "1f1b"]),
    ("dense", 2, "context=2 data.sequence_length=34", ["data.sequence_length is 34", "parallel.context (4)", "32 or 36"]),
    ("dense", 3, "context=3", ["data.sequence_length is 32", "(6)", "30 or 36"]),
    ("moe", 2, "expert=2", ["parallel.expert is 2", "model.experts (3)", "choose 1 or 3"]),
    ("moe", 3, "expert_tensor=3", ["parallel.expert_tensor is 3", "(40)", "choose 2 or 4"]),
    ("dense", 2, "expert=2", ["parallel.expert is 2", "expected 1", "model.experts is 0"]),
    ("dense", 2, "expert_tensor=2", ["parallel.expert_tensor is 2", "expected 1"]),
    ("moe", 4, "expert=3", ["parallel.expert = 3", "4 ranks", "the nearest is 2 or 4"]),
    ("moe", 3, "expert=3 expert_tensor=2", ["parallel.expert_tensor = 2", "3 ranks", "the nearest is 1 or 3"]),
    ("moe", 6, "tensor=2 pipeline=2", ["6 ranks", "tensor 2 * context 1 * pipeline 2 = 4", "start 4 or 8"]),
    ("moe", 4, "tensor=2 pipeline=2 context=2", ["tensor 2 * context 2 * pipeline 2", "4 ranks"]),
    ("moe", 4, "tensor=2 data=3", ["parallel.data = 3", "4 were started", "set it to 2", "start 6"]),
    ("dense", 8, "", ["train.global_batch = 12", "8 data-parallel ranks", "choose 8 or 16"]),
    ("moe", 8, "pipeline=2 train.micro_batch=4 train.global_batch=12", ["train.global_batch = 12", "4 data-parallel", "choose 16"]),
]

# Nobody's memory holds this: who allocates first says so, or is killed.
HUGE = ["model.hidden_size=983040", "model.head_size=163840", "model.intermediate_size=3932160", "model.layers=2"]


class LayoutsTest(WorkspaceTest):
    binary = BINARY

    def settings(self, text):
        return [key if key.split("=")[0].count(".") else f"parallel.{key}" for key in text.split()]

    def refusal(self, result):
        self.assertEqual(result.status, USAGE, result.err)
        lines = [line for line in result.err.splitlines() if "dropcycle: error:" in line]
        self.assertEqual(len(lines), 1, result.err)
        self.assertLess(len(lines[0]), 400)
        return lines[0]

    def plan(self, config, ranks, settings):
        words = ["plan", f"{config}.toml", "--ranks", ranks]
        for setting in settings:
            words += ["--set", setting]
        return self.space.run(*words)

    def test_refused_by_the_plan(self):
        for config, ranks, text, words in CASES:
            with self.subTest(config=config, ranks=ranks, layout=text):
                line = self.refusal(self.plan(config, ranks, self.settings(text)))
                for word in words:
                    self.assertIn(word, line)

    def test_refused_by_training(self):
        for config, ranks, text, words in CASES[::3]:
            with self.subTest(config=config, ranks=ranks, layout=text):
                settings = self.settings(text)
                line = self.refusal(self.space.train(f"{config}.toml", "refused", *settings, ranks=ranks, check=False))
                for word in words:
                    self.assertIn(word, line)
                self.assertFalse((self.space.path / "refused").exists())

    def test_before_anything_is_allocated(self):
        for config, ranks, text, words in CASES[0], CASES[5], CASES[11], CASES[18], CASES[21]:
            with self.subTest(config=config, ranks=ranks, layout=text):
                settings = self.settings(text) + HUGE
                line = self.refusal(self.space.train(f"{config}.toml", "refused", *settings, ranks=ranks, check=False))
                for word in words:
                    self.assertIn(word, line)

    def test_valid_layouts_are_planned(self):
        for config, ranks, text in (("dense", 4, "tensor=2 data.sequence_length=32"), ("dense", 2, "pipeline=2"),
                                    ("moe", 6, "tensor=2 expert=3"), ("moe", 4, "context=2 expert_tensor=2")):
            with self.subTest(layout=text):
                result = self.plan(config, ranks, self.settings(text))
                self.assertEqual(result.status, 0, result.err)
                self.assertIn("memory of the fullest rank", result.out)


if __name__ == "__main__":
    unittest.main(verbosity=2)
