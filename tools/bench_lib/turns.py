"""Programs that take turns: each prepares, says so, and then runs as many steps as it is told."""
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "cpu"
BINARY = BUILD / "dropcycle"
STEP = BUILD / "tests" / "bench" / "bench_train_step"


class BenchError(Exception):
    """One line for the user."""


def output_of(command, seconds=None, errors=False, **options):
    """What a command printed, or with `errors` what it printed as errors; a failure ends the benchmark."""
    process = subprocess.run([str(word) for word in command], cwd=ROOT, text=True, timeout=seconds,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    if process.returncode:
        raise BenchError(f"{command_line(command)} ended with {process.returncode}: {process.stderr[-2000:].strip()}")
    return process.stderr if errors else process.stdout


def command_line(command):
    return " ".join(pathlib.Path(word).name if "/" in str(word) else str(word) for word in command)


class Progress:
    """Lines with what is under way and about how long the rest takes, on standard error."""

    def __init__(self, parts):
        self.parts, self.done, self.start = parts, 0, time.monotonic()

    def next(self, what):
        left = ""
        if self.done:
            seconds = (time.monotonic() - self.start) / self.done * (self.parts - self.done)
            left = f"  about {seconds / 60:.0f} min left" if seconds >= 90 else f"  about {seconds:.0f} s left"
        self.done += 1
        print(f"[{self.done}/{self.parts}] {what}{left}", file=sys.stderr, flush=True)


class Lines:
    """A process whose lines are read as they come."""

    def __init__(self, command, **options):
        self.command = [str(word) for word in command]
        self.errors = tempfile.TemporaryFile("w+")
        self.last_line = ""
        settings = {"cwd": ROOT, "stderr": self.errors} | options
        self.process = subprocess.Popen(self.command, text=True, stdout=subprocess.PIPE, **settings)

    def __iter__(self):
        for self.last_line in self.process.stdout:
            yield self.last_line
        if status := self.process.wait():
            self.failed(status)

    def failed(self, status):
        self.errors.seek(0)
        reason = (self.errors.read() or self.last_line)[-2000:].strip()
        raise BenchError(f"{command_line(self.command)[:100]} ended with {status}: {reason}")

    def __enter__(self):
        return self

    def close(self):
        self.process.wait()

    def __exit__(self, *_):
        self.close()
        self.process.stdout.close()
        self.errors.close()


class Program(Lines):
    """A process that reads numbers of steps and answers with lines of JSON. `ready` is what it said first."""

    def __init__(self, command, **options):
        super().__init__(command, stdin=subprocess.PIPE, **options)
        self.ready = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.failed(self.process.wait())
        return json.loads(line)

    def run(self, steps):
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def median_of(answers):
    return statistics.median(seconds for answer in answers for seconds in answer["seconds"])


def worst_memory(answers):
    return max(answer["peak_bytes"] for answer in answers)


def steps_within(seconds_per_step, limit, most):
    return max(1, min(most, int(limit / seconds_per_step)))
