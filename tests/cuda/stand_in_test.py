"""The stand-in for CUDA's libraries finds what it is there to find: stand_in_test.py MPIEXEC PROBE"""
import os
import subprocess
import sys
import unittest

MPIEXEC, PROBE = sys.argv[1:3]

ALONE = {
    "missing wait": "stale copies",
    "host read": "the host touches byte 0 of an allocation of 4000 bytes",
    "host write": "the host touches byte 0 of an allocation of 4000 bytes",
    "pageable memory": "a copy to the device: the host's memory is not pinned",
    "copy too long": "5000 bytes from byte 0 of an allocation of 4000 bytes",
    "overlapping copy": "1000 bytes overlap",
    "freed memory": "the memory was given back",
    "freed while another stream reads": "freed memory",
    "freed twice": "cudaFreeAsync of",
    "leak": "1 allocations of device memory (308 bytes) were never freed",
    "event never recorded": "cudaStreamWaitEvent of an event that was never recorded",
    "pinned memory read too early": "poison",
    "wrong transpose": "the sizes don't fit",
    "wrong leading dimension": "a matrix of 16 rows with leading dimension 8",
    "leading dimension beyond the memory": "bytes from byte 0 of an allocation of 4000 bytes",
    "misaligned operand": "a isn't aligned to 16 bytes",
    "result over an operand": "the result overlaps an operand",
    "small workspace": "a workspace of 1024 bytes, the algorithm wants 16384",
}

TOGETHER = {
    "wrong count on a rank": "999 float32",
    "another order on a rank": "calls ncclBroadcast",
    "wrong type on a rank": "int32",
    "wrong root on a rank": "with root 1",
    "another order of communicators on a rank": "in another order among the collectives",
    "overlapping buffers": "its buffers overlap",
    "wrong size of a message": "but the message that comes has 40 bytes",
}


def run(*command, seed=1):
    environment = dict(os.environ, DROPCYCLE_STAND_IN_SEED=str(seed))
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


class StandIn(unittest.TestCase):
    def check(self, mistake, result, expected):
        text = result.stdout + result.stderr
        self.assertIn("CUDA stand-in: ", text, mistake)
        self.assertIn(expected, text, mistake)

    def test_without_a_mistake(self):
        for seed in range(4):
            result = run(PROBE, "none", "alone", seed=seed)
            self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "done\n", ""))
        result = run(MPIEXEC, "-n", "2", PROBE, "none")
        self.assertEqual((result.returncode, result.stdout), (0, "done\ndone\n"), result.stderr)

    def test_mistakes_of_a_process(self):
        for mistake, expected in ALONE.items():
            with self.subTest(mistake):
                self.check(mistake, run(PROBE, mistake, "alone"), expected)

    def test_a_missing_wait_shows_whatever_the_seed(self):
        for seed in range(8):
            self.check("missing wait", run(PROBE, "missing wait", "alone", seed=seed), "stale copies")

    def test_mistakes_of_a_rank(self):
        for mistake, expected in TOGETHER.items():
            with self.subTest(mistake):
                result = run(MPIEXEC, "-n", "2", PROBE, mistake)
                self.assertNotEqual(result.returncode, 0)
                self.check(mistake, result, expected)


unittest.main(argv=sys.argv[:1])
