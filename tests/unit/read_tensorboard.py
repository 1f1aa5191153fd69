"""Reads the runs that unit_metrics_test wrote with TensorBoard's own reader and compares with metrics.jsonl.

usage: read_tensorboard.py UNIT_METRICS_TEST SCRATCH_FOLDER
Installs tensorboard from PyPI into SCRATCH_FOLDER/venv first, if it isn't there.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import venv

binary, scratch = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
python = scratch / "venv/bin/python"
if sys.prefix == sys.base_prefix:
    if not python.exists():
        venv.create(scratch / "venv", with_pip=True, clear=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "tensorboard==2.21.0"],
                   check=True)
    os.execv(python, [python, *sys.argv])

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

runs = scratch / "runs"
shutil.rmtree(runs, ignore_errors=True)
subprocess.run([binary], check=True, env=os.environ | {"DROPCYCLE_TEST_FOLDER": str(runs)}, stdout=subprocess.DEVNULL)

run = runs / "resume"  # nine steps, cut off after five, resumed after three
lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
assert [line["step"] for line in lines] == list(range(1, 10)), lines
events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
events.Reload()


def close(a, b):
    return abs(a - b) <= 1e-6 * abs(b)


def compare(tag, expected):
    points = events.Scalars(tag)
    assert [point.step for point in points] == [step for step, _ in expected], (tag, points)
    assert all(close(point.value, value) for point, (_, value) in zip(points, expected)), (tag, points, expected)


for tag, key in [("loss/train", "loss"), ("loss/balance", "balance_loss"), ("speed/tokens_per_second",
                 "tokens_per_second"), ("optimizer/learning_rate", "learning_rate")]:
    compare(tag, [(line["step"], line[key]) for line in lines])
compare("expert_load_layer_1/expert_0", [(line["step"], line["expert_load"][1][0]) for line in lines])
compare("held_out/en", [(0, 9.0), (9, 7.0)])
compare("held_out/ja", [(9, 6.0)])
assert "loss/router_z" not in events.Tags()["scalars"]
print("TensorBoard reads", len(events.Tags()["scalars"]), "scalars of", len(lines), "steps")
