"""What the end-to-end tests share: a workspace with text, tokenizer, shards and configurations, and runs of the binary.

Only Python's standard library. The text is made here: sentences of a small grammar, the same in every run.
"""
import json
import os
import pathlib
import random
import subprocess
import tempfile
import unittest

ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                   OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_hwloc_base_binding_policy="none",
                   OMPI_MCA_btl_vader_single_copy_mechanism="none", OMP_NUM_THREADS="1")

SUBJECTS = "the file,a process,this library,every rank,one user,the shell,an editor,the kernel,some server".split(",")
VERBS = "reads,writes,opens,waits for,copies,forgets,prints,removes,checks,sends".split(",")
OBJECTS = "the buffer,its input,a socket,two pages,the disk,old messages,an index,no answer,the clock".split(",")

MODEL = """
[model]
vocab_size = 320
hidden_size = 24
intermediate_size = 40
layers = 2
heads = 6
kv_heads = 2
"""

RUN = """
[data]
sequence_length = 32
tokenizer = "tokenizer.model"
[[data.train]]
name = "text"
shards = ["shards/train-*.h5"]
weight = 1.0
[[data.valid]]
name = "text"
shards = ["shards/valid-*.h5"]
[train]
steps = 6
global_batch = 12
micro_batch = 1
eval_batches = 12
[optimizer]
learning_rate = 5e-3
warmup_steps = 2
[device]
compute_dtype = "f32"
threads = 1
"""


class Result:
    def __init__(self, process):
        self.status, self.out, self.err = process.returncode, process.stdout, process.stderr


class Workspace:
    """A temporary folder holding tokenizer.model, shards/, dense.toml and moe.toml (three experts)."""

    def __init__(self, binary):
        self.binary = str(binary)
        self.temporary = tempfile.TemporaryDirectory(prefix="dropcycle-e2e-")
        self.path = pathlib.Path(self.temporary.name)
        self.write_text("train.jsonl", documents=300, seed=1)
        self.write_text("valid.jsonl", documents=20, seed=2)
        self.must("tokenizer", "train", "--vocab-size", "320", "--output", "tokenizer.model", "train.jsonl")
        for split in ("train", "valid"):
            self.must("preprocess", "--tokenizer", "tokenizer.model", "--source", "text", "--output",
                      f"shards/{split}", f"{split}.jsonl")
        (self.path / "dense.toml").write_text(MODEL + RUN)
        (self.path / "moe.toml").write_text(MODEL + "experts = 3\n" + RUN)

    def write_text(self, name, documents, seed):
        draw = random.Random(seed)
        with open(self.path / name, "w") as file:
            for number in range(documents):
                sentences = [f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(OBJECTS)} {draw.randrange(999)}."
                             for _ in range(draw.randrange(2, 30))]
                file.write(json.dumps({"text": f"{number}: " + " ".join(sentences)}) + "\n")

    def command(self, *words, ranks=1):
        launch = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
        return launch + [self.binary, *map(str, words)]

    def run(self, *words, ranks=1, timeout=120, environment=None):
        process = subprocess.run(self.command(*words, ranks=ranks), cwd=self.path, text=True, capture_output=True,
                                 timeout=timeout, env=ENVIRONMENT | (environment or {}))
        return Result(process)

    def must(self, *words, **options):
        result = self.run(*words, **options)
        if result.status != 0:
            raise AssertionError(f"{words} ended with {result.status}:\n{result.out}\n{result.err}")
        return result

    def start(self, *words, ranks=1):
        return subprocess.Popen(self.command(*words, ranks=ranks), cwd=self.path, text=True, env=ENVIRONMENT,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def train(self, config, output, *settings, ranks=1, resume=False, check=True, environment=None):
        words = ["train", config, "--set", f"train.output={output}"]
        for setting in settings:
            words += ["--set", setting]
        if resume:
            words += ["--resume", "auto"]
        return (self.must if check else self.run)(*words, ranks=ranks, environment=environment)

    def metrics(self, output):
        return [json.loads(line) for line in (self.path / output / "metrics.jsonl").read_text().splitlines()]

    def manifest(self, checkpoint):
        return json.loads((self.path / checkpoint / "manifest.json").read_text())


class WorkspaceTest(unittest.TestCase):
    """Tests of `binary` that share one workspace."""
    binary = None

    @classmethod
    def setUpClass(cls):
        cls.space = Workspace(cls.binary)

    @classmethod
    def tearDownClass(cls):
        cls.space.temporary.cleanup()
