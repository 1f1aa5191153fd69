"""Every way to go wrong that a user may meet gives one line (what, where, what was expected, what to do), the documented
exit status on every rank, and loses nothing.

usage: errors_test.py DROPCYCLE
"""
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest

from fixture import ENVIRONMENT, MODEL, RUN, Workspace

BINARY = sys.argv.pop(1)
USAGE, INPUT, STORAGE, NUMERIC, PEER = 2, 3, 4, 5, 6


def flip_byte(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


def error_lines(text):
    return [line for line in text.splitlines() if "dropcycle: error:" in line]


class ErrorsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.space = Workspace(BINARY)
        cls.space.train("dense.toml", "dense", "train.steps=2", "train.eval_batches=1")
        cls.shard = "shards/train-00000.h5"

    @classmethod
    def tearDownClass(cls):
        cls.space.temporary.cleanup()

    def path(self, *parts):
        return self.space.path.joinpath(*parts)

    def digest_of(self, folder):
        """Names and contents of everything in a folder."""
        digest = hashlib.sha256()
        for path in sorted(self.path(folder).rglob("*")):
            digest.update(str(path.relative_to(self.path())).encode())
            if path.is_file():
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def tensors(self, checkpoint):
        """Kind, name and digests of every tensor in a checkpoint."""
        found = [(entry["kind"], entry["name"], [piece["digest"] for piece in entry["slices"]])
                 for entry in self.space.manifest(checkpoint)["parameters"]]
        self.assertGreater(len(found), 20)
        return found

    def assert_refused(self, result, status, *words):
        """One line with all of `words`, the exit status, and the same parents as before."""
        self.assertEqual(result.status, status, result.err)
        lines = error_lines(result.err)
        self.assertEqual(len(lines), 1, result.err)
        for word in words:
            self.assertIn(word, lines[0])
        self.assertLess(len(lines[0]), 600, "a line that nobody reads")
        return lines[0]

    def train_refused(self, status, words, config, *settings, output="refused", ranks=1, resume=False):
        dense = self.digest_of("dense")
        result = self.space.train(config, output, *settings, ranks=ranks, resume=resume, check=False)
        line = self.assert_refused(result, status, *words)
        if output == "refused":
            self.assertFalse(self.path(output).exists() and any(self.path(output).iterdir()), "it left something behind")
        self.assertEqual(self.digest_of("dense"), dense)
        return line

    def copy_of_shard(self, name):
        shutil.copy(self.path(self.shard), self.path("shards", name))
        return f"shards/{name}", f'data.train=[{{name="text", shards=["shards/{name}"], weight=1.0}}]'

    # Shards

    def test_missing_shard(self):
        self.train_refused(INPUT, ["shards/nowhere.h5"], "dense.toml",
                           'data.train=[{name="text", shards=["shards/nowhere.h5"], weight=1.0}]')
        self.train_refused(INPUT, ["shards/nowhere-*.h5"], "dense.toml",
                           'data.train=[{name="text", shards=["shards/nowhere-*.h5"], weight=1.0}]', ranks=2)

    def test_truncated_shard(self):
        for keep in (0.5, 0.0):
            path, setting = self.copy_of_shard(f"truncated-{keep}.h5")
            size = self.path(path).stat().st_size
            os.truncate(self.path(path), int(keep * size))
            self.train_refused(INPUT, [path], "dense.toml", setting, ranks=2 if keep else 1)

    def test_flipped_byte_in_a_shard(self):
        path, setting = self.copy_of_shard("flipped.h5")
        flip_byte(self.path(path), self.path(path).stat().st_size // 2)
        result = self.space.train("dense.toml", "flipped-run", setting, check=False)
        self.assert_refused(result, INPUT, path)
        self.assert_refused(self.space.run("verify", path), INPUT, path)

    def test_shard_of_another_tokenizer(self):
        self.space.must("tokenizer", "train", "--vocab-size", "319", "--output", "other.model", "train.jsonl")
        self.train_refused(INPUT, [self.shard, "tokenizer"], "dense.toml", 'data.tokenizer="other.model"', ranks=2)

    def test_vocabulary_larger_than_the_models(self):
        self.train_refused(INPUT, [self.shard, "320", "319"], "dense.toml", "model.vocab_size=319")

    # Building an MoE

    def test_dense_checkpoint_that_does_not_fit(self):
        for setting, key in (("model.hidden_size=48", "hidden_size"), ("model.intermediate_size=44", "intermediate_size"),
                             ("model.layers=3", "layers"), ("model.vocab_size=384", "vocab_size")):
            line = self.train_refused(INPUT, ["dense/step_00000002", key], "moe.toml", "init.method=drop", "init.from=dense", setting)
            self.assertIn(setting.split("=")[1], line)

    def test_ratio_outside_zero_to_one(self):
        for ratio in ("1.5", "-0.25", "nan"):
            self.train_refused(USAGE, ["init.ratio", "0", "1"], "moe.toml", "init.method=drop", "init.from=dense",
                               f"init.ratio={ratio}")
            result = self.space.run("upcycle", "--method", "drop", "--ratio", ratio, "--experts", 3, "--output",
                                    "refused", "dense")
            self.assert_refused(result, USAGE, ratio, "from 0", "to 1")
            self.assertFalse(self.path("refused").exists())

    # Layouts

    def test_experts_not_divisible(self):
        self.train_refused(USAGE, ["parallel.expert", "2", "model.experts", "3"], "moe.toml", "parallel.expert=2", ranks=2)

    def test_ranks_not_divisible(self):
        self.train_refused(USAGE, ["parallel.expert = 2", "3 ranks", "1 or 3"], "moe.toml", "model.experts=4", "parallel.expert=2", ranks=3)
        self.train_refused(USAGE, ["parallel.data = 3", "2 were started"], "dense.toml", "parallel.data=3", ranks=2)
        self.train_refused(USAGE, ["train.global_batch = 4", "3"], "dense.toml", "train.global_batch=4", ranks=3)

    def test_pipelines_that_do_not_fit(self):
        for words, settings, ranks in (
                (["parallel.pipeline = 3", "model.layers = 2", "at most 2"], ["pipeline=3"], 3),
                (["4 chunks", "model.layers = 2", "virtual_stages to at most 1"],
                 ["pipeline=2", "schedule=interleaved", "virtual_stages=2"], 2),
                (["parallel.virtual_stages is 2", "'1f1b'"], ["pipeline=2", "virtual_stages=2"], 2),
                (["parallel.schedule is 'interleaved' with pipeline 1", "at least 2"], ["schedule=interleaved"], 1),
                (["parallel.pipeline_layers has 3 entries", "expected 2"],
                 ["pipeline=2", "pipeline_layers=[1,1,1]"], 2),
                (["parallel.pipeline_layers sums to 3", "model.layers = 2"], ["pipeline=2", "pipeline_layers=[2,1]"], 2),
                (["3 ranks", "pipeline 2", "start 2 or 4 ranks"], ["pipeline=2"], 3)):
            self.train_refused(USAGE, words, "dense.toml", *[f"parallel.{setting}" for setting in settings], ranks=ranks)

    def test_ranks_with_different_configurations(self):
        command = ["mpirun"]
        for rank, seed in enumerate((1, 1, 7)):
            command += [":"] if rank else []
            command += ["-n", "1", BINARY, "train", "dense.toml", "--set", "train.output=refused", "--set",
                        f"train.seed={seed}"]
        result = subprocess.run(command, cwd=self.space.path, env=ENVIRONMENT, text=True, capture_output=True, timeout=120)
        result.status, result.err = result.returncode, result.stderr
        self.assert_refused(result, PEER, "rank 2 differs from rank 0", "[train]", "seed = 7", "seed = 1")
        self.assertFalse(self.path("refused").exists())

    # Configuration

    def test_unknown_key(self):
        self.path("unknown.toml").write_text(MODEL + RUN.replace("global_batch", "global_bach"))
        self.train_refused(USAGE, ["unknown.toml:", "global_bach", "global_batch"], "unknown.toml", ranks=2)
        self.train_refused(USAGE, ["train.step", "train.steps"], "dense.toml", "train.step=3")

    def test_wrong_type(self):
        self.path("wrong.toml").write_text(MODEL + RUN.replace("global_batch = 12", 'global_batch = "twelve"'))
        line = self.train_refused(USAGE, ["wrong.toml:", "global_batch", "whole number"], "wrong.toml")
        self.assertRegex(line, r"wrong\.toml:\d+:\d+")

    def test_output_folder_not_empty(self):
        before = self.digest_of("dense")
        for ranks in (1, 2):
            result = self.space.train("dense.toml", "dense", ranks=ranks, check=False)
            self.assert_refused(result, USAGE, "dense", "--resume auto")
        self.path("foreign").mkdir(exist_ok=True)
        self.path("foreign", "thesis.txt").write_text("years of work\n")
        self.assert_refused(self.space.train("dense.toml", "foreign", check=False), USAGE, "foreign")
        self.assertEqual(self.path("foreign", "thesis.txt").read_text(), "years of work\n")
        self.assertEqual(self.digest_of("dense"), before)

    # Checkpoints

    def test_flipped_byte_in_a_checkpoint(self):
        settings = ("checkpoint.interval=2", "checkpoint.keep_last=9", "train.eval_batches=1")
        self.space.train("dense.toml", "damaged", *settings)
        expected = self.tensors("damaged/step_00000006")
        for step, place in (("00000006", 0.15), ("00000004", 0.9)):
            file = next(self.path("damaged", f"step_{step}").glob("*.h5"))
            flip_byte(file, int(place * file.stat().st_size))
        result = self.space.run("verify", "damaged/step_00000006")
        self.assert_refused(result, INPUT, "step_00000006")
        result = self.space.run("eval", "damaged/step_00000006")
        self.assert_refused(result, INPUT, "step_00000006")
        # Resuming names both, skips them and goes on from the one before, to the same end.
        result = self.space.train("dense.toml", "damaged", *settings, resume=True)
        for name in ("step_00000006", "step_00000004"):
            self.assertTrue(any("warning" in line and name in line for line in result.err.splitlines()), result.err)
        self.assertIn("step_00000002", result.err)
        self.assertEqual(self.tensors("damaged/step_00000006"), expected)

    def test_no_whole_checkpoint(self):
        self.space.train("dense.toml", "ruined", "train.steps=2", "train.eval_batches=1")
        file = next(self.path("ruined").glob("step_*/*.h5"))
        flip_byte(file, file.stat().st_size // 2)
        before = self.digest_of("ruined")
        result = self.space.train("dense.toml", "ruined", resume=True, ranks=2, check=False)
        self.assert_refused(result, INPUT, "ruined")  # never a silent fresh start
        self.assertEqual(self.digest_of("ruined"), before)

    def test_disk_full_while_saving(self):
        # A file system of its own that holds one checkpoint and a half.
        size = sum(file.stat().st_size for file in self.path("dense", "step_00000002").iterdir())
        script = f"""
            set -e
            mount -t tmpfs -o size={size * 3 // 2} none full
            status=0
            "$@" || status=$?
            cp -r full/run kept
            exit $status
        """
        for ranks in (1, 2):
            shutil.rmtree(self.path("kept"), ignore_errors=True)
            self.path("full").mkdir(exist_ok=True)
            words = ["train", "dense.toml"]
            for setting in ("train.output=full/run", "checkpoint.interval=2", "train.eval_batches=1"):
                words += ["--set", setting]
            process = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", *self.space.command(*words, ranks=ranks)],
                                     cwd=self.space.path, env=ENVIRONMENT, text=True, capture_output=True, timeout=120)
            self.assertEqual(process.returncode, STORAGE, process.stderr)
            # Training went on to its end and says at the end that the last state isn't on disk.
            self.assertEqual([line["step"] for line in self.space.metrics("kept")], list(range(1, 7)))
            lines = error_lines(process.stderr)
            self.assertEqual(len(lines), 1, process.stderr)
            for word in ("step_00000006", "No space left on device", "bytes"):
                self.assertIn(word, lines[0])
            self.assertTrue(any("step_00000004" in line and "No space left" in line for line in
                                process.stderr.splitlines()), process.stderr)
            # What was there before is whole, and nothing else is left.
            self.assertEqual([path.name for path in self.path("kept").glob("step_*")], ["step_00000002"])
            self.space.must("verify", "kept/step_00000002")

    # While it runs

    def test_nan_loss(self):
        # Zero weights and no epsilon: the first norm divides zero by zero.
        for ranks in (1, 2):
            output = f"nan-{ranks}"
            result = self.space.train("moe.toml", output, "model.init_std=0", "model.norm_epsilon=0",
                                      "checkpoint.interval=1", ranks=ranks, check=False)
            self.assert_refused(result, NUMERIC, "step 1", "rank 0", "layers.0.attention", "source text",
                                "shards/train-00000.h5", "not updated")
            self.assertEqual(list(self.path(output).glob("step_*")), [])

    def test_nan_in_a_pipeline(self):
        # The stage where it comes up names it; the others only pass it on.
        for layout in ((), ("parallel.pipeline=2",),
                       ("parallel.pipeline=2", "parallel.schedule=interleaved", "parallel.virtual_stages=2")):
            output = f"nan-pipeline-{len(layout)}"
            result = self.space.train("dense.toml", output, "model.layers=4", "model.init_std=0", "model.norm_epsilon=0",
                                      *layout, ranks=2, check=False)
            self.assert_refused(result, NUMERIC, "step 1", "rank 0", "layers.0.attention", "microbatch 0", "source text",
                                "not updated")
            self.assertEqual(list(self.path(output).glob("step_*")), [])

    def test_nan_in_one_ranks_samples(self):
        # Without AdamW's epsilon an embedding that no sample has used yet turns NaN: a Z in one document alone ends the
        # run on the rank that gets its window, which depends on the seed of the order.
        with open(self.path("rare.jsonl"), "w") as file:
            for number in range(400):
                text = "the file reads the clock." + ("Z" if number == 200 else "")
                file.write(json.dumps({"text": text}) + "\n")
        self.space.must("preprocess", "--tokenizer", "tokenizer.model", "--source", "rare", "--output", "shards/rare",
                        "rare.jsonl")
        ranks = set()
        for seed in range(1, 9):
            result = self.space.train(
                "dense.toml", f"rare-{seed}", 'data.train=[{name="rare", shards=["shards/rare-*.h5"], weight=1.0}]',
                "train.global_batch=2", "train.steps=400", "optimizer.epsilon=0",
                f"data.seed={seed}", "optimizer.schedule=constant", "train.eval_batches=1", ranks=2, check=False)
            line = self.assert_refused(result, NUMERIC, "output of embedding, microbatch 0", "source rare",
                                       "shards/rare-00000.h5", "not updated")
            step, rank, sample, first, last = map(int, re.search(
                r"step (\d+): .*at rank (\d), .*sample (\d+): .*documents (\d+)\.\.(\d+) of", line).groups())
            self.assertTrue(first <= 200 <= last, line)
            self.assertEqual(sample, 2 * (step - 1) + rank)
            self.assertEqual([line["step"] for line in self.space.metrics(f"rare-{seed}")], list(range(1, step)))
            ranks.add(rank)
            if ranks == {0, 1}:
                return
        self.fail(f"only ranks {ranks} got the sample")

    def test_mpirun_with_one_rank(self):
        process = subprocess.run(["mpirun", "-n", "1", BINARY, "train", "nowhere.toml"], cwd=self.space.path,
                                 env=ENVIRONMENT, text=True, capture_output=True, timeout=60)
        process.status, process.err = process.returncode, process.stderr
        self.assert_refused(process, INPUT, "nowhere.toml")

    def test_wrong_option_on_every_rank(self):
        self.assert_refused(self.space.run("train", "dense.toml", "--resum", "auto", ranks=3), USAGE, "--resum")

    def test_killed_rank(self):
        settings = ["train.output=killed", "train.steps=100000", "optimizer.schedule=constant", "checkpoint.interval=5",
                    "train.eval_batches=1", "model.experts=3", "parallel.expert=3"]
        words = ["train", "moe.toml"]
        for setting in settings:
            words += ["--set", setting]
        process = self.space.start(*words, ranks=3)
        deadline = time.monotonic() + 60
        while not list(self.path("killed").glob("step_*[0-9]/manifest.json")):
            self.assertIsNone(process.poll(), "the run ended before a rank could be killed")
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)
        ranks = {self.rank_of(pid): pid for pid in self.children(process.pid)}
        self.assertEqual(sorted(ranks), [0, 1, 2])
        started = time.monotonic()
        os.kill(ranks[1], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        self.assertLess(time.monotonic() - started, 30)
        self.assertEqual(process.returncode, 128 + signal.SIGKILL, err)
        self.assertIn("process rank 1 ", err)
        self.assertIn("exited on signal 9 (Killed)", err)
        while any(map(self.alive, ranks.values())):
            self.assertLess(time.monotonic() - started, 30, "a rank lives on")
            time.sleep(0.05)
        # Nothing but the steps since the newest checkpoint is lost.
        newest = max(int(path.name[5:]) for path in self.path("killed").glob("step_*") if path.suffix != ".tmp")
        result = self.space.train("moe.toml", "killed", *settings[2:], f"train.steps={newest + 1}", ranks=3, resume=True)
        self.assertIn(f"resuming after step {newest}", result.err)

    @staticmethod
    def children(parent):
        with open(f"/proc/{parent}/task/{parent}/children") as file:
            return [int(pid) for pid in file.read().split()]

    @staticmethod
    def alive(pid):
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rsplit(")", 1)[1].split()[0] != "Z"  # an ended one may wait for its parent
        except FileNotFoundError:
            return False

    @staticmethod
    def rank_of(pid):
        with open(f"/proc/{pid}/environ", "rb") as file:
            for entry in file.read().split(b"\0"):
                if entry.startswith(b"OMPI_COMM_WORLD_RANK="):
                    return int(entry.split(b"=")[1])
        return None


if __name__ == "__main__":
    unittest.main(verbosity=2)
