"""Failures under mpirun: all ranks end, one line names the cause, the exit status says its kind.

usage: runtime_test.py MPIRUN PROBE CHECKER_PROBE
"""

import concurrent.futures
import os
import subprocess
import sys
import time
import unittest

MPIRUN, PROBE, CHECKER = sys.argv[1:4]


class Outcome:
    def __init__(self, command, environment):
        started = time.monotonic()
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})
        self.seconds = time.monotonic() - started
        self.code, self.output, self.everything = result.returncode, result.stdout, result.stderr
        self.lines = [line for line in result.stderr.splitlines() if "dropcycle: error:" in line or "MPI checker" in line]


def start(mode, ranks=0, program=PROBE, environment=None):
    """Starts the probe, under mpirun if ranks > 0. mpirun mostly waits, so three run at a time."""
    launcher = [MPIRUN, "-n", str(ranks)] if ranks else []
    return POOL.submit(Outcome, [*launcher, program, mode], environment or {})


POOL = concurrent.futures.ThreadPoolExecutor(3)
ONE_PROCESS = {mode: start(mode) for mode in ("ok", "all")}
UNCONNECTED = start("ok", environment={"SLURM_STEP_NUM_TASKS": "4"})
SUCCESS = {ranks: start("ok", ranks) for ranks in (1, 3)}
FAILURES = {mode: start(mode, 3) for mode in ("all", "one", "bug", "unfinished", "out_of_step", "killed")}
LAYOUT = start("layout", 4)
UNCAUGHT = {ranks: start("uncaught", ranks) for ranks in (1, 2)}
EARLY = start("early", 3)
NO_WINDOWS = start("all", 2, environment={"OMPI_MCA_osc": "^sm,rdma,ucx,pt2pt"})
REQUEUE = start("requeue", 2)
CHECKED = {mode: start(mode, 2, CHECKER)
           for mode in ("equal", "operation", "type", "count", "rows", "message", "unreceived")}


class RuntimeTest(unittest.TestCase):
    def failure(self, future, status, *words):
        outcome = future.result()
        self.assertEqual(outcome.code, status, outcome.everything)
        self.assertEqual(len(outcome.lines), 1, outcome.everything)
        for word in words:
            self.assertIn(word, outcome.lines[0])
        self.assertLess(outcome.seconds, 60)

    def test_ranks_that_succeed(self):
        for ranks, future in SUCCESS.items():
            outcome = future.result()
            self.assertEqual((outcome.code, outcome.lines), (0, []))
            self.assertEqual(sorted(outcome.output.splitlines()),
                             [f"rank {r} of {ranks}, {ranks} on the node" for r in range(ranks)])

    def test_one_process_without_mpirun(self):
        outcome = ONE_PROCESS["ok"].result()
        self.assertEqual((outcome.code, outcome.lines, outcome.output), (0, [], "rank 0 of 1, 1 on the node\n"))
        outcome = ONE_PROCESS["all"].result()
        self.assertEqual((outcome.code, outcome.lines), (3, ["dropcycle: error: shard x.h5 is missing"]))

    def test_all_ranks_fail_alike_and_one_speaks(self):
        self.failure(FAILURES["all"], 3, "of 3 on ", "shard x.h5 is missing")

    def test_without_shared_windows_the_failure_is_told_all_the_same(self):
        outcome = NO_WINDOWS.result()
        self.assertEqual(outcome.code, 3, outcome.everything)
        self.assertTrue(outcome.lines, outcome.everything)

    def test_one_rank_fails(self):
        self.failure(FAILURES["one"], 5, "rank 2 of 3 on ", "the loss is NaN in layer 3")

    def test_a_bug(self):
        self.failure(FAILURES["bug"], 1, "rank 2 of 3", "unforeseen")

    def test_a_sum_under_way_does_not_hold_the_failure_up(self):
        self.failure(FAILURES["unfinished"], 5, "rank 2 of 3", "the gradient is infinite")

    def test_ranks_out_of_step(self):
        self.failure(FAILURES["out_of_step"], 6, "rank 2 of 3", "group world, all_to_all on its rank 2")

    def test_a_layout_that_does_not_fit(self):
        self.failure(LAYOUT, 2, "parallel.expert = 3 does not divide", "the nearest is 2 or 4")

    def test_an_exception_that_nobody_catches(self):
        self.assertEqual(UNCAUGHT[2].result().code, 1, UNCAUGHT[2].result().everything)
        self.failure(UNCAUGHT[1], 2, "nobody catches this")  # a rank alone passes it on to its main

    def test_an_error_before_mpi_starts(self):
        self.failure(EARLY, 2, "a wrong option")

    def test_a_killed_rank_ends_the_others(self):
        outcome = FAILURES["killed"].result()
        self.assertEqual(outcome.code, 137, outcome.everything)
        self.assertIn("process rank 2", outcome.everything)
        self.assertIn("exited on signal 9 (Killed)", outcome.everything)

    def test_stop_on_request_is_a_status_of_all_ranks(self):
        outcome = REQUEUE.result()
        self.assertEqual((outcome.code, outcome.lines), (75, []))

    def test_tasks_of_srun_without_mpi_are_refused(self):
        outcome = UNCONNECTED.result()
        self.assertEqual(outcome.code, 2)
        self.assertIn("srun started 4 tasks", outcome.lines[0])

    def test_no_process_is_left(self):
        concurrent.futures.wait([*FAILURES.values(), *UNCAUGHT.values(), LAYOUT, EARLY, REQUEUE])
        self.assertEqual([line for line in processes() if line.startswith(PROBE)], [])


class CheckerTest(unittest.TestCase):
    def test_equal_calls(self):
        outcome = CHECKED["equal"].result()
        self.assertEqual((outcome.code, outcome.lines), (0, []))

    def test_unequal_calls(self):
        for mode, word in (("operation", "MPI_Bcast"), ("type", "MPI_FLOAT"), ("count", "of 3 MPI_DOUBLE"),
                           ("rows", "of 16 bytes; rank 0 sends it 8 bytes"),
                           ("message", "MPI_Irecv of 16 bytes; rank 0 sends it 8 bytes"),
                           ("unreceived", "a message of rank 0 was never received")):
            outcome = CHECKED[mode].result()
            self.assertEqual(outcome.code, 1)
            self.assertTrue(any(word in line for line in outcome.lines), (mode, outcome.lines))


def processes():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                yield file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            pass  # it ended meanwhile


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
