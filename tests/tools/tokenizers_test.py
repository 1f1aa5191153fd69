#!/usr/bin/env python3
"""Dropcycle's ids of tokenizer.json are those of the `tokenizers` library, family by family, and what it doesn't follow
is refused by name.

    tokenizers_test.py PROBE [CORPUS]

With CORPUS (tools/corpus): all of its text and every code point, with larger vocabularies.
"""
import json
import pathlib
import sys
import tempfile

import tokenizers

import tokenizer_families
import tokenizer_texts
from tokenizer_texts import our_ids, run_probe

failures = []


def expect(condition, message):
    if not condition:
        failures.append(message)
        print("FAILED:", message, flush=True)


def first_difference(text, tokenizer, ours, theirs):
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    around = slice(max(0, place - 2), place + 4)
    name = tokenizer.id_to_token
    return (f"of {text[:60]!r}, token {place}: {[name(i) for i in ours[around]]}, "
            f"the library {[name(i) for i in theirs[around]]}")


def check_family(probe, name, folder, training, vocab_size, texts):
    tokenizer = tokenizer_families.build(name, training, vocab_size, folder)
    results = our_ids(probe, folder, texts)
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    wrong_ids, wrong_texts, count = 0, 0, 0
    for text, (ids, decoded), encoding in zip(texts, results, encodings):
        count += len(ids)
        if ids != encoding.ids:
            wrong_ids += 1
            expect(wrong_ids > 1, f"{name}: ids {first_difference(text, tokenizer, ids, encoding.ids)}")
        if decoded != tokenizer.decode(encoding.ids):
            wrong_texts += 1
            expect(wrong_texts > 1, f"{name}: decoded {decoded[:60]!r}, the library {tokenizer.decode(encoding.ids)[:60]!r}")
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{name:14} vocabulary {tokenizer.get_vocab_size():6}  {len(texts):6} texts  {size:7.2f} MB  {count:9} ids  "
          f"{wrong_ids} texts with other ids, {wrong_texts} decoded otherwise", flush=True)
    return tokenizer


def check_broken_bytes(probe, folder, tokenizer):
    """Bytes that aren't UTF-8 are what Python's decoder makes of them."""
    broken = [b"\xff", b"ab\x80\x81c", b"\xc3", b"\xc3(", b"\xe2\x82", b"\xe2\x82(", b"\xf0\x9f\x98", b"\xf0\x9f\x98x\xf0\x28\x8c\xbc",
              b"\xed\xa0\x80\xed\xb0\x80", b"\xc0\xaf\xf5\x80\x80\x80", b"\xf4\x90\x80\x80", b"\xe0\x80\xaf a\xe0\xa0", bytes(range(256))]
    for text, (ids, _) in zip(broken, our_ids(probe, folder, broken)):
        expected = tokenizer.encode(text.decode(errors="replace"), add_special_tokens=False).ids
        expect(ids == expected, f"bytes {text!r}: {ids}, expected {expected}")


def check_partial_decoding(probe, folder, tokenizer):
    """Single tokens decode as in the library, also those that are no whole character."""
    # The probe decodes what it encodes, so each token's own text is encoded first.
    texts = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
    for text, (ids, decoded) in zip(texts, our_ids(probe, folder, texts)):
        expect(decoded == tokenizer.decode(ids), f"decoding {ids} gives {decoded!r}, expected {tokenizer.decode(ids)!r}")


def edited(source, **changes):
    """The tokenizer with values replaced: a path of keys with __ between; the value None deletes."""
    value = json.loads(source)
    for path, new in changes.items():
        node, *keys = value, *path.split("__")
        for key in keys[:-1]:
            node = node[int(key) if key.isdigit() else key]
        key = int(keys[-1]) if keys[-1].isdigit() else keys[-1]
        if new is None:
            del node[key]
        else:
            node[key] = new
    return value


def check_refusals(probe, folder, gpt2, llama2):
    merges = json.loads(gpt2)["model"]["merges"]
    split = lambda pattern, **more: {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **more}
    token = {"id": 0, "content": "x", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    cases = [
        ("model: WordPiece isn't supported", edited(gpt2, model={"type": "WordPiece", "vocab": {}, "unk_token": "x"})),
        ("model: 'type' is missing", edited(gpt2, model={"vocab": {}})),
        ("model.dropout: isn't supported", edited(gpt2, model__dropout=0.5)),
        ("model.continuing_subword_prefix: isn't supported", edited(gpt2, model__continuing_subword_prefix="##")),
        ("model.end_of_word_suffix: isn't supported", edited(gpt2, model__end_of_word_suffix="</w>")),
        ("model: 'surprise' isn't supported", edited(gpt2, model__surprise=1)),
        ("the file: 'surprise' isn't supported", edited(gpt2, surprise=1)),
        ("the file: 'truncation' isn't supported", edited(gpt2, truncation={"max_length": 5})),
        ("model.merges[1]: 'nosuch", edited(gpt2, model__merges=[merges[0], ["nosuch", "piece"]])),
        ("model.merges[0]: expected two pieces", edited(gpt2, model__merges=["one two three"])),
        ("model.merges: expected a list", edited(gpt2, model__merges={"a": 1})),
        ("model.vocab.x: id -1 isn't between", edited(gpt2, model__vocab__x=-1)),
        ("model.vocab.x: id 99999999999 isn't", edited(gpt2, model__vocab__x=99999999999)),
        ("model.vocab.x: expected a whole number", edited(gpt2, model__vocab__x="7")),
        ("id 5 stands for two pieces", edited(gpt2, model__vocab__newpiece=5)),
        ("model.unk_token: isn't in the vocabulary", edited(llama2, model__unk_token="<nosuch>", model__byte_fallback=False)),
        ("normalizer: NFKC isn't supported", edited(gpt2, normalizer={"type": "NFKC"})),
        ("normalizer.normalizers[1]: Lowercase", edited(gpt2, normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]})),
        ("normalizer.pattern: 'Regex' isn't", edited(gpt2, normalizer={"type": "Replace", "pattern": {"Regex": "a"}, "content": "b"})),
        ("pre_tokenizer: BertPreTokenizer isn't", edited(gpt2, pre_tokenizer={"type": "BertPreTokenizer"})),
        ("pre_tokenizer.behavior: isn't supported", edited(gpt2, pre_tokenizer=split("a", behavior="Removed"))),
        ("pre_tokenizer: 'invert' isn't supported", edited(gpt2, pre_tokenizer=split("a", invert=True))),
        ("pre_tokenizer.pattern: 'String' isn't", edited(gpt2, pre_tokenizer={**split("a"), "pattern": {"String": "a"}})),
        ("ByteLevel isn't last", edited(gpt2, pre_tokenizer={"type": "Sequence", "pretokenizers": [json.loads(gpt2)["pre_tokenizer"], split("a")]})),
        ("Metaspace in a Sequence", edited(gpt2, pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Metaspace", "replacement": "_"}, split("a")]})),
        ("post_processor: BertProcessing isn't", edited(gpt2, post_processor={"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]})),
        ("decoder: WordPiece isn't supported", edited(gpt2, decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})),
        ("added_tokens[0].id: is 7, but", edited(gpt2, added_tokens__0__id=7)),
        ("added_tokens[0]: 'single_word' isn't", edited(gpt2, added_tokens__0__single_word=True)),
        ("added_tokens[1]: the token is there twice", edited(gpt2, added_tokens=[json.loads(gpt2)["added_tokens"][0]] * 2)),
        ("added_tokens[0].content: expected a string that", edited(gpt2, added_tokens=[{**token, "content": ""}])),
        ("model: Unigram without byte_fallback", edited(gpt2, pre_tokenizer={"type": "Metaspace", "replacement": "_"}, model={"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]})),
        ("model: 'vocab' is missing", edited(gpt2, model__vocab=None)),
    ] + [(f"pre_tokenizer.pattern.Regex: the pattern has {what}", edited(gpt2, pre_tokenizer=split(pattern))) for what, pattern in [
        ("\\w", r"\w+"), ("\\b", r"a\b"), ("\\S within a class", r"[\S]"), ("^", "^a"), ("$", "a$"), (".", "a."), ("a class within", "[a[b]]"),
        ("&&", "[a&&b]"), ("\\p{Han}", r"\p{Han}"), ("\\P{L}", r"[\P{L}]"), ("(?i: ) around", "(?i:é)"), ("(?x", "(?x)a"), ("a { that", "a{2}+"),
        ("a { that", "a{,2}"), ("(*", "(*COMMIT)a"), ("a class without", "[a"), ("\\R", r"\R")]] + [
        ("pre_tokenizer.pattern.Regex: PCRE2 can't read", edited(gpt2, pre_tokenizer=split("(a"))),
        ("pre_tokenizer.pattern.Regex: the pattern matches nothing", edited(gpt2, pre_tokenizer=split("a*")))]
    for message, content in cases:
        path = folder / "refused.json"
        path.write_text(json.dumps(content))
        check_refusal(probe, path, message)
    for message, content in [("isn't JSON", "{"), ("isn't JSON", gpt2[:len(gpt2) // 2]), ("expected an object", '{"model": []}'),
                             ("isn't JSON", "{" * 5000), ("'model' is missing", "{}")]:
        (folder / "refused.json").write_text(content)
        check_refusal(probe, folder / "refused.json", message)
    (folder / "refused.json").unlink()
    print(f"{len(cases) + 5} files refused by name", flush=True)


def check_refusal(probe, path, message):
    process = run_probe(probe, "ids", path)
    error = process.stderr.decode()
    expect(process.returncode == 3, f"status {process.returncode} where '{message}' was expected: {error[:300]}")
    expect(message in error and error.count("\n") == 1, f"expected one line with '{message}', got: {error[:300]}")


def main():
    probe, corpus = sys.argv[1], sys.argv[2:]
    print(f"tokenizers {tokenizers.__version__}")
    texts = tokenizer_texts.ODD + tokenizer_texts.random_texts(300)
    if corpus:
        training, vocab_size = tokenizer_texts.corpus_texts(corpus[0], "valid"), 8000
        texts = texts + tokenizer_texts.all_code_points() + [
            text for split in ("train", "valid", "test") for text in tokenizer_texts.corpus_texts(corpus[0], split)]
    else:
        sources = tokenizer_texts.source_texts()
        training, vocab_size = sources[::25] + texts[::4], 900
        texts = texts + sources[::2] + tokenizer_texts.all_code_points()[:256:8]
    with tempfile.TemporaryDirectory(prefix="dropcycle-tokenizers-") as name:
        folder = pathlib.Path(name)
        made = {name: check_family(probe, name, folder / name, training, vocab_size, texts) for name in tokenizer_families.FAMILIES}
        for name in ("gpt2", "llama2"):
            check_broken_bytes(probe, folder / name, made[name])
            check_partial_decoding(probe, folder / name, made[name])
        check_refusals(probe, folder, *((folder / name / "tokenizer.json").read_text() for name in ("gpt2", "llama2")))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
