"""The peer of tools/bench_train: a training step of transformers' Llama or Mixtral in PyTorch, compiled, pure bf16.

    bench_peer.py tiny|small dense|moe      prints "<tokens/s> tokens/s": the median of the steps after the warm-up
"""
import os
import statistics
import sys
import time

import torch
import transformers

SHAPES = {  # hidden, intermediate, layers, heads, vocabulary, batch, sequence
    "tiny": (256, 1024, 6, 4, 16384, 8, 512),
    "small": (512, 2048, 12, 8, 16384, 4, 1024),
}
STEPS, WARM_UP = 5, 3


def model_of(shape, kind):
    hidden, intermediate, layers, heads, vocabulary, _, _ = SHAPES[shape]
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
             "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": vocabulary,
             "max_position_embeddings": 4096, "use_cache": False, "tie_word_embeddings": False}
    if kind == "dense":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(
        **sizes, num_local_experts=8, num_experts_per_tok=2, output_router_logits=True, router_aux_loss_coef=0.02,
        sliding_window=None))


def main():
    if sys.argv[1:] == ["--versions"]:
        print(f"PyTorch {torch.__version__}, transformers {transformers.__version__}, "
              f"{len(os.sched_getaffinity(0))} threads")
        return
    shape, kind = sys.argv[1:]
    torch.manual_seed(1)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = model_of(shape, kind).to(torch.bfloat16).train()
    forward = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batch, sequence = SHAPES[shape][-2:]
    tokens = torch.randint(0, SHAPES[shape][4], (batch, sequence))
    seconds = []
    for step in range(WARM_UP + STEPS):
        start = time.perf_counter()
        forward(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    print(f"{batch * sequence / statistics.median(seconds):.0f} tokens/s")


if __name__ == "__main__":
    main()
