"""What the program says where the GPUs aren't as it needs them: program_test.py PROGRAM (on the stand-in)"""
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
import fixture  # noqa: E402


class Program(fixture.WorkspaceTest):
    binary = sys.argv[1]
    runs = 0

    def refusal(self, ranks, **stand_in):
        """Status and one line of a run on a stand-in with these settings."""
        Program.runs += 1
        result = self.space.train("dense.toml", f"run{self.runs}", "device.backend=cuda", ranks=ranks, check=False,
                                  environment={"DROPCYCLE_STAND_IN_" + name: value for name, value in stand_in.items()})
        lines = [line for line in result.err.splitlines() if line.startswith(("dropcycle:", "CUDA stand-in:"))]
        self.assertEqual(len(lines), 1, result.err)
        return result.status, lines[0]

    def test_no_gpu(self):
        status, line = self.refusal(1, DEVICES="0")
        self.assertEqual(status, 2)
        self.assertRegex(line, r'^dropcycle: error: no CUDA device: .* \(100\); use device.backend = "cpu"$')

    def test_fewer_gpus_than_processes(self):
        status, line = self.refusal(3, DEVICES="2")
        self.assertEqual(status, 2)
        self.assertIn("no CUDA device for the process with number 2 on this node, which shows 2", line)

    def test_two_processes_with_one_gpu(self):
        status, line = self.refusal(2, DEVICES="1")
        self.assertEqual(status, 2)
        self.assertIn("ranks 0 and 1 have the same GPU", line)

    def test_too_little_memory(self):
        status, line = self.refusal(1, MEMORY_MIB="1")
        self.assertEqual(status, 2)
        self.assertIn("too little memory on the GPU: ", line)
        self.assertIn(" bytes wanted, ", line)

    def test_an_error_of_nccl_ends_all_ranks(self):
        status, line = self.refusal(2, NCCL_FAILS_AT="5")
        self.assertEqual(status, 6, line)
        self.assertRegex(line, r"group \w+, work under way on its rank [01]: NCCL: remote error: another rank failed")


unittest.main(argv=sys.argv[:1])
