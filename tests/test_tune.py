"""`muladd tune`: which models there are, what is kept and what given up, whose files are taken."""
from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest

from muladd import Tensor, cli, config, jit, tune
from muladd import device as devices
from muladd.compile import backends, pipeline, tuned
from muladd.compile.search import whole
from muladd.errors import ArgumentError, FormatError
from muladd.loop import codec
from muladd.loop.plan import plain

MODEL = """
from muladd import Tensor, jit
x = Tensor.ones(64, 512, device="CPU").realize()
step = jit(lambda: (x * 2).softmax(-1).sum(0))
def main():
    return step()
number = 3
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path):
    with config.context(CACHE_DIR=str(tmp_path), CHECK=0, DEVICE="CPU"):
        pipeline.forget()
        yield
    pipeline.forget()


@pytest.fixture
def handicapped(monkeypatch):
    """A heuristic that knows no vectors, so that there is something to find."""
    none = lambda self, kernel, machine=None: plain(kernel)  # noqa: E731
    monkeypatch.setattr(backends.Backend, "schedule", none)


def model():
    x = Tensor(np.linspace(-1, 1, 64 * 512, dtype=np.float32).reshape(64, 512)).realize()
    return jit(lambda: x.softmax(-1))


def display() -> tune.Display:
    return tune.Display(io.StringIO())


def records() -> list[tuned.Tuned]:
    from muladd.cache import cache

    return [tuned.parse(json.loads(x)) for x in cache().values(tuned.KIND)]


def test_models_are_functions_of_files_and_modules(tmp_path, monkeypatch):
    path = tmp_path / "somebodys_model.py"
    path.write_text(MODEL)
    assert tune.load(str(path))().shape == (512,)
    assert tune.load(f"{path}:step")().shape == (512,)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert tune.load("somebodys_model:main")().shape == (512,)
    assert tune.load("sum rows 4096")() and tune.load("demo") is tune._demo


@pytest.mark.parametrize("name, message", [
    ("nowhere.py", "no file nowhere.py"), ("os:nothing", "no function 'nothing'"),
    ("json:dumps", "without arguments"),
    ("no.such.module:f", "cannot be imported"), ("resnet.onnx", "no model 'resnet.onnx'"),
    ("import muladd", "no model"), ("", "no model"),
])  # fmt: skip
def test_what_is_no_model_is_said(name, message):
    with pytest.raises(ArgumentError, match=message):
        tune.load(name)


def test_a_model_without_kernels_is_said():
    with pytest.raises(ArgumentError, match="ran no kernel"):
        tune.tune(lambda: None, 1, 1, display())


def test_a_handicapped_model_becomes_faster_and_its_schedules_travel(handicapped, tmp_path, capsys):
    shown, file = display(), tmp_path / "found.json"
    (line,) = tune.tune(model(), 12, 1, shown)
    assert line.state == "found" and line.ratio < 0.8 and tune.overall([line]) < 0.9
    assert "amax-sum_64x512" in shown.out.getvalue() and "found" in shown.out.getvalue()
    assert tuned.export_to(file) == 1
    (mine,) = records()

    with config.context(CACHE_DIR=str(tmp_path / "another")):
        assert cli.main(["tune", "--import", str(file), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["imported"] == {"taken": 1, "left": 0}
        (theirs,) = records()
        assert theirs.schedule == mine.schedule and theirs.kernel == mine.kernel
        tune.timed(model())
        compiled = [k for p in pipeline.compiled() for k in p.kernels()]
        assert compiled[-1].plan.lines == mine.schedule


def test_what_a_file_says_is_not_believed(tmp_path):
    """Schedules that are unsafe, slower, of no kernel or of an impossible one are all left."""
    tune.timed(model())
    kernel = next(k.kernel for p in pipeline.compiled() for k in p.kernels())
    device = devices.get("CPU")
    usual = backends.of(device).schedule(kernel)
    good = tuned.Tuned(codec.encode(kernel), "elsewhere", usual.lines, None, 0.1, 1)
    endless = json.loads(json.dumps(good.kernel))
    endless["arguments"][0][1] = 1 << 47
    offered = [
        dataclasses.replace(good, schedule=("at s0 0",)),
        dataclasses.replace(good, schedule=("outer p0", "parallel 1")),
        dataclasses.replace(good, schedule=("p0",)),
        dataclasses.replace(good, schedule=usual.lines, kernel={}),
        dataclasses.replace(good, schedule=usual.lines, kernel=endless),
        good,
    ]
    path, shown = tmp_path / "hostile.json", display()
    written = [dataclasses.asdict(x) for x in offered]
    path.write_text(json.dumps({"format": tuned.FORMAT, "schedules": written}))
    assert tune.adopt(path, device, 60, shown) == (0, len(offered))
    assert records() == [] and shown.out.getvalue().count("refused") >= 3


@pytest.mark.parametrize("text", [
    "", "[]", "{}", "\0", "[" * 100_000, '{"format": "muladd schedules 1"}',
    '{"format": "muladd schedules 1", "schedules": [1]}', '{"format": "muladd schedules 2"}',
])  # fmt: skip
def test_what_is_no_file_of_schedules_is_refused(text, tmp_path, capsys):
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(FormatError):
        tuned.read(path)
    assert cli.main(["tune", "--import", str(path)]) == 1
    assert "FormatError" in capsys.readouterr().err


def test_a_schedule_that_makes_its_program_slower_is_withdrawn(handicapped, monkeypatch):
    monkeypatch.setattr(whole, "ratio", lambda new, old: 1.5)
    (line,) = tune.tune(model(), 12, 1, display())
    assert (line.state, line.ratio) == ("withdrawn", 1.0)
    assert [r.schedule for r in records()] == [None]


def test_stopping_keeps_what_was_found(monkeypatch):
    found = []

    def once(kernel, device, seconds, width, worker, told):
        if found:
            raise KeyboardInterrupt
        found.append(kernel)
        return tuned.Tuned({}, tuned.place_of(device), (), None, 1.0, 0)

    def both():
        return [one() for one in calls]

    calls = [model(), jit(lambda: Tensor.ones(300, 200).exp().sum())]
    monkeypatch.setattr(tune, "search", once)
    shown = display()
    lines = tune.tune(both, 12, 1, shown)
    assert len(lines) == 1 and "stopped" in shown.out.getvalue()


def test_a_program_computes_the_same_again():
    tune.timed(model())
    (program,) = [p for p in pipeline.compiled() if p.kernels()][-1:]
    copy = whole.again(program)
    assert [k.key for k in copy.kernels()] == [k.key for k in program.kernels()]
    assert 0.1 < whole.ratio(copy, program) < 10


def test_the_whole_is_counted_from_its_parts():
    line = tune.Line("", "", 0.5, 0.5, "found")
    assert tune.overall([line]) == 0.75
    assert tune.overall([dataclasses.replace(line, state="known")]) == pytest.approx(1 / 1.5)
    assert tune.overall([]) == 1.0


@pytest.mark.parametrize("given, message", [
    ([], "nothing to do"), (["nonsense"], "no model 'nonsense'"),
])  # fmt: skip
def test_mistakes_of_the_command_are_a_line(given, message, capsys):
    assert cli.main(["tune", *given]) == 2
    assert message in capsys.readouterr().err


def test_without_a_cache_there_is_no_tuning(capsys):
    with config.context(NOCACHE=1):
        assert cli.main(["tune", "demo"]) == 2
    assert "NOCACHE" in capsys.readouterr().err
