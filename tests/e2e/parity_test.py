"""The same run on 1, 2, 3 and 4 ranks, with every division of the experts and with pipelines: losses and gradient norms
of each step to 1e-6, and what a layout promises to itself: the same bits again, with and without overlap.

usage: parity_test.py DROPCYCLE
"""
import json
import shutil
import sys
import unittest

from fixture import WorkspaceTest

BINARY = sys.argv.pop(1)
TOLERANCE = 1e-6
TIMES = {"step_seconds", "tokens_per_second", "product_share", "seconds_left"}
# What changes with the way replicas share the optimizer.
TRAFFIC = {"bytes_sent"}


def without_times(lines):
    return [{key: value for key, value in line.items() if key not in TIMES | TRAFFIC} for line in lines]


class ParityTest(WorkspaceTest):
    binary = BINARY

    def train(self, name, config, ranks, experts_over, *settings, **options):
        self.space.train(config, name, f"parallel.expert={experts_over}", *settings, ranks=ranks, **options)
        return self.space.metrics(name)

    def held_out(self, name):
        return [json.loads(line) for line in (self.space.path / name / "eval.jsonl").read_text().splitlines()]

    def assert_close(self, expected, found, what):
        self.assertTrue(abs(found - expected) <= TOLERANCE * abs(expected), f"{what}: {found} instead of {expected}")

    def assert_parity(self, expected, found, what):
        self.assertEqual([line["step"] for line in found], [line["step"] for line in expected])
        self.assertGreaterEqual(len(found), 4)
        for one, other in zip(expected, found):
            for key in ("loss", "gradient_norm", "balance_loss"):
                if one[key] is not None:
                    self.assert_close(one[key], other[key], f"{what}, step {one['step']}, {key}")
            self.assertEqual(one["expert_load"], other["expert_load"], f"{what}, step {one['step']}")

    def assert_held_out(self, expected, found):
        for one, other in zip(self.held_out(expected), self.held_out(found)):
            self.assertEqual((one["step"], one["source"], one["tokens"]),
                             (other["step"], other["source"], other["tokens"]))
            self.assert_close(one["loss"], other["loss"], f"{found}, held-out loss after step {one['step']}")

    def check(self, name, config, layouts, *settings):
        expected = self.train(f"{name}-1", config, 1, 1, *settings)
        self.assertLess(expected[-1]["loss"], expected[0]["loss"])
        for ranks, experts_over in layouts:
            run = f"{name}-{ranks}-{experts_over}"
            self.assert_parity(expected, self.train(run, config, ranks, experts_over, *settings), run)
            self.assert_held_out(f"{name}-1", run)

    def test_dense(self):
        self.check("dense", "dense.toml", [(2, 1), (3, 1), (4, 1)])

    def test_twelve_experts(self):
        self.check("twelve", "moe.toml", [(2, 1), (2, 2), (3, 3), (4, 2), (4, 4)], "model.experts=12")

    def test_three_experts_all_chosen(self):
        self.check("three", "moe.toml", [(3, 1), (3, 3)], "model.experts_per_token=3", "train.balance_scope=per_layer")

    def test_context(self):
        for name, config, layouts, settings in (
                ("context-dense", "dense.toml", [(2, 1, 2), (4, 1, 2), (4, 1, 4)], ()),
                ("context-moe", "moe.toml", [(2, 2, 2), (4, 4, 2)],
                 ("model.experts=4", "train.jitter=0.1", "train.z_coefficient=1e-3", "train.recompute=full",
                  "data.reset_at_document_end=true"))):
            expected = self.train(f"{name}-1", config, 1, 1, *settings)
            for ranks, experts_over, context in layouts:
                run = f"{name}-{ranks}-{experts_over}-{context}"
                found = self.train(run, config, ranks, experts_over, f"parallel.context={context}", *settings)
                self.assert_parity(expected, found, run)
                self.assert_held_out(f"{name}-1", run)

    def check_pipelines(self, name, config, layouts, *settings):
        """Layouts: (ranks, settings of each)."""
        expected = self.train(f"{name}-1", config, 1, 1, *settings)
        for number, (ranks, *layout) in enumerate(layouts):
            run = f"{name}-pp-{number}"
            found = self.train(run, config, ranks, 1, *settings, *[f"parallel.{setting}" for setting in layout])
            self.assert_parity(expected, found, run)
            self.assert_held_out(f"{name}-1", run)

    def test_pipelines(self):
        self.check_pipelines("moe", "moe.toml", [(2, "pipeline=2", "schedule=interleaved", "virtual_stages=2"),
                                                 (4, "pipeline=2", "expert=2"),
                                                 (3, "pipeline=3", "pipeline_layers=[1,2,1]")],
                             "model.layers=4", "model.experts=4", "train.steps=4")
        self.check_pipelines("tied", "dense.toml", [(2, "pipeline=2", "schedule=gpipe"), (4, "pipeline=2")],
                             "model.layers=4", "model.tie_embeddings=true", "train.steps=4")

    def test_a_pipeline_evaluates_and_speaks_as_one_rank(self):
        self.train("spoken", "moe.toml", 1, 1, "model.layers=4", "model.tie_embeddings=true")
        layouts = [(1, ()), (2, ("parallel.pipeline=2",)),
                   (2, ("parallel.pipeline=2", "parallel.schedule=interleaved", "parallel.virtual_stages=2")),
                   (4, ("parallel.pipeline=4",))]
        losses, texts = [], []
        for ranks, settings in layouts:
            words = [word for setting in settings for word in ("--set", setting)]
            losses.append(float(self.space.must("eval", "spoken", *words, ranks=ranks).out.split()[5]))
            texts.append(self.space.must("generate", "spoken", "--prompt", "the file", "--temperature", "0", "--tokens",
                                         "8", *words, ranks=ranks).out)
        self.assertEqual(texts, texts[:1] * len(layouts))
        self.assertEqual(losses, losses[:1] * len(layouts))
        self.assertGreater(losses[0], 1)

    def test_bytes_are_counted_and_printed_beside_the_formula(self):
        result = self.space.train("dense.toml", "counted", "parallel.context=2", "train.steps=2", ranks=4)
        rows = [line.split()[-5:] for line in result.err.splitlines() if "reduce_scatter" in line or "all_gather" in line]
        self.assertEqual({row[0] for row in rows}, {"cp", "stage", "dense_gradient"})
        for group, ranks, collective, counted, formula in rows:
            self.assertEqual(int(counted), int(formula), f"{group}, {collective}")
            self.assertGreater(int(counted), 0)
        for line in self.space.metrics("counted"):
            total = sum(int(row[3]) for row in rows)
            self.assertTrue(abs(sum(line["bytes_sent"].values()) - total) <= len(rows), line["bytes_sent"])

    def test_tensor(self):
        for name, config, layouts, settings in (
                ("tensor-dense", "dense.toml", [(2, 1, "tensor=2"), (4, 1, "tensor=2")],
                 ("model.kv_heads=1", "model.tie_embeddings=true", "model.vocab_size=321")),
                ("tensor-moe", "moe.toml", [(2, 2, "tensor=2"), (4, 2, "tensor=2", "expert_tensor=2"),
                                            (2, 1, "expert_tensor=2"), (4, 4, "tensor=2", "context=2"),
                                            (4, 1, "tensor=2", "pipeline=2")],
                 ("model.experts=4", "train.jitter=0.1", "train.z_coefficient=1e-3", "train.recompute=full",
                  "data.reset_at_document_end=true"))):
            expected = self.train(f"{name}-1", config, 1, 1, *settings)
            for ranks, experts_over, *layout in layouts:
                run = f"{name}-{ranks}-{experts_over}-{len(layout)}-{layout[-1]}"
                found = self.train(run, config, ranks, experts_over, *[f"parallel.{setting}" for setting in layout],
                                   *settings)
                self.assert_parity(expected, found, run)
                self.assert_held_out(f"{name}-1", run)

    def test_a_rank_whose_experts_get_no_token(self):
        # One token a rank, one expert a token: four tokens seldom reach the experts of all four ranks.
        settings = ("model.experts=12", "model.experts_per_token=1", "data.sequence_length=1", "train.global_batch=4",
                    "train.steps=4", "optimizer.learning_rate=1e-3")
        expected = self.train("starved-1", "moe.toml", 1, 1, *settings)
        found = self.train("starved-4-4", "moe.toml", 4, 4, *settings)
        self.assert_parity(expected, found, "starved")
        starved = [line["step"] for line in found for load in line["expert_load"]
                   for rank in range(4) if sum(load[3 * rank:3 * rank + 3]) == 0]
        self.assertTrue(starved)

    def test_the_same_layout_gives_the_same_bits(self):
        variants = (("true", "true", "true"), ("false", "true", "false"), ("true", "false", "true"))
        for layout, compared in (((), variants), (("parallel.pipeline=2",), variants[1:2])):
            settings = ("model.experts=4", "parallel.bucket_bytes=20000", *layout)
            first = self.train(f"again-{len(layout)}", "moe.toml", 4, 2, *settings)
            for number, (gradients, shard, weights) in enumerate(compared):
                again = self.train(f"again-{len(layout)}-{number}", "moe.toml", 4, 2, *settings,
                                   f"parallel.overlap_gradients={gradients}", f"parallel.shard_optimizer={shard}",
                                   f"parallel.overlap_weights={weights}")
                self.assertEqual(without_times(first), without_times(again))

    def test_a_checkpoint_goes_on_under_another_layout(self):
        settings = ("model.experts=12", "checkpoint.interval=3", "checkpoint.keep_last=9")
        expected = self.train("moved", "moe.toml", 4, 4, *settings)
        shutil.rmtree(self.space.path / "moved" / "step_00000006")  # the checkpoint of step 3 is the newest
        for ranks, experts_over, *layout in ((1, 1), (3, 3), (4, 1), (2, 1, "pipeline=2"),
                                             (4, 2, "pipeline=2", "shard_optimizer=false"), (4, 4, "tensor=2"),
                                             (4, 1, "tensor=2", "expert_tensor=2")):
            name = "-".join(map(str, ("moved", ranks, experts_over, *layout)))
            shutil.copytree(self.space.path / "moved", self.space.path / name)
            found = self.train(name, "moe.toml", ranks, experts_over, *settings,
                               *[f"parallel.{setting}" for setting in layout], resume=True)
            self.assert_parity(expected, found, name)

    def test_upcycling_under_any_layout_gives_the_same_weights(self):
        self.train("parent", "dense.toml", 1, 1)
        settings = ("model.experts=4", "init.method=drop", "init.ratio=0.5", "init.from=parent", "train.steps=1",
                    "optimizer.learning_rate=0", "optimizer.min_learning_rate=0", "optimizer.warmup_steps=0")
        layouts = ((1, 1, ()), (4, 2, ("parallel.tensor=2", "parallel.expert_tensor=2")),
                   (4, 2, ("parallel.tensor=2", "parallel.pipeline=2")))
        exported = []
        for number, (ranks, experts_over, layout) in enumerate(layouts):
            self.train(f"child-{number}", "moe.toml", ranks, experts_over, *settings, *layout)
            self.space.must("export", f"child-{number}", "--output", f"exported-{number}")
            exported.append({path.name: path.read_bytes()
                             for path in (self.space.path / f"exported-{number}").glob("*.safetensors")})
        self.assertTrue(exported[0])
        for other in exported[1:]:
            self.assertEqual(list(other), list(exported[0]))
            self.assertTrue(other == exported[0], "upcycled weights differ")

    def test_a_checkpoint_of_a_pipeline_goes_on_without(self):
        settings = ("model.layers=4", "model.tie_embeddings=true", "checkpoint.interval=3", "checkpoint.keep_last=9")
        expected = self.train("staged", "dense.toml", 2, 1, "parallel.pipeline=2", "parallel.schedule=interleaved",
                              "parallel.virtual_stages=2", *settings)
        names = [parameter["name"] for parameter in self.space.manifest("staged/step_00000006")["parameters"]
                 if parameter["kind"] == "weight"]
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual(names.count("embedding"), 1)
        shutil.rmtree(self.space.path / "staged" / "step_00000006")
        for ranks, layout in ((1, ()), (2, ("parallel.pipeline=2",)), (4, ("parallel.pipeline=4",))):
            name = f"staged-{ranks}-{len(layout)}"
            shutil.copytree(self.space.path / "staged", self.space.path / name)
            found = self.train(name, "dense.toml", ranks, 1, *settings, *layout, resume=True)
            self.assert_parity(expected, found, name)

if __name__ == "__main__":
    unittest.main(verbosity=2)
