"""Made-up dense Llamas in Hugging Face's format, in bf16, for the benchmarks of files."""
import dataclasses
import json
import os
import struct

ELEMENT = 2  # bf16
SHARD_BYTES = 2 << 30
SIGNS_AND_EXPONENT = bytes(byte & 0x80 | 0x3c for byte in range(256))


@dataclasses.dataclass(frozen=True)
class Sizes:
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int

    def tensors(self, layers):
        """Names and shapes, in the model's order."""
        kv_width = self.hidden // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "input_layernorm.weight", (self.hidden,)
            for name, rows in (("q", self.hidden), ("k", kv_width), ("v", kv_width), ("o", self.hidden)):
                yield prefix + f"self_attn.{name}_proj.weight", (rows, self.hidden)
            yield prefix + "post_attention_layernorm.weight", (self.hidden,)
            wide, narrow = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
            for name, shape in (("gate", wide), ("up", wide), ("down", narrow)):
                yield prefix + f"mlp.{name}_proj.weight", shape
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    def layers_of(self, gibibytes):
        """Layers of the smallest model of at least so many bytes."""
        layer = sum(size_of(shape) for name, shape in self.tensors(1) if ".layers." in name)
        ends = sum(size_of(shape) for _, shape in self.tensors(0))
        return max(1, -int(-(gibibytes * (1 << 30) - ends) // layer))


def size_of(shape):
    size = ELEMENT
    for extent in shape:
        size *= extent
    return size


def noise_of(count):
    """Finite bf16 numbers of about 0.01, either sign."""
    noise = bytearray(os.urandom(count))
    noise[1::2] = noise[1::2].translate(SIGNS_AND_EXPONENT)
    return bytes(noise)


def write_file(path, entries):
    header, position = {}, 0
    for name, shape in entries:
        size = size_of(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    noise = noise_of(32 << 20)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while position > 0:
            file.write(noise[:position])
            position -= min(position, len(noise))
        os.fsync(file.fileno())


def write_model(folder, sizes, layers):
    """The model in files of at most SHARD_BYTES; the bytes of all of it and of its largest tensor."""
    files, filled = [[]], 0
    for entry in sizes.tensors(layers):
        if filled + size_of(entry[1]) > SHARD_BYTES and files[-1]:
            files.append([])
            filled = 0
        files[-1].append(entry)
        filled += size_of(entry[1])
    folder.mkdir()
    index = {}
    for number, entries in enumerate(files):
        name = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        write_file(folder / name, entries)
        index.update({tensor: name for tensor, _ in entries})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden, "intermediate_size": sizes.intermediate, "num_hidden_layers": layers,
        "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.hidden // sizes.heads, "max_position_embeddings": 8192, "rope_theta": 500000.0}))
    every = [size_of(shape) for _, shape in sizes.tensors(layers)]
    return sum(every), max(every)
