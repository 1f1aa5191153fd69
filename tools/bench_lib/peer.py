"""The peer of tools/bench: training steps of transformers' Llama or Mixtral in PyTorch, on all processors.

    peer.py --versions
    peer.py VARIANT STEPS SIZES      VARIANT autocast|bf16[-compiled][-grouped]; SIZES: JSON of bench_train_step

Prints a line of JSON after STEPS for warming up; then, for each number read from standard input, runs so many steps
and prints their seconds and the most memory that the process held during them, program files aside. A step is forward, backward, clipping
and fused AdamW, as in bench_train_step. autocast keeps fp32 weights, bf16 trains in pure bf16.
"""
import json
import os
import sys
import time

import torch
import transformers


def model_of(sizes, experts_by):
    common = {"hidden_size": sizes["hidden"], "intermediate_size": sizes["intermediate"],
              "num_hidden_layers": sizes["layers"], "num_attention_heads": sizes["heads"],
              "num_key_value_heads": sizes["heads"], "vocab_size": sizes["vocabulary"],
              "max_position_embeddings": 4096, "use_cache": False, "tie_word_embeddings": False}
    if sizes["experts"] == 0:
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**common))
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(
        **common, num_local_experts=sizes["experts"], num_experts_per_tok=2, output_router_logits=True,
        router_aux_loss_coef=0.02, sliding_window=None, experts_implementation=experts_by))


class Trainer:
    def __init__(self, variant, sizes):
        torch.manual_seed(1)
        words = variant.split("-")
        self.autocast = words[0] == "autocast"
        self.model = model_of(sizes, "grouped_mm" if "grouped" in words else "eager").train()
        if not self.autocast:
            self.model = self.model.to(torch.bfloat16)
        self.forward = torch.compile(self.model) if "compiled" in words else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1,
                                           fused=True)
        self.tokens = torch.randint(0, sizes["vocabulary"], (sizes["batch"], sizes["sequence"]))

    def step(self):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.forward(input_ids=self.tokens, labels=self.tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def run(self, count):
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            self.step()
            seconds.append(time.perf_counter() - start)
        return seconds


def peak_bytes():
    """The peak without the pages of program files, of which PyTorch's CUDA build maps more than its CPU build."""
    with open("/proc/self/status", encoding="ascii") as status:
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in status if line.endswith(" kB\n")}
    return kilobytes["VmHWM"] - kilobytes["RssFile"] << 10


def forget_peak():
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def main():
    if sys.argv[1:] == ["--versions"]:
        build = "" if torch.version.cuda is None else " (the CUDA build, on the CPU: the index of CPU builds was out of reach)"
        print(f"PyTorch {torch.__version__}{build}, transformers {transformers.__version__}")
        return
    variant, warm_up, sizes = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    trainer = Trainer(variant, sizes)
    seconds = trainer.run(warm_up)
    print(json.dumps({"warm_up": seconds}), flush=True)
    for line in sys.stdin:
        forget_peak()
        seconds = trainer.run(int(line))
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}), flush=True)


if __name__ == "__main__":
    main()
