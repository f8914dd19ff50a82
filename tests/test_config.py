"""Settings: from the environment, in code, and what happens when they do not fit."""
from __future__ import annotations

import threading
from pathlib import Path

import pytest

from muladd import config
from muladd.config import ConfigError


@pytest.fixture(autouse=True)
def proven():
    """Settings are the matter here, so none is made for these tests."""


@pytest.fixture(autouse=True)
def fresh():
    config.reload()
    yield
    config.reload()


def test_defaults_and_context(monkeypatch):
    monkeypatch.delenv("DEBUG", raising=False)
    assert config.DEBUG == config.get("DEBUG") == 0
    with config.context(DEBUG=2, SPIN="4"):
        with config.context(DEBUG=3):
            assert (config.DEBUG, config.SPIN) == (3, 4)
        assert config.DEBUG == 2
    assert config.DEBUG == 0


@pytest.mark.parametrize("name", ["DEBUG", "MEMORY", "PIN", "DEVICE", "CACHE_SIZE"])
def test_an_empty_variable_is_not_set(monkeypatch, name):
    monkeypatch.setenv("MULADD_" + name, "")
    monkeypatch.setenv(name, "")
    assert config.get(name) == config.SETTINGS[name].default


@pytest.mark.parametrize("name, value, expected", [
    ("DEBUG", "abc", "expected a whole number 0 <= n <= 5"),
    ("THREADS", "1.5", "expected a whole number 0 <= n <= 256"),
    ("MEMORY", "abc", "expected a number of bytes such as 500M or 8G"),
    ("CACHE_SIZE", "1Z", "expected a number of bytes such as 500M or 8G"),
])  # fmt: skip
def test_an_error_names_the_variable_the_value_and_what_was_expected(
    monkeypatch, name, value, expected
):
    monkeypatch.setenv("MULADD_" + name, value)  # the name that wins
    with pytest.raises(ConfigError, match=f"{name}='{value}' is not .*{expected}"):
        config.get(name)


def test_environment(monkeypatch):
    monkeypatch.setenv("DEBUG", "3")
    monkeypatch.setenv("DEVICE", "opencl")
    monkeypatch.setenv("MEMORY", "1.5G")
    monkeypatch.setenv("NOCACHE", "yes")
    monkeypatch.setenv("THREADS", "7")
    monkeypatch.setenv("MULADD_THREADS", "2")
    assert (config.DEBUG, config.DEVICE, config.MEMORY) == (3, "OPENCL", 3 << 29)
    assert config.NOCACHE is True and config.THREADS == 2


@pytest.mark.parametrize("name,value", [("DEBUG", "9"), ("DEBUG", "many"), ("PROFILE", "slow"),
                                        ("CHECK", "maybe"), ("THREADS", "-1"), ("MEMORY", "x"),
                                        ("DEVICE", " ")])  # fmt: skip
def test_values_that_do_not_fit(monkeypatch, name, value):
    monkeypatch.delenv(f"MULADD_{name}", raising=False)  # which would come first
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        config.get(name)
    with pytest.raises(ConfigError, match=name), config.context(**{name: value}):
        pass


def test_unknown_names():
    with pytest.raises(ConfigError, match="there are: DEBUG"), config.context(DEBUGG=1):
        pass
    with pytest.raises(AttributeError):
        _ = config.NOTHING
    with pytest.raises(ConfigError):
        config.get("NOTHING")


def test_other_threads_are_not_touched():
    seen = []
    with config.context(SPIN=9):
        thread = threading.Thread(target=lambda: seen.append(config.SPIN))
        thread.start()
        thread.join()
    assert seen == [200]


def test_table_and_cache_folder(monkeypatch, tmp_path):
    text = config.table()
    assert all(name in text for name in config.SETTINGS)
    assert all(row.doc for row in config.SETTINGS.values())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with config.context(CACHE_DIR=""):  # whatever the environment says
        assert config.cache_folder().name == "muladd"
    with config.context(CACHE_DIR=str(tmp_path / "here")):
        assert config.cache_folder() == tmp_path / "here"


def test_every_setting_is_read_somewhere():
    source = "\n".join(p.read_text() for p in Path(config.__file__).parent.rglob("*.py"))
    assert not [name for name in config.SETTINGS if f'get("{name}")' not in source]
