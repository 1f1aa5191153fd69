#!/usr/bin/env python3
"""What write_huggingface() writes is loaded by transformers' AutoTokenizer and gives Dropcycle's ids and texts.

    export_tokenizers_test.py PROBE DROPCYCLE
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.update(TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="true", HF_HUB_OFFLINE="1")

import tokenizer_families
import tokenizer_texts
from tokenizer_texts import our_ids, run_probe
from transformers import AutoTokenizer

failures = []
CONFIGS = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM"}


def expect(condition, message):
    if not condition:
        failures.append(message)
        print("FAILED:", message, flush=True)


def write(probe, tokenizer, folder):
    process = run_probe(probe, "write", tokenizer, folder)
    if process.returncode:
        raise SystemExit(f"write {tokenizer}: {process.stderr.decode()}")


def compare(probe, name, source, folder, texts):
    """AutoTokenizer on `folder` against Dropcycle on `source`."""
    loaded = AutoTokenizer.from_pretrained(folder)
    wrong = 0
    for text, (ids, decoded) in zip(texts, our_ids(probe, source, texts)):
        theirs = loaded(text, add_special_tokens=False)["input_ids"]
        if ids != theirs or decoded != loaded.decode(theirs, skip_special_tokens=True):
            wrong += 1
            expect(wrong > 1, f"{name}: {text[:60]!r} is {ids[:12]}, AutoTokenizer {theirs[:12]}; decoded {decoded[:40]!r}")
    print(f"{name:24} {type(loaded).__name__:20} {len(texts)} texts, {wrong} differ", flush=True)
    return loaded


def check_sentencepiece(probe, dropcycle, folder, kind, texts):
    corpus, model, exported = folder / "corpus.jsonl", folder / f"{kind}.model", folder / f"{kind}-exported"
    with open(corpus, "w", encoding="utf-8") as out:
        for text in tokenizer_texts.source_texts()[::8] + tokenizer_texts.ODD:
            out.write(json.dumps({"text": text}) + "\n")
    subprocess.run([dropcycle, "tokenizer", "train", "--type", kind, "--vocab-size", "1500", "--output", model, corpus],
                   check=True, capture_output=True)
    write(probe, model, exported)
    expect((exported / "tokenizer.model").read_bytes() == model.read_bytes(), f"{kind}: tokenizer.model isn't a copy")
    loaded = compare(probe, f"{kind}, SentencePiece", model, exported, texts)
    compare(probe, f"{kind}, read back", exported, exported, texts)
    expect(loaded("Hello").input_ids == loaded("Hello", add_special_tokens=False).input_ids, f"{kind}: ids are added")
    expect((loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id) == (1, 2, 0), f"{kind}: special ids")
    for architecture, name in CONFIGS.items():  # what AutoTokenizer sees beside it in an exported model
        (exported / "config.json").write_text(json.dumps({"model_type": architecture, "architectures": [name]}))
        compare(probe, f"{kind} in {architecture}", model, exported, texts[::7])


def check_json(probe, folder, name, texts):
    """Copied with the files beside it; a token that only config.json names is named in tokenizer_config.json."""
    source, exported = folder / name, folder / f"{name}-exported"
    made = tokenizer_families.build(name, texts[::4], 900, source)
    token = "</s>" if made.token_to_id("</s>") is not None else "<|endoftext|>"
    (source / "config.json").write_text(json.dumps({"eos_token_id": [made.token_to_id(token), 0], "bos_token_id": None}))
    (source / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": token}}))
    write(probe, source, exported)
    expect((source / "tokenizer.json").read_bytes() == (exported / "tokenizer.json").read_bytes(), f"{name}: not a copy")
    config = json.loads((exported / "tokenizer_config.json").read_text())
    expect(config.get("eos_token") == token and "bos_token" not in config, f"{name}: {config}")
    loaded = compare(probe, f"{name}, copied", source, exported, texts)
    expect(loaded.eos_token == token, f"{name}: end token {loaded.eos_token}")


def main():
    probe, dropcycle = sys.argv[1:]
    texts = tokenizer_texts.ODD + tokenizer_texts.random_texts(150) + tokenizer_texts.source_texts()[::6]
    with tempfile.TemporaryDirectory(prefix="dropcycle-tokenizers-") as folder:
        for kind in ("unigram", "bpe"):
            check_sentencepiece(probe, dropcycle, pathlib.Path(folder), kind, texts)
        for name in ("gpt2", "qwen2", "llama2", "mistral"):
            check_json(probe, pathlib.Path(folder), name, texts)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
