"""The command line: every command helps, speaks JSON, and ends with a code that means something."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import muladd
from muladd import cli, config, doctor
from muladd.errors import ArgumentError, FormatError
from muladd.ir import ops, toposort

COMMANDS = ["demo", "chat", "ops", "fuzz", "bench", "tune", "doctor", "version"]


def run(capsys, *arguments):
    try:
        code = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def test_help_teaches_with_examples(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)
    assert "muladd demo" in out and "Exit codes" in out


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "bench"])
def test_each_command_has_help_with_an_example(command, capsys):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"muladd {command}" in out and "examples:" in out


@pytest.mark.parametrize("given", [
    [], ["nonsense"], ["ops", "--nonsense"], ["demo", "--epochs", "0"], ["demo", "--epochs", "x"],
    ["tune", "demo", "--seconds", "0"], ["tune", "demo", "--beam", "-1"],
])  # fmt: skip
def test_wrong_usage_is_2(given, capsys):
    code, _, err = run(capsys, *given)
    assert code == 2
    assert "usage:" in err


@pytest.mark.parametrize("given, words", [
    (["demo", "--epochs", "0"], "--epochs: '0' is given; expected a whole number from 1 on"),
    (["demo", "--epochs", "x"], "--epochs: 'x' is given; expected a whole number from 1 on"),
    (["tune", "demo", "--seconds", "nan"], "'nan' is given; expected a number of seconds above 0"),
    (["serve", "m", "--port", "70000"], "--port: '70000' is given; expected 0 to 65535"),
    (["serve", "m", "--slots", "65"], "--slots: '65' is given; expected 1 to 64"),
])  # fmt: skip
def test_a_number_that_does_not_fit_is_told_with_what_does(given, words, capsys):
    code, _, err = run(capsys, *given)
    assert code == 2 and words in err


@pytest.mark.parametrize("path,message", [
    ("nowhere/weights.safetensors", "there is no folder nowhere; make it first"),
    (".", ". is a folder; give a file's name"),
])  # fmt: skip
def test_the_demonstration_looks_at_its_output_before_it_trains(path, message, capsys, monkeypatch):
    monkeypatch.setattr("muladd.demo.run", lambda *given, **more: pytest.fail("it trains"))
    code, _, err = run(capsys, "demo", "--output", path)
    assert code == 2
    assert message in err


def test_ops_prints_every_row(capsys):
    code, out, _ = run(capsys, "ops")
    assert code == 0
    first_words = [line.split(" ")[0] for line in out.splitlines()]
    assert all(op.name in first_words for op in ops.OPS)
    assert f"{len(ops.OPS)} operations" in out
    assert max(map(len, out.splitlines())) <= 130


def test_ops_as_json(capsys):
    code, out, _ = run(capsys, "ops", "--json")
    rows = json.loads(out.splitlines()[-1])
    assert code == 0
    assert [row["name"] for row in rows] == [op.name for op in ops.OPS]
    assert all(row["meaning"] and row["gradient"] for row in rows)


def test_fuzz_prints_the_seed_and_what_it_did(capsys):
    code, out, err = run(capsys, "fuzz", "--minutes", "0.02", "--devices", "cpu", "--seed", "7")
    assert code == 0, out
    assert out.startswith("seed ") and "CPU fast: " in out and "CPU exact: " in out
    code, out, err = run(capsys, "fuzz", "--program", "3", "--seed", "5", "--devices", "CPU",
                         "--profiles", "fast", "--json")  # fmt: skip
    report = json.loads(out.splitlines()[-1])
    assert code == 0 and report["seed"] == 5 and report["programs"] == 1
    assert err.startswith("seed 5")


@pytest.mark.slow
def test_fuzz_makes_a_failure_small_and_tells_how_to_see_it_again(capsys, monkeypatch):
    from muladd.compile import fuzzing

    right = fuzzing.compute

    def wrong(outputs, inputs, variables, name):
        """A device whose MUL of int32 is off by one."""
        spoilt = any(n.op is ops.MUL and n.dtype.name == "int32" for n in toposort(outputs))
        return [x + 1 if spoilt and x.dtype == "int32" else x
                for x in right(outputs, inputs, variables, name)]  # fmt: skip

    monkeypatch.setattr(fuzzing, "compute", wrong)
    given = ["fuzz", "--minutes", "2", "--seed", "4", "--devices", "CPU", "--profiles", "fast"]
    code, out, _ = run(capsys, *given)
    assert code == 1
    again = [line for line in out.splitlines() if line.startswith("again: ")]
    assert again and "--seed 4 --program " in again[0]
    assert out.count("MUL") >= 1 and "elements differ" in out
    code, out, _ = run(capsys, *again[0].removeprefix("again: muladd ").split())
    assert code == 1 and "1 failures" in out


def test_version(capsys):
    code, out, _ = run(capsys, "version", "--json")
    assert code == 0
    assert json.loads(out)["version"].startswith("muladd")
    assert run(capsys, "--version")[0] == 0


def test_doctor_tells_machine_devices_and_settings(capsys):
    code, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out.splitlines()[-1])
    assert code == 0 and report["healthy"]
    assert report["devices"]["CPU"] == "ready"
    assert report["machine"]["cores"] >= 1
    assert report["settings"]["DEBUG"]["meaning"]
    code, out, _ = run(capsys, "doctor", "--size")
    assert "THREADS" in out and "total" in out


def test_code_lines_leave_out_words_and_air():
    source = '"""Doc."""\n\n# why\nx = 1\n\n\ndef f():\n    """Doc\n    more."""\n    return x\n'
    assert doctor.code_lines(source) == 3


@pytest.mark.parametrize("error, expected", [
    (FormatError("x: a file is damaged"), 1), (ArgumentError("x: n is 0; expected 1"), 2),
    (config.ConfigError("x: THREADS='a'"), 2), (OSError("the disk is full"), 1),
    (KeyboardInterrupt(), 130),
])  # fmt: skip
def test_a_mistake_is_one_line_and_a_code(error, expected, capsys, monkeypatch):
    def fails(_):
        raise error

    monkeypatch.setattr(cli, "_version", fails)
    code, _, err = run(capsys, "version")
    assert code == expected
    assert err.startswith("muladd: ") and str(error) in err and err.count("\n") == 1


def test_it_runs_as_a_module_and_survives_a_closed_pipe():
    line = f"{sys.executable} -m muladd ops | head -n 1"
    here = {**os.environ, "PYTHONPATH": str(Path(muladd.__file__).parent.parent)}
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=60, env=here
    )
    assert done.stdout.startswith("op")
    assert done.stderr == ""


def test_a_full_disk_is_one_line_and_1():
    here = {**os.environ, "PYTHONPATH": str(Path(muladd.__file__).parent.parent)}
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -u -m muladd ops > /dev/full"], capture_output=True,
        text=True, timeout=60, env=here,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "No space left" in done.stderr
