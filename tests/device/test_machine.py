"""What is known of the machine, and machines made up by name."""
from __future__ import annotations

import os

import pytest

from muladd import device
from muladd.device import machine
from muladd.device.machine import Machine
from muladd.errors import DeviceError


def test_host_is_sensible():
    host = Machine.host()
    assert host is Machine.host()
    assert host.vector_bits in (128, 256, 512) and host.float_lanes * 32 == host.vector_bits
    assert host.l1 >= 8 << 10 and host.l2 > host.l1 and 1 <= host.cores <= (os.cpu_count() or 1)
    assert host.key and host.cpu in machine.description()


def test_named_machines():
    assert Machine.named("avx512").vector_registers == 32
    assert Machine.named("avx2").vector_bits == 256
    assert Machine.named("neon").triple.startswith("aarch64")
    assert Machine.named("sve").bf16_dot
    with pytest.raises(DeviceError, match="avx2, avx512, .*, neon, .*sve"):
        Machine.named("vax")


def test_caches_as_systems_tell_them(tmp_path):
    for index, (level, kind, size) in enumerate(
        [(1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "2M"), (3, "Unified", "?")]
    ):
        folder = tmp_path / f"cpu{min(machine.affinity())}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    assert machine._caches(str(tmp_path)) == {1: 48 << 10, 2: 2 << 20}
    told = {"hw.perflevel0.l1dcachesize": 128 << 10, "hw.perflevel0.l2cachesize": 12 << 20}
    assert machine._apple_caches(told.get) == {1: 128 << 10, 2: 12 << 20}
    assert machine._apple_caches(lambda name: None) == {}


def test_hyper_threads_count_once(tmp_path):
    for cpu, core in enumerate([0, 1, 0, 1]):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text("0\n")
        (folder / "core_id").write_text(f"{core}\n")
    assert machine.physical_cores({0, 1, 2, 3}, str(tmp_path)) == [0, 1]
    assert machine.physical_cores({1, 2, 3}, str(tmp_path)) == [1, 2]
    assert machine.physical_cores({7, 8}, str(tmp_path)) == [7, 8]  # no topology known


def test_quota_of_both_kinds_of_control_groups(tmp_path):
    second = tmp_path / "two"
    (second / "a" / "b").mkdir(parents=True)
    (second / "a" / "cpu.max").write_text("150000 100000\n")
    (second / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (tmp_path / "member2").write_text("0::/a/b\n")
    assert machine.quota(str(second), str(tmp_path / "member2")) == 1.5
    first = tmp_path / "one" / "cpu" / "x"
    first.mkdir(parents=True)
    (first / "cpu.cfs_quota_us").write_text("200000\n")
    (first / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "member1").write_text("2:memory:/x\n1:cpu:/x\n")
    assert machine.quota(str(tmp_path / "one"), str(tmp_path / "member1")) == 2.0
    (tmp_path / "member1").write_text("1:cpuacct,cpu:/x\n")  # its folder may be cpu,cpuacct
    assert machine.quota(str(tmp_path / "one"), str(tmp_path / "member1")) == 2.0
    (first / "cpu.cfs_quota_us").write_text("-1\n")
    assert machine.quota(str(tmp_path / "one"), str(tmp_path / "member1")) is None
    assert machine.quota(str(tmp_path), str(tmp_path / "absent")) is None


def test_a_container_sees_the_limit_at_the_root_of_its_own_tree(tmp_path):
    """Its path leads outside of what is mounted there."""
    (tmp_path / "cpu.max").write_text("300000 100000\n")
    for path in ("/", "/../sibling", "/docker/0123"):
        (tmp_path / "member").write_text(f"0::{path}\n")
        assert machine.quota(str(tmp_path), str(tmp_path / "member")) == 3.0


def test_cores_are_those_of_the_mask_within_the_quota():
    cores = set(range(1000, 1008))  # of no known topology: each is a core
    assert machine.usable_cores(cores) == machine.usable_cores(cores, 8.0) == 8
    assert [machine.usable_cores(cores, q) for q in (0.1, 1.0, 1.4, 1.5, 2.5, 64.0)] == [
        1, 1, 1, 2, 3, 8,
    ]  # fmt: skip
    assert machine.usable_cores({1000}, 4.0) == 1


def test_devices_are_found_by_name():
    assert {"CPU", "NULL", "OPENCL"} <= set(device.names())
    assert device.get("cpu") is device.get("CPU")
    with pytest.raises(DeviceError, match="CPU"):
        device.get("ABACUS")


def test_null_device_computes_nothing():
    null = device.get("NULL")
    buffer = null.allocate(1 << 50)
    kernel = null.load(b"anything", "f")
    program = null.program([device.Launch(kernel, (device.Arg(0),), 5, "f")], 1)
    program.run([buffer])
    assert [time.name for time in program.times()] == ["f"]
