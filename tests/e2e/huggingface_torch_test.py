"""Imported, exported and upcycled models in transformers itself: models that it saved come back with the same logits bit
for bit, dense, Mixtral and upcycled models have the loss there that `dropcycle eval` has, and models that learned a
little go on with a prompt by the same tokens.

usage: huggingface_torch_test.py DROPCYCLE     (with the Python of tools/peer_venv)
"""
import json
import math
import random
import re
import sys
import unittest

import tokenizers
import torch
from transformers import (AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast, logging)

from fixture import Workspace

BINARY = sys.argv.pop(1)
VOCAB, SEQUENCE = 320, 48
PROMPTS, NEW_TOKENS, CLEAR = 20, 64, 1e-4
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


def make_tokenizer(folder, texts):
    """A byte-level BPE tokenizer with VOCAB tokens, which transformers and Dropcycle read from the folder."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def teach(model, ids, steps=80):
    """Some steps of AdamW on windows of the tokens, so that the next token is no coin toss. Returns the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        windows = torch.stack([ids[first:first + SEQUENCE] for first in torch.randint(0, len(ids) - SEQUENCE, (8,))])
        value = model(windows, labels=windows).loss
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    return value.item()


def greedy(model, prompt):
    """The new tokens, and the smallest distance between the largest logit and the next one."""
    out = model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True,
                         return_dict_in_generate=True)
    best = torch.stack(out.logits)[:, 0].topk(2).values
    return out.sequences[0, len(prompt):].tolist(), (best[:, 0] - best[:, 1]).min().item()


class TorchTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        print(f"seed {SEED}", file=sys.stderr)
        torch.manual_seed(SEED)
        torch.set_num_threads(1)
        logging.disable_progress_bar()
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

    def eval_loss(self, model, shards="one.h5"):
        out = self.space.must("eval", model, "--valid", f"text={shards}", "--set", f"data.sequence_length={SEQUENCE}",
                              "--set", "device.compute_dtype=f32", "--set", "train.eval_batches=0").out
        return float(re.search(r"^all +(\S+)", out, re.MULTILINE)[1])

    def check_loss(self, ours, theirs, about):
        error = abs(ours - theirs) / theirs
        self.assertTrue(math.isfinite(error) and error <= 1e-5, (ours, theirs, about))
        return error

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
                worst = max(worst, self.check_loss(ours, theirs, model.config))
        print(f"largest relative difference of a loss: {worst:.1e}", file=sys.stderr)

    def taught(self):
        """Name -> folder of a dense Llama, a Mistral and a Mixtral model that transformers trained, with a tokenizer."""
        texts = [json.loads(line)["text"] for line in (self.path / "train.jsonl").read_text().splitlines()]
        sizes = dict(vocab_size=VOCAB, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1)
        models = {"llama": LlamaForCausalLM(LlamaConfig(**sizes)),
                  "mistral": MistralForCausalLM(MistralConfig(**sizes, sliding_window=None, head_dim=16)),
                  "mixtral": MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2,
                                                              sliding_window=None))}
        for name, model in models.items():
            folder = self.path / f"taught_{name}"
            make_tokenizer(folder, texts)
            ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(" ".join(texts)).input_ids)
            value = teach(model, ids)
            print(f"{name}: loss {value:.3f} of {math.log(VOCAB):.3f}", file=sys.stderr)
            self.assertLess(value, 0.7 * math.log(VOCAB))
            model.save_pretrained(folder)
        return {name: self.path / f"taught_{name}" for name in models}

    def train_upcycled(self, dense):
        """The dense model upcycled, trained some steps by Dropcycle, and exported."""
        model = "[model]" + self.space.must("inspect", dense).out.partition("[model]")[2]
        run = (self.path / "dense.toml").read_text().partition("[data]")
        text = (model + "".join(run[1:])).replace("shards/", "drop/").replace("tokenizer.model", str(dense))
        (self.path / "drop.toml").write_text(text)
        for split in ("train", "valid"):
            self.space.must("preprocess", "--tokenizer", dense, "--output", f"drop/{split}", f"{split}.jsonl")
        self.space.train("drop.toml", "drop/run", "model.experts=4", "init.method=drop", f"init.from={dense}",
                         "train.steps=10")
        self.space.must("export", "drop/run", "--output", "drop/hf")
        return self.path / "drop" / "hf"

    def draw_prompts(self, model, tokenizer):
        """Prompts, the tokens that transformers goes on with, and the least margin of a logit."""
        lines = [json.loads(line)["text"] for line in (self.path / "valid.jsonl").read_text().splitlines()]
        prompts, tokens, margin = [], [], math.inf
        while len(prompts) < PROMPTS:
            prompt = self.draw.choice(lines)[:self.draw.randrange(1, 60)].rstrip()
            ids, distance = greedy(model, tokenizer(prompt).input_ids)
            if distance >= CLEAR and len(ids) == NEW_TOKENS:  # else rounding decides, or the text ends
                prompts, tokens, margin = prompts + [prompt], tokens + [ids], min(margin, distance)
        return prompts, tokens, margin

    def check_greedy(self, ours, tokenizer, prompts, tokens):
        (self.path / "prompts.txt").write_text("\n".join(prompts) + "\n")
        out = self.space.must("generate", ours, "--prompts", "prompts.txt", "--json", "--temperature", "0", "--tokens",
                              NEW_TOKENS, "--set", "device.compute_dtype=f32").out
        spoken = [json.loads(line) for line in out.splitlines()]
        self.assertEqual([line["prompt"] for line in spoken], prompts)
        self.assertEqual([line["prompt_ids"] for line in spoken], tokenizer(prompts).input_ids)
        self.assertEqual([line["ids"] for line in spoken], tokens)
        self.assertEqual([line["text"] for line in spoken], tokenizer.batch_decode(tokens))

    def test_taught_models_have_the_same_loss_and_greedy_tokens(self):
        models = {}  # the folder that transformers loads -> our checkpoint of it
        for name, folder in self.taught().items():
            models[folder] = self.path / f"checkpoint_{name}"
            self.space.must("import", folder, "--output", models[folder])
        exported = self.train_upcycled(self.path / "taught_llama")
        models[exported] = self.path / "drop" / "run"
        documents = [json.loads(line)["text"] for line in (self.path / "valid.jsonl").read_text().splitlines()]
        for folder, checkpoint in models.items():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            held = f"held_{checkpoint.name}"
            self.space.must("preprocess", "--tokenizer", folder, "--output", held, "valid.jsonl")
            theirs = loss(model, [token for text in documents
                                  for token in tokenizer(text).input_ids + [tokenizer.eos_token_id]])
            prompts, tokens, margin = self.draw_prompts(model, tokenizer)
            for ours in (folder, checkpoint):
                error = self.check_loss(self.eval_loss(ours, f"{held}-*.h5"), theirs, ours)
                self.check_greedy(ours, tokenizer, prompts, tokens)
            print(f"{folder.name}: loss {theirs:.4f}, relative difference {error:.1e}; {PROMPTS} prompts, {NEW_TOKENS} "
                  f"tokens each, least margin of a logit {margin:.1e}", file=sys.stderr)


if __name__ == "__main__":
    unittest.main()
