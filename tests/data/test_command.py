"""What every command does around its work, tried on one of a line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import sys
from data.command import command
from data.files import DataError, write_text

@command
def main(argv):
    {}

sys.exit(main([]))
"""


def run(body: str, **environment: str):
    return subprocess.run([sys.executable, "-c", CODE.format(body)], cwd=ROOT, capture_output=True,
                          env={**os.environ, **environment})


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk", "utf-16"])
def test_whatever_the_output_can_show_printing_costs_nothing(encoding):
    done = run("print('诈骗 😀'); print('诈骗 😀', file=sys.stderr); return 0", PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stdout and b"Traceback" not in done.stderr


@pytest.mark.parametrize("body, code", [
    ("raise DataError('诈骗')", 2), ("raise FloatingPointError('nan')", 2), ("raise KeyboardInterrupt", 130),
    ("raise MemoryError", 2), ("raise type('OutOfMemoryError', (RuntimeError,), {})('CUDA\\nmore')", 2),
    ("return 0", 0), ("write_text('/tmp/诈骗\\ud800/诈骗', '')", 2),
])
def test_a_command_ends_in_an_exit_code_and_one_line_at_most(body, code):
    done = run(body, PYTHONIOENCODING="ascii")
    assert done.returncode == code and len(done.stderr.splitlines()) <= 1


@pytest.mark.parametrize("args, line", [("", "stopped"), ("'go on with --resume'", "go on with --resume")])
def test_ctrl_c_ends_a_command_with_a_line(args, line):
    done = run(f"raise KeyboardInterrupt({args})")
    assert (done.returncode, done.stderr.decode().splitlines()) == (130, [line])


def test_a_command_whose_reader_has_gone_ends_without_a_word():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", CODE.format("print('x' * 10**6); return 0")], cwd=ROOT, stdout=writing,
                          stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("door", ["trainer.py", "evaluate.py"])
def test_ctrl_c_during_the_imports_ends_the_doors_with_a_line_too(tmp_path, door):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")  # a signal is ignored where tests run in background
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, door, "--help"], cwd=ROOT, capture_output=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"stopped\n")
    done = subprocess.run([sys.executable, "-c", f"import {door[:-3]}"], cwd=ROOT, capture_output=True, env=environment)
    assert b"KeyboardInterrupt" in done.stderr  # to a program it is what it always is
