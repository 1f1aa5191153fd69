"""Failures under mpirun: all ranks end, one line names the cause, the exit status says its kind.

usage: runtime_test.py MPIRUN PROBE
"""

import os
import subprocess
import sys
import time
import unittest

MPIRUN, PROBE = sys.argv[1:3]


def run(mode, ranks=2, environment=None, command=None):
    """Exit status, our own lines on standard error, everything on it, standard output."""
    started = time.monotonic()
    result = subprocess.run(command or [MPIRUN, "-n", str(ranks), PROBE, mode], capture_output=True, text=True,
                            timeout=60, env={**os.environ, **(environment or {})})
    seconds = time.monotonic() - started
    ours = [line for line in result.stderr.splitlines() if "dropcycle: error:" in line]
    return result.returncode, ours, result.stderr, result.stdout, seconds


class RuntimeTest(unittest.TestCase):
    def failure(self, mode, status, *words, ranks=3):
        code, ours, everything, _, seconds = run(mode, ranks)
        self.assertEqual(code, status, everything)
        self.assertEqual(len(ours), 1, everything)
        for word in words:
            self.assertIn(word, ours[0])
        self.assertLess(seconds, 20)
        self.assertNotIn(f"{PROBE} {mode}", processes())

    def test_ranks_that_succeed(self):
        for ranks in (1, 3):
            code, ours, _, output, _ = run("ok", ranks)
            self.assertEqual((code, ours), (0, []))
            self.assertEqual(sorted(output.splitlines()),
                             [f"rank {r} of {ranks}, {ranks} on the node" for r in range(ranks)])

    def test_one_process_without_mpirun(self):
        code, ours, _, output, _ = run("ok", command=[PROBE, "ok"])
        self.assertEqual((code, ours, output), (0, [], "rank 0 of 1, 1 on the node\n"))
        code, ours, _, _, _ = run("all", command=[PROBE, "all"])
        self.assertEqual((code, ours), (3, ["dropcycle: error: shard x.h5 is missing"]))

    def test_all_ranks_fail_alike_and_one_speaks(self):
        self.failure("all", 3, "of 3 on ", "shard x.h5 is missing", ranks=3)

    def test_one_rank_fails(self):
        self.failure("one", 5, "rank 2 of 3 on ", "the loss is NaN in layer 3")

    def test_a_bug(self):
        self.failure("bug", 1, "rank 2 of 3", "unforeseen")

    def test_a_sum_under_way_does_not_hold_the_failure_up(self):
        self.failure("unfinished", 5, "rank 2 of 3", "the gradient is infinite")

    def test_ranks_out_of_step(self):
        self.failure("out_of_step", 6, "rank 2 of 3", "group world, all_to_all on its rank 2")

    def test_a_layout_that_does_not_fit(self):
        self.failure("layout", 2, "ep 3 does not divide", "the nearest ep is 2 or 4", ranks=4)

    def test_an_exception_that_nobody_catches(self):
        code, _, everything, _, seconds = run("uncaught", 2)
        self.assertEqual(code, 1, everything)
        self.assertLess(seconds, 20)

    def test_a_killed_rank_ends_the_others(self):
        code, _, everything, _, seconds = run("killed", 3)
        self.assertEqual(code, 137, everything)
        self.assertIn("process rank 2", everything)
        self.assertIn("exited on signal 9 (Killed)", everything)
        self.assertLess(seconds, 20)
        self.assertNotIn(f"{PROBE} killed", processes())

    def test_stop_on_request_is_a_status_of_all_ranks(self):
        code, ours, _, _, _ = run("requeue", 2)
        self.assertEqual((code, ours), (75, []))

    def test_tasks_of_srun_without_mpi_are_refused(self):
        code, ours, _, _, _ = run("ok", command=[PROBE, "ok"], environment={"SLURM_STEP_NUM_TASKS": "4"})
        self.assertEqual(code, 2)
        self.assertIn("srun started 4 tasks", ours[0])


def processes():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                line = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if line.startswith(PROBE):
            found.append(line)
    return found


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
