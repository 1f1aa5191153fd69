"""Imported, exported and upcycled models in transformers itself: models that it saved come back with the same logits bit
for bit, and an upcycled model has the loss there that `dropcycle eval` has.

usage: huggingface_torch_test.py DROPCYCLE     (with the Python of tools/peer_venv)
"""
import json
import math
import random
import re
import sys
import unittest

import torch
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          MixtralConfig, MixtralForCausalLM)

from fixture import Workspace

BINARY = sys.argv.pop(1)
VOCAB, SEQUENCE = 320, 48
SEED = random.SystemRandom().randrange(1 << 30)


def draw_rope(draw):
    kind = draw.choice(["default", "linear", "llama3"])
    rope = {"rope_type": kind, "rope_theta": draw.choice([1e4, 5e5, 1e6])}
    if kind != "default":
        rope["factor"] = draw.choice([2.0, 8.0])
    if kind == "llama3":
        rope.update(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
    return rope


def draw_model(draw, classes):
    """A tiny random model of one of the three classes."""
    kv_heads = draw.choice([1, 2])
    heads = kv_heads * draw.choice([1, 2, 3])
    sizes = dict(vocab_size=VOCAB, hidden_size=heads * draw.choice([8, 16]), intermediate_size=draw.choice([24, 40, 64]),
                 num_hidden_layers=draw.choice([1, 2, 3]), num_attention_heads=heads, num_key_value_heads=kv_heads,
                 head_dim=draw.choice([4, 6, 16]), max_position_embeddings=256, rope_parameters=draw_rope(draw),
                 tie_word_embeddings=draw.random() < 0.5, rms_norm_eps=draw.choice([1e-5, 1e-6]))
    if classes == "mixtral":
        experts = draw.choice([2, 3, 8])
        config = MixtralConfig(**sizes, num_local_experts=experts, num_experts_per_tok=draw.randrange(1, experts + 1))
        return MixtralForCausalLM(config)
    if classes == "mistral":
        return MistralForCausalLM(MistralConfig(**sizes, sliding_window=None))
    return LlamaForCausalLM(LlamaConfig(**sizes))


def loss(model, ids):
    """Mean negative log-likelihood of every token but the first, in windows of SEQUENCE predictions."""
    total = 0.0
    with torch.no_grad():
        for first in range(0, len(ids) - 1, SEQUENCE):
            window = torch.tensor([ids[first:first + SEQUENCE + 1]])
            logits = model(window[:, :-1]).logits.double()
            total += torch.nn.functional.cross_entropy(logits[0], window[0, 1:], reduction="sum").item()
    return total / (len(ids) - 1)


class TorchTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        print(f"seed {SEED}", file=sys.stderr)
        torch.manual_seed(SEED)
        cls.draw = random.Random(SEED)
        cls.space = Workspace(BINARY)
        cls.path = cls.space.path

    @classmethod
    def tearDownClass(cls):
        cls.space.temporary.cleanup()

    def test_models_come_back_with_the_same_logits(self):
        for number in range(12):
            classes = ("llama", "mistral", "mixtral")[number % 3]
            dtype = (torch.float32, torch.bfloat16, torch.float16)[number // 3 % 3]
            model = draw_model(self.draw, classes).to(dtype)
            source, checkpoint, output = (self.path / f"{kind}{number}" for kind in ("source", "checkpoint", "output"))
            model.save_pretrained(source, max_shard_size=self.draw.choice(["10KB", "1GB"]),
                                  save_original_format=self.draw.random() < 0.5)  # of Mixtral: one by one, or fused
            with self.subTest(model=classes, dtype=dtype, config=model.config):
                self.space.must("import", source, "--output", checkpoint)
                self.space.must("export", checkpoint, "--output", output, "--max-shard-size",
                                self.draw.choice(["12KB", "5GB"]))
                before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (source, output))
                self.assertIs(type(before), type(after))
                self.assertEqual(after.dtype, dtype)
                ids = torch.randint(0, VOCAB, (2, 40))
                self.assertTrue(torch.equal(before(ids).logits, after(ids).logits))

    def eval_loss(self, model):
        out = self.space.must("eval", model, "--valid", "text=one.h5", "--set", f"data.sequence_length={SEQUENCE}", "--set",
                              "device.compute_dtype=f32", "--set", "train.eval_batches=0").out
        return float(re.search(r"^all +(\S+)", out, re.MULTILINE)[1])

    def test_an_upcycled_model_has_the_same_loss(self):
        text = "the file reads its input. a process waits for 12 pages, and the shell prints no answer. " * 5
        (self.path / "one.jsonl").write_text(json.dumps({"text": text}) + "\n")
        self.space.must("preprocess", "--tokenizer", "tokenizer.model", "--output", "one", "one.jsonl")
        (self.path / "one-00000.h5").rename(self.path / "one.h5")
        ids = [int(word) for word in self.space.must("tokenizer", "encode", "tokenizer.model", text).out.split()] + [2]
        worst = 0.0
        for number in range(6):
            parent, moe, output = (self.path / f"{kind}{number}" for kind in ("parent", "moe", "moe_hf"))
            model = draw_model(self.draw, ("llama", "mistral")[number % 2])
            model.save_pretrained(parent)
            experts = self.draw.choice([2, 3, 8])
            self.space.must("upcycle", parent, "--output", moe, "--experts", experts, "--experts-per-token",
                            self.draw.randrange(1, experts + 1), "--method", self.draw.choice(["drop", "naive", "noise"]),
                            "--seed", self.draw.randrange(1000))
            self.space.must("export", moe, "--output", output)
            mixtral = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
            self.assertIsInstance(mixtral, MixtralForCausalLM)
            for ours, theirs in ((self.eval_loss(parent), loss(model, ids)), (self.eval_loss(moe), loss(mixtral, ids)),
                                 (self.eval_loss(output), loss(mixtral, ids))):
                error = abs(ours - theirs) / theirs
                self.assertTrue(math.isfinite(error) and error <= 1e-5, (ours, theirs, model.config))
                worst = max(worst, error)
        print(f"largest relative difference of a loss: {worst:.1e}", file=sys.stderr)


if __name__ == "__main__":
    unittest.main()
