"""The arithmetic of tools/bench: ratios, verdicts, what the results' file keeps, the README's rows, the figure's bars."""
import json
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

from bench_lib import figure, results, rows, steps_aside, training  # noqa: E402
from bench_lib.llama_folder import Sizes, write_model  # noqa: E402
from bench_lib.turns import BenchError  # noqa: E402


def step_row(shape, kind, rate=4000.0):
    peers = {name: {"tokens_per_second": speed, "peak_bytes": memory, "ratios": [rate / speed]} for name, speed, memory in
             (("autocast", 1000.0, 4e9), ("autocast-compiled", 1600.0, 5e9), ("bf16-compiled", 2000.0, 3e9))}
    return {"shape": shape, "kind": kind, "sizes": {}, "step_seconds": 0.5, "tokens_per_second": rate, "peak_bytes": 1e9,
            "peers": peers, "floor_seconds": 0.4}


class FakeProgram:
    """In place of a trainer: a step takes 0.5 s in ours, as many seconds in the peer as turns were run."""
    ready = {"batch": 2, "sequence": 10, "flops_per_token": 1e9, "warm_up": [100]}

    def __init__(self, command):
        self.is_peer, self.turns = str(training.PEER) in map(str, command), 0

    def run(self, _):
        self.turns += 1
        return {"seconds": [self.turns if self.is_peer else 0.5], "peak_bytes": self.turns}

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class BenchTest(unittest.TestCase):
    def test_training_ratios(self):
        cells = [cell.strip() for cell in list(training.markdown([step_row("tiny", "moe")]))[2].split("|")]
        self.assertEqual(cells[1:-1], ["tiny, moe", "4,000 tokens/s", "1,600 (autocast-compiled)", "2.50",
                                       "2,000 (bf16-compiled)", "2.00", "1.25", "1.00 / 4.00 GB = 0.25"])
        for number in ("2.50", "2.00", "1.25", "0.25", "400 ms"):
            self.assertIn(number, training.table([step_row("tiny", "moe")]).splitlines()[1])

    def test_training_without_peers(self):
        alone = step_row("tiny", "dense") | {"peers": {}}
        self.assertIn("| - | - | - | - | 1.25 | - |", list(training.markdown([alone]))[2])
        self.assertEqual(list(figure.data([alone])), [['"tiny dense"', "4000", "?", "?"]])

    def test_verdicts(self):
        for ratio, target, expected in ((3.0, (">=", 3), ">= 3 met"), (2.99, (">=", 3), ">= 3 missed"),
                                        (1.3, ("<=", 1.3), "<= 1.3 met"), (1.31, ("<=", 1.3), "<= 1.3 missed"),
                                        (float("nan"), ("<=", 1.3), "<= 1.3 missed"), (9, None, "-")):
            self.assertEqual(rows.verdict(rows.row("x", "s", 1, "y", 1, ratio, target, "c")), expected)

    def test_rows(self):
        row = rows.row("thing", "ms", 1234.4, "other thing", 0.1236, 2.345, None, "tools/bench x", peak_bytes=3 << 20)
        self.assertEqual(list(rows.markdown([row])), [
            "| thing | 1,234 ms, peak memory 3 MiB; other thing: 0.124; ratio 2.35 | `tools/bench x` |"])
        self.assertEqual(rows.medians([(1, 10), (3, 30), (2, 90)]), (2, 30))

    def test_step_without_the_optimizer(self):
        table = ("                    ms a step    share calls a step\nstep      100.500   100.0%\nforward  60.0  59.7%  1\n"
                 "  linear  50.0  49.7%  1\noptimizer   30.250    30.1%   1\nclear gradients   10.000   9.9%   1\n")
        self.assertAlmostEqual(steps_aside.token_seconds(table), 0.06025)

    def test_results_are_replaced_by_shape_and_kind(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "results.json"
            head = {"processor": "P", "versions": "V"}
            results.add(path, head, "steps", [step_row("small", "moe"), step_row("tiny", "moe")])
            results.add(path, {"processor": "P"}, "start", [rows.row("a", "s", 1, "b", 2, 0.5, None, "c")])
            results.add(path, head, "steps", [step_row("tiny", "dense"), step_row("small", "moe", 5000.0)])
            found = json.loads(path.read_text())
            self.assertEqual([(row["shape"], row["kind"], row["tokens_per_second"]) for row in found["steps"]],
                             [("tiny", "dense", 4000.0), ("tiny", "moe", 4000.0), ("small", "moe", 5000.0)])
            lines = list(results.markdown(found))
            self.assertEqual((lines[0], len([line for line in lines if line.startswith("| ")])), ("P; V", 6))
            with self.assertRaisesRegex(BenchError, "measured with P"):
                results.add(path, {"processor": "Q"}, "start", [])

    def test_an_older_floor_stays_where_none_was_measured(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "results.json"
            results.add(path, {"processor": "P"}, "steps", [step_row("small", "moe")])
            without = step_row("small", "moe", 5000.0)
            del without["floor_seconds"]
            results.add(path, {"processor": "P"}, "steps", [without])
            kept, = results.read(path)["steps"]
            self.assertEqual((kept["tokens_per_second"], kept["floor_seconds"]), (5000.0, 0.4))
            results.add(path, {"processor": "P"}, "steps", [step_row("small", "moe") | {"floor_seconds": 0.3}])
            self.assertEqual(results.read(path)["steps"][0]["floor_seconds"], 0.3)

    def test_training_is_saved_after_every_turn(self):
        saved = []
        with mock.patch.object(training, "Program", FakeProgram):
            row = training.compare("tiny", "moe", "python", ["autocast", "bf16"], 3, mock.Mock(), saved.append)
        self.assertEqual([[len(peer["ratios"]) for peer in part["peers"].values()] for part in saved],
                         [[1], [2], [3], [3, 1], [3, 2], [3, 3]])
        self.assertEqual(saved[-1], row)
        self.assertEqual(row["peers"]["autocast"], {"tokens_per_second": 10, "peak_bytes": 3, "ratios": [2, 4, 6]})

    def test_figure(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "bench.svg"
            figure.draw(path, [step_row("tiny", "moe"), step_row("tiny", "dense") | {"peers": {}}], "A Processor_1")
            text = path.read_text()
            for words in ("A Processor_1", "tiny moe", "tiny dense", "PyTorch, best with autocast"):
                self.assertIn(words, text)
        self.assertEqual(list(figure.data([step_row("152m", "moe")])), [['"152m moe"', "4000", "1600", "2000"]])
        self.assertEqual([figure.int_log(value) for value in (0.5, 1, 9.9, 10, 999, 1000)], [0, 0, 0, 1, 2, 3])

    def test_model_folder(self):
        sizes = Sizes(hidden=8, intermediate=16, heads=2, kv_heads=1, vocabulary=32)
        layer = 2 * (2 * 8 + 2 * 8 * 8 + 2 * 4 * 8 + 3 * 8 * 16)
        ends = 2 * (2 * 32 * 8 + 8)
        self.assertEqual([sizes.layers_of((ends + count * layer) / (1 << 30)) for count in (1, 2, 2.5)], [1, 2, 3])
        with tempfile.TemporaryDirectory() as folder:
            made = write_model(pathlib.Path(folder) / "model", sizes, 2)
            self.assertEqual(made, (ends + 2 * layer, 2 * 32 * 8))


if __name__ == "__main__":
    unittest.main()
