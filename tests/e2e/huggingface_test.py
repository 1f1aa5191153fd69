"""Hugging Face folders through the binary: what the safetensors package and transformers' AutoConfig and AutoTokenizer
make of what is written, and every verb that takes a model on such a folder.

usage: huggingface_test.py DROPCYCLE
"""
import json
import pathlib
import shutil
import sys
import unittest

import numpy
import safetensors
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, MistralConfig, MixtralConfig

from fixture import Workspace

BINARY = sys.argv.pop(1)
USAGE, INPUT = 2, 3
SIZES = dict(vocab_size=320, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
             num_key_value_heads=2, max_position_embeddings=64)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
# What decides a model's numbers.
KEYS = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
        "tie_word_embeddings", "sliding_window", "num_local_experts", "num_experts_per_tok", "attention_bias", "mlp_bias",
        "bos_token_id", "eos_token_id", "pad_token_id", "dtype")


def tensor_shapes(config):
    """Name -> shape of every weight of a transformers configuration, experts one by one."""
    size, width = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or size // config.num_attention_heads
    query, key = config.num_attention_heads * head, config.num_key_value_heads * head
    shapes = {"model.embed_tokens.weight": (config.vocab_size, size), "model.norm.weight": (size,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, size)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{norm}.weight"] = (size,)
        for name, shape in (("q", (query, size)), ("k", (key, size)), ("v", (key, size)), ("o", (size, query))):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = shape
        if config.model_type == "mixtral":
            moe = prefix + "block_sparse_moe."
            shapes[moe + "gate.weight"] = (config.num_local_experts, size)
            for expert in range(config.num_local_experts):
                for name, shape in (("w1", (width, size)), ("w2", (size, width)), ("w3", (width, size))):
                    shapes[f"{moe}experts.{expert}.{name}.weight"] = shape
        else:
            for name, shape in (("gate", (width, size)), ("up", (width, size)), ("down", (size, width))):
                shapes[f"{prefix}mlp.{name}_proj.weight"] = shape
    return shapes


def weights(shape, dtype, draw):
    """Normal numbers, standard deviation 0.05 (norms: around 1); bfloat16 as its bits."""
    values = draw.normal(1.0 if len(shape) == 1 else 0.0, 0.05, shape).astype(numpy.float32)
    if dtype == "bfloat16":
        return (values.view(numpy.uint32) >> 16).astype(numpy.uint16)
    return values.astype(dtype)


def write_file(path, arrays, dtype):
    specs = {name: safetensors.TensorSpec(dtype=dtype, shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
             for name, array in arrays.items()}
    safetensors.serialize_file(specs, str(path), {"format": "pt"})


def write_model(folder, config, dtype, files=1):
    """A folder as transformers writes it, with the real safetensors package."""
    config.architectures = [{"llama": "Llama", "mistral": "Mistral", "mixtral": "Mixtral"}[config.model_type] + "ForCausalLM"]
    config.dtype = dtype
    config.save_pretrained(folder)
    draw = numpy.random.default_rng(5)
    parts = [{} for _ in range(files)]
    for number, (name, shape) in enumerate(sorted(tensor_shapes(config).items())):
        parts[number % files][name] = weights(shape, dtype, draw)
    if files == 1:
        write_file(folder / "model.safetensors", parts[0], dtype)
        return
    names = [f"model-{number + 1:05}-of-{files:05}.safetensors" for number in range(files)]
    for name, part in zip(names, parts):
        write_file(folder / name, part, dtype)
    index = {tensor: name for name, part in zip(names, parts) for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def read_model(folder):
    """Name -> (type, shape, bytes) by the safetensors package, which checks the files."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        for name, tensor in safetensors.deserialize(path.read_bytes()):
            assert name not in tensors
            tensors[name] = (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
    return tensors


class HuggingFaceTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.space = Workspace(BINARY)
        cls.path = cls.space.path
        write_model(cls.path / "llama", LlamaConfig(**SIZES, rope_parameters=LLAMA3, head_dim=6), "bfloat16", files=3)
        cls.space.train("dense.toml", "dense", "train.steps=2", "train.eval_batches=1")
        cls.space.must("export", "dense", "--output", "dense_hf")
        cls.copy_tokenizer(cls, cls.path / "llama")
        path = cls.path / "llama" / "tokenizer_config.json"  # as transformers writes a length without limit
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": int(1e30)}))

    @classmethod
    def tearDownClass(cls):
        cls.space.temporary.cleanup()

    def check_same_config(self, left, right):
        left, right = AutoConfig.from_pretrained(left), AutoConfig.from_pretrained(right)
        for key in KEYS:
            ours, theirs = getattr(left, key, None), getattr(right, key, None)
            if key == "head_dim":  # null is the same as what follows from the other sizes
                ours, theirs = ours or SIZES["hidden_size"] // 6, theirs or SIZES["hidden_size"] // 6
            self.assertEqual(ours, theirs, key)

    def test_round_trip_is_bit_for_bit(self):
        linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
        for number, (config, dtype, files) in enumerate([
                (LlamaConfig(**SIZES, rope_parameters=linear, tie_word_embeddings=True, eos_token_id=[2, 5]), "float16", 1),
                (MistralConfig(**SIZES, sliding_window=None, head_dim=8, pad_token_id=0), "float32", 2),
                (MistralConfig(**SIZES, sliding_window=40), "bfloat16", 2),
                (MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=1), "bfloat16", 2)]):
            source, checkpoint, output = (self.path / f"{kind}{number}" for kind in ("source", "checkpoint", "output"))
            write_model(source, config, dtype, files)
            self.space.must("import", source, "--output", checkpoint)
            self.assertIn("bit for bit", self.space.must("verify", checkpoint, "--parent", source).out)
            self.space.must("export", checkpoint, "--output", output, "--max-shard-size", "30KB")
            self.assertGreater(len(list(output.glob("model-0000*-of-0*.safetensors"))), 1)
            self.assertEqual(read_model(output), read_model(source))
            self.check_same_config(output, source)

    def test_keys_of_transformers_4_are_understood(self):
        old = self.path / "old_keys"
        shutil.copytree(self.path / "llama", old)
        config = json.loads((old / "config.json").read_text())
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config.update(rope_scaling=rope, torch_dtype=config.pop("dtype"))
        (old / "config.json").write_text(json.dumps(config))
        shown = [self.space.must("inspect", name).out.partition("\n\n")[2] for name in ("llama", "old_keys")]
        self.assertEqual(*shown)
        self.space.must("export", "old_keys", "--output", "again")  # a folder is a model on disk too
        self.check_same_config(self.path / "again", self.path / "llama")
        self.assertEqual(read_model(self.path / "again"), read_model(self.path / "llama"))

    def test_every_verb_takes_a_folder(self):
        self.space.must("import", "llama", "--output", "imported")
        shards = ["--valid", "text=shards/valid-*.h5", "--set", "data.sequence_length=32"]
        self.assertEqual(self.space.must("eval", "llama", *shards).out, self.space.must("eval", "imported", *shards).out)
        speech = [self.space.must("generate", name, "--prompt", "the file", "--tokens", "12", "--temperature", "0").out
                  for name in ("llama", "imported")]
        self.assertEqual(*speech)
        self.assertIn("rope_scaling", self.space.must("inspect", "llama").out)
        self.assertIn("LlamaForCausalLM", self.space.must("inspect", "llama").out)
        self.space.must("verify", "llama")
        self.space.must("upcycle", "llama", "--output", "drop", "--experts", "3", "--experts-per-token", "2", "--seed", "4")
        for parent in ("llama", "imported"):  # the same weights, so the same digest
            self.assertIn("recomputed from its parent", self.space.must("verify", "drop", "--parent", parent).out)
        self.space.must("generate", "drop", "--prompt", "the file", "--tokens", "4")  # its tokenizer went along
        damaged = self.path / "damaged"
        shutil.copytree(self.path / "llama", damaged)
        with open(next(damaged.glob("*.safetensors")), "r+b") as file:
            file.seek(-3, 2)
            byte = file.read(1)[0]
            file.seek(-3, 2)
            file.write(bytes([byte ^ 1]))
        result = self.space.run("verify", "drop", "--parent", "damaged")
        self.assertEqual(result.status, INPUT)
        self.assertIn("damaged isn't the parent", result.err)

    def copy_tokenizer(self, folder):
        for file in (self.path / "dense_hf").glob("*token*"):
            shutil.copy(file, folder / file.name)

    def test_a_window_shorter_than_the_sequence_is_refused(self):
        folder = self.path / "windowed"
        write_model(folder, MistralConfig(**SIZES, sliding_window=40), "bfloat16", files=1)
        self.copy_tokenizer(folder)
        self.space.must("import", folder, "--output", "window")
        self.space.must("upcycle", folder, "--output", "window_moe", "--experts", "2")
        whole = self.path / "unwindowed"  # nothing else is different
        shutil.copytree(folder, whole)
        config = json.loads((folder / "config.json").read_text())
        (whole / "config.json").write_text(json.dumps(config | {"sliding_window": None}))
        speak = ["--temperature", "0", "--json", "--prompt", "the file"]
        shards = ["--valid", "text=shards/valid-*.h5"]
        for name in (folder, "window", "window_moe"):
            self.assertIn("attention_window = 40", self.space.must("inspect", name).out)
            self.space.must("eval", name, *shards)
            for verb, options in (("generate", [*speak, "--tokens", "40"]),
                                  ("eval", [*shards, "--set", "data.sequence_length=41"])):
                result = self.space.run(verb, name, *options)
                self.assertEqual(result.status, USAGE, result.err)
                self.assertIn("expected at most model.attention_window (40)", result.err)
        for name in (folder, "window"):
            self.assertEqual(*(self.space.must("generate", model, *speak, "--tokens", "20").out for model in (name, whole)))
        self.space.must("export", "window_moe", "--output", "window_hf")
        self.assertEqual(AutoConfig.from_pretrained(self.path / "window_hf").sliding_window, 40)

    def test_every_end_token_stops_a_text(self):
        speak = ["--temperature", "0", "--json", "--prompt", "the file", "--tokens", "12"]
        def ids(name):
            return json.loads(self.space.must("generate", name, *speak).out)["ids"]
        folder = self.path / "ends"
        shutil.copytree(self.path / "llama", folder)
        all_ids = ids(folder)
        unused = next(i for i in range(SIZES["vocab_size"]) if i not in all_ids)
        path, key = folder / "config.json", "eos_token_id"
        config = json.loads(path.read_text())
        for end in (all_ids[0], all_ids[-1]):
            path.write_text(json.dumps(config | {key: [unused, end]}))
            self.assertEqual(ids(folder), all_ids[:all_ids.index(end)])
        (folder / "generation_config.json").write_text(json.dumps({key: unused}))  # goes before config.json
        self.assertEqual(ids(folder), all_ids)
        self.space.must("import", folder, "--output", "ended")
        self.assertEqual(ids("ended"), all_ids)

    def test_a_snapshot_of_the_hubs_cache_is_a_folder(self):
        model = self.path / "models--org--llama"
        snapshot = model / "snapshots" / "0123abcd"
        snapshot.mkdir(parents=True)
        (model / "blobs").mkdir()
        for number, file in enumerate(sorted((self.path / "llama").iterdir())):
            shutil.copy(file, model / "blobs" / f"{number:040x}")
            (snapshot / file.name).symlink_to(pathlib.Path("..", "..", "blobs", f"{number:040x}"))
        speak = ["--prompt", "the file", "--tokens", "5", "--temperature", "0"]
        self.assertEqual(*(self.space.must("generate", name, *speak).out for name in ("llama", snapshot)))
        self.space.must("import", snapshot, "--output", "of_cache")
        self.assertIn("bit for bit", self.space.must("verify", "of_cache", "--parent", "llama").out)

    def test_training_starts_from_a_folder_and_its_model_goes_back(self):
        shown = self.space.must("inspect", "llama").out
        model = "[model]" + shown.partition("[model]")[2]
        run = (self.path / "dense.toml").read_text().partition("[data]")
        (self.path / "tuned.toml").write_text(model + "".join(run[1:]))
        self.space.train("tuned.toml", "tuned", "init.method=checkpoint", "init.from=llama", "train.steps=2")
        self.space.train("tuned.toml", "mixed", "model.experts=3", "init.method=naive", "init.from=llama", "train.steps=2",
                         ranks=2)
        for run, classes, experts in (("tuned", "LlamaForCausalLM", None), ("mixed", "MixtralForCausalLM", 3)):
            self.space.must("export", run, "--output", f"{run}_hf", "--dtype", "bf16")
            config = AutoConfig.from_pretrained(self.path / f"{run}_hf")
            self.assertEqual(config.architectures, [classes])
            self.assertEqual(getattr(config, "num_local_experts", None), experts)
            self.assertEqual(config.max_position_embeddings, 64)  # of the folder that the run began with
            self.assertEqual(config.rope_parameters, LLAMA3)
            tensors = read_model(self.path / f"{run}_hf")
            self.assertEqual({name: shape for name, (_, shape, _) in tensors.items()}, tensor_shapes(config))
            self.assertEqual({dtype for dtype, _, _ in tensors.values()}, {"BF16"})
        refused = self.space.train("dense.toml", "other", "init.method=checkpoint", "init.from=llama", check=False)
        self.assertNotEqual(refused.status, 0)
        self.assertIn("init.from = llama: it has `", refused.err)

    def test_an_export_has_the_tokenizer_that_the_run_was_trained_with(self):
        tokenizer = AutoTokenizer.from_pretrained(self.path / "dense_hf")
        text = "the file reads 17 old messages.  Ünïcode 🙂\n"
        ours = self.space.must("tokenizer", "encode", "tokenizer.model", text).out.split()
        self.assertEqual(tokenizer.encode(text, add_special_tokens=False), list(map(int, ours)))
        config = AutoConfig.from_pretrained(self.path / "dense_hf")
        self.assertEqual(config.eos_token_id, tokenizer.eos_token_id)
        self.assertEqual(config.bos_token_id, tokenizer.bos_token_id)
        self.assertEqual(config.max_position_embeddings, 32)  # the run's sequence length
        generation = json.loads((self.path / "dense_hf" / "generation_config.json").read_text())
        self.assertEqual(generation["eos_token_id"], tokenizer.eos_token_id)

    def test_refusals_are_one_line_and_write_nothing(self):
        config = json.loads((self.path / "llama" / "config.json").read_text())
        for number, (change, words) in enumerate([
                ({"attention_bias": True}, "attention_bias is true"),
                ({"architectures": ["GemmaForCausalLM"]}, "architectures is [\"GemmaForCausalLM\"]"),
                ({"rope_parameters": {"rope_type": "yarn", "factor": 2}}, "rope_parameters.rope_type is \"yarn\""),
                ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
                ({"vocab_size": 321}, "tensor 'model.embed_tokens.weight' has shape [320, 24], expected [321, 24]"),
                ({"num_hidden_layers": 3}, "tensor 'model.layers.2.")]):
            folder = self.path / f"refused{number}"
            shutil.copytree(self.path / "llama", folder)
            (folder / "config.json").write_text(json.dumps(config | change))
            result = self.space.run("import", folder, "--output", "never")
            self.assertEqual(result.status, INPUT, result.err)
            self.assertEqual(len(result.err.splitlines()), 1, result.err)
            self.assertIn(words, result.err)
            self.assertFalse((self.path / "never").exists())


if __name__ == "__main__":
    unittest.main()
