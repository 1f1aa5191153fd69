"""The peer of tools/bench's part generate: greedy generation of one sequence by transformers, with its cache.

    peer_generate.py write FOLDER SIZES       a random Llama or Mixtral of those sizes (JSON of bench_train_step) in
                                              bf16, and a tokenizer of all bytes and of pairs of bytes
    peer_generate.py DTYPE FOLDER TOKENS PROMPT      DTYPE float32|bfloat16

The second prints a line of JSON after one generation; then, for each number read from standard input, generates so
many times TOKENS new tokens after the prompt and prints the seconds of each.
"""
import json
import os
import sys
import time

import tokenizers
import torch
import transformers

from peer import model_of


def tokenizer_of(size):
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [(first, second) for first in letters for second in letters][:size - len(letters)]
    words = letters + [first + second for first, second in merges]
    model = tokenizers.models.BPE({word: number for number, word in enumerate(words)}, merges)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def write(folder, sizes):
    torch.manual_seed(1)
    model = model_of(sizes, "grouped_mm").to(torch.bfloat16)
    model.config.use_cache = True
    # An end token that is no likelier than others: Dropcycle's side of the benchmark checks that it never came.
    model.config.bos_token_id, model.config.eos_token_id = None, sizes["vocabulary"] - 1
    model.generation_config.bos_token_id, model.generation_config.eos_token_id = None, sizes["vocabulary"] - 1
    model.save_pretrained(folder)
    tokenizer_of(sizes["vocabulary"]).save_pretrained(folder)


def serve(dtype, folder, tokens, prompt):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt").input_ids

    def generate():
        start = time.perf_counter()
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                             do_sample=False, use_cache=True, pad_token_id=0)
        seconds = time.perf_counter() - start
        assert out.shape[1] == ids.shape[1] + tokens
        return seconds

    print(json.dumps({"warm_up": [generate()], "prompt_tokens": ids.shape[1]}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": [generate() for _ in range(int(line))]}), flush=True)


def main():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if sys.argv[1] == "write":
        write(sys.argv[2], json.loads(sys.argv[3]))
    else:
        serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])


if __name__ == "__main__":
    main()
