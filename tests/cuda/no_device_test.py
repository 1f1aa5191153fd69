"""device.backend = cuda where there is no GPU: one line that says so and what to do, and status 2.

usage: no_device_test.py DROPCYCLE
"""
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

BINARY = sys.argv.pop(1)
CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs" / "experiment"


class NoDeviceTest(unittest.TestCase):
    def test_one_line_and_status_2(self):
        config = sorted(CONFIGS.glob("*.toml"))[0]
        with tempfile.TemporaryDirectory() as folder:
            process = subprocess.run(
                [BINARY, "train", str(config), "--set", "device.backend=cuda", "--set", f"train.output={folder}/run"],
                capture_output=True, text=True, env=dict(os.environ, CUDA_VISIBLE_DEVICES=""))
        self.assertEqual(process.returncode, 2, process.stderr)
        self.assertRegex(process.stderr, re.compile(
            r'\Adropcycle: error: no CUDA device: [^\n]+; use device\.backend = "cpu"\n\Z'))


if __name__ == "__main__":
    unittest.main()
