"""The tokenizers that Dropcycle reads, family by family: trained with the `tokenizers` library on any text, configured
as the models of that name are."""
import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# Of GPT-4o: categories of letters and marks.
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + CONTRACTIONS +
         r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTIONS +
         r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def special(*contents):
    return [AddedToken(content, special=True, normalized=False) for content in contents]


def byte_level(texts, vocab_size, splits, tokens, normalizer=None, ignore_merges=False, post=None):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = splits
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(tokens)
    tokenizer.post_processor = post or processors.ByteLevel(trim_offsets=False)
    return tokenizer


def gpt2(texts, vocab_size):
    return byte_level(texts, vocab_size, pre_tokenizers.ByteLevel(add_prefix_space=False), special("<|endoftext|>"))


def gpt2_with_prefix(texts, vocab_size):
    tokenizer = byte_level(texts, vocab_size, pre_tokenizers.ByteLevel(add_prefix_space=True), [])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True, normalized=False),
                                  AddedToken("<sep>", rstrip=True, lstrip=True, special=True, normalized=False)])
    return tokenizer


def split_and_bytes(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def llama3(texts, vocab_size):
    tokens = special("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>",
                     *(f"<|reserved_special_token_{i}|>" for i in range(20)))
    tokenizer = byte_level(texts, vocab_size, split_and_bytes(LLAMA3), tokens, ignore_merges=True)
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing("<|begin_of_text|> $A", "<|begin_of_text|> $A <|begin_of_text|> $B",
                                      [("<|begin_of_text|>", begin)])])
    return tokenizer


def smollm2(texts, vocab_size):
    splits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                      pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return byte_level(texts, vocab_size, splits, special("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"))


def qwen2(texts, vocab_size):
    tokenizer = byte_level(texts, vocab_size, split_and_bytes(QWEN2), special("<|endoftext|>", "<|im_start|>"),
                           normalizer=normalizers.NFC())
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("caf\u00e9\u0301x", normalized=True),
                          AddedToken("    ", normalized=True)])
    return tokenizer


def gpt4o(texts, vocab_size):
    return byte_level(texts, vocab_size, split_and_bytes(O200K), special("<|endoftext|>", "<|endofprompt|>"))


def sentencepiece_style(texts, vocab_size, tokens, **fields):
    """Vocabulary as SentencePiece orders it: control pieces, 256 bytes, then merged pieces and characters."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size - 259, show_progress=False,
                                                           limit_alphabet=vocab_size // 3))
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    for size in (1, 2, 4, 8):  # runs of spaces, as Llama 2 has them
        merges.append(("\u2581" * size, "\u2581" * size))
    merges.append(("\u2581\u2581", "\u2581"))
    pieces = dict.fromkeys(["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + tokens +
                           list(model["vocab"]) + [left + right for left, right in merges])
    added = [{"id": index, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True}
             for index, content in enumerate(pieces) if content in ("<unk>", "<s>", "</s>", *tokens)]
    return Tokenizer.from_str(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": {
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                     {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": {piece: index for index, piece in enumerate(pieces)},
                  "merges": [f"{left} {right}" for left, right in merges]},
        "normalizer": None, "pre_tokenizer": None, **fields}))


def llama2(texts, vocab_size):
    return sentencepiece_style(texts, vocab_size, [], normalizer={"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]})


def mistral(texts, vocab_size):
    return sentencepiece_style(texts, vocab_size, ["[INST]", "[/INST]", "[TOOL_CALLS]"], pre_tokenizer={
        "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False})


def mistral_split(texts, vocab_size):
    return sentencepiece_style(texts, vocab_size, ["[INST]"], decoder={"type": "Metaspace", "replacement": "\u2581",
                                                                       "prepend_scheme": "always", "split": True},
                               pre_tokenizer={"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": True})


FAMILIES = {"gpt2": gpt2, "gpt2-prefix": gpt2_with_prefix, "llama3": llama3, "smollm2": smollm2, "qwen2": qwen2,
            "gpt4o": gpt4o, "llama2": llama2, "mistral": mistral, "mistral-split": mistral_split}


def build(name, texts, vocab_size, folder):
    """Trains a family and saves folder/tokenizer.json; returns the library's tokenizer."""
    tokenizer = FAMILIES[name](texts, vocab_size)
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(pathlib.Path(folder) / "tokenizer.json"))
    return Tokenizer.from_file(str(pathlib.Path(folder) / "tokenizer.json"))
