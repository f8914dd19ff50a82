"""What kind of CPU this is: instructions, vector width, caches, and how many cores may be used.

`Machine.host()` looks; `Machine.named("avx2")` makes one up, so that code can be generated and
tested for a machine that is not at hand.
"""
from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import llvmlite

from muladd.cache import cache
from muladd.errors import DeviceError

_CHANGES = ("cpu MHz", "bogomips")  # what Linux says of a processor that is not always the same


@dataclass(frozen=True)
class Machine:
    """A CPU as a code generator sees it. Sizes are bytes; caches are per core except l3."""

    triple: str
    cpu: str  # LLVM's name of the processor
    features: str  # LLVM's feature string, "+avx2,+fma,..."
    vector_bits: int
    vector_registers: int
    fma: bool  # fused multiply-add in hardware
    vnni: bool  # dot product of four int8 pairs into int32
    bf16_dot: bool  # dot product of two bfloat16 pairs into float32
    float16: bool  # arithmetic (not just conversion) on float16
    l1: int
    l2: int
    l3: int
    cores: int  # physical cores this process may use
    # multiply-adds under way that keep all multipliers of a core busy: their number times the
    # cycles that one takes
    chains: int = 8
    # bytes of the narrowest values of which a vector may be loaded in part, by a mask; 0: of none
    masked: int = 4
    line: int = 64  # what a cache moves at once

    def lanes(self, itemsize: int) -> int:
        """Values of so many bytes in one vector."""
        return self.vector_bits // (8 * itemsize)

    @property
    def float_lanes(self) -> int:
        """float32 values in one vector."""
        return self.lanes(4)

    @property
    def scale(self) -> int:
        """How many times 128 bits a scalable vector (SVE) is known to have. Code for a number runs
        only on machines of that number; 0: on all, as it does not use more than 128."""
        scalable = "+sve" in self.features.split(",") and self.vector_bits > 128
        return self.vector_bits // 128 if scalable else 0

    @property
    def dot(self) -> str:
        """Its instructions that multiply bytes and add neighbours: into int32 at once, vnni (bytes
        without a sign by bytes with one) or sdot; ssse3, avx2, avx512 for two neighbours into 16
        bits; or none."""
        if not self.triple.startswith("x86_64"):
            return "sdot" if self.vnni else ""
        if self.vnni:
            return "vnni"
        return {128: "ssse3", 256: "avx2", 512: "avx512"}.get(self.vector_bits, "")

    @property
    def stream(self) -> int:
        """Bytes of a result from which on it should go past the caches, if nobody reads it soon:
        then it would take an eighth of the last cache, which all share, or all of a core's own."""
        return max(self.l3 // 8, self.l2)

    @property
    def chunks(self) -> int:
        """Chunks of a grid that keep all threads busy to the end: four for each."""
        return 4 * self.cores

    @functools.cached_property
    def key(self) -> str:
        """What compiled code depends on, and so its schedules do; for cache keys."""
        return "|".join(str(getattr(self, f.name)) for f in fields(self))

    @staticmethod
    def host() -> Machine:
        return _host()

    @staticmethod
    def named(name: str) -> Machine:
        """A typical machine of a kind, one of NAMED."""
        if name not in NAMED:
            raise DeviceError(f"Machine.named: given {name!r}, expected one of {', '.join(NAMED)}")
        return NAMED[name]


_TYPICAL = Machine(
    triple="x86_64-unknown-linux-gnu", cpu="x86-64-v3", features="", vector_bits=256,
    vector_registers=16, fma=True, vnni=False, bf16_dot=False, float16=False,
    l1=32 << 10, l2=512 << 10, l3=16 << 20, cores=4,
)  # fmt: skip
_AVX512 = replace(
    _TYPICAL, cpu="x86-64-v4", features="+avx512vnni,+avx512bf16", vector_bits=512,
    vector_registers=32, vnni=True, bf16_dot=True, l2=1 << 20, masked=1,
)  # fmt: skip
_ARM = replace(
    _TYPICAL, triple="aarch64-unknown-linux-gnu", cpu="neoverse-n1", features="+neon,+dotprod",
    vector_bits=128, vector_registers=32, vnni=True, float16=True, l1=64 << 10, l2=1 << 20,
    masked=0,
)  # fmt: skip
_SVE = replace(
    _ARM, cpu="neoverse-v1", features="+neon,+dotprod,+sve,+bf16,+i8mm", bf16_dot=True, masked=1,
)  # fmt: skip
NAMED = {
    "sse": replace(_TYPICAL, cpu="x86-64-v2", vector_bits=128, fma=False, masked=0),
    "avx2": _TYPICAL,
    "avx512": _AVX512,
    "zen4": replace(_AVX512, cpu="znver4", features="", l3=32 << 20),
    "sapphire rapids": replace(
        _AVX512, cpu="sapphirerapids", features="", float16=True, l1=48 << 10, l2=2 << 20,
        l3=105 << 20, cores=48,
    ),
    "neon": _ARM,
    "apple": replace(
        _ARM, triple="arm64-apple-macosx14.0.0", cpu="apple-m1", features="", l1=128 << 10,
        l2=12 << 20, l3=0, chains=16, line=128,
    ),
    "sve": replace(_SVE, vector_bits=256),  # Graviton3
    "sve128": replace(_SVE, cpu="neoverse-v2", l2=2 << 20, l3=36 << 20, chains=16),  # Graviton4
}  # fmt: skip


@functools.cache
def _host() -> Machine:
    triple, cpu, features = _processor()
    has = {name[1:] for name in features.split(",") if name.startswith("+")}
    arm = triple.startswith(("aarch64", "arm64"))
    if arm:
        bits, registers = 128, 32  # SVE is used through NEON-width code: its width is not asked for
    elif "avx512f" in has and "avx512vl" in has:
        bits, registers = 512, 32
    else:
        bits, registers = (256 if "avx2" in has else 128), 16
    caches = _caches() if "apple" not in triple else _apple_caches(_system_control)
    return Machine(
        triple=triple, cpu=cpu, features=features,
        vector_bits=bits, vector_registers=registers, fma=arm or "fma" in has,
        vnni=bool(has & {"avx512vnni", "avxvnni", "dotprod"}),
        bf16_dot=bool(has & {"avx512bf16", "bf16"}),
        float16=bool(has & {"avx512fp16", "fullfp16"}),
        l1=caches.get(1, _TYPICAL.l1), l2=caches.get(2, _TYPICAL.l2), l3=caches.get(3, 0),
        cores=usable_cores(), chains=16 if arm else 8, line=128 if "apple" in triple else 64,
        masked=1 if has & {"sve", "avx512bw"} else 4 if "avx" in has else 0,
    )  # fmt: skip


def _processor() -> tuple[str, str, str]:
    """(triple, name, features) of this process and its processor, as LLVM calls them. What Linux
    says of a processor is the key to what LLVM said: so it need not be loaded to say it again."""
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:
        first = ""
    told = [line for line in first.splitlines() if not line.startswith(_CHANGES)]
    who = "\n".join([*told, platform.machine(), platform.release(), str(struct.calcsize("P")),
                     llvmlite.__version__])  # fmt: skip
    key = hashlib.sha256(who.encode()).digest()
    if first and (known := cache().get("machine", key)):
        triple, cpu, features = known.decode().split("\n", 2)
        return triple, cpu, features
    import llvmlite.binding as llvm

    found = (llvm.get_process_triple(), llvm.get_host_cpu_name(),
             llvm.get_host_cpu_features().flatten())  # fmt: skip
    if first:
        cache().put("machine", key, "\n".join(found).encode())
    return found


def _caches(folder: str = "/sys/devices/system/cpu") -> dict[int, int]:
    """Bytes of the data cache at each level of the first usable CPU."""
    sizes: dict[int, int] = {}
    for index in Path(folder).glob(f"cpu{min(affinity())}/cache/index*"):
        try:
            text = (index / "size").read_text().strip()
            if (index / "type").read_text().strip() == "Instruction":
                continue
            factor = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
            sizes[int((index / "level").read_text())] = int(text.rstrip("KM")) * factor
        except (OSError, ValueError):
            continue  # a machine which does not tell; the typical sizes are used
    return sizes


def _apple_caches(control: Callable[[str], int | None]) -> dict[int, int]:
    """The same as macOS tells it, of the fast cores; what they share is their second cache."""
    names = {1: "hw.perflevel0.l1dcachesize", 2: "hw.perflevel0.l2cachesize"}
    return {level: size for level, name in names.items() if (size := control(name))}


def _system_control(name: str) -> int | None:
    """A number that macOS knows of the machine by a name, if it does."""
    number, size = ctypes.c_int64(0), ctypes.c_size_t(8)
    failed = ctypes.CDLL(None).sysctlbyname(
        name.encode(), ctypes.byref(number), ctypes.byref(size), None, ctypes.c_size_t(0)
    )
    return None if failed else number.value


def affinity() -> set[int]:
    """The logical CPUs on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(allowed: set[int], folder: str = "/sys/devices/system/cpu") -> list[int]:
    """One logical CPU for each physical core among the allowed ones, in ascending order.

    Two hyper-threads share one set of multipliers, so a second thread on a core gains nothing.
    """
    chosen: dict[str, int] = {}
    for cpu in sorted(allowed):
        try:
            topology = Path(folder, f"cpu{cpu}", "topology")
            core = (topology / "physical_package_id").read_text().strip() + ":"
            core += (topology / "core_id").read_text().strip()
        except OSError:
            core = f"cpu {cpu}"
        chosen.setdefault(core, cpu)
    return sorted(chosen.values())


def quota(root: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> float | None:
    """CPUs' worth of time that control groups grant this process; None if they set no limit."""
    limits: list[float] = []
    try:
        lines = Path(membership).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = Path(root, controllers) if controllers else Path(root)
        if not base.is_dir():  # mounted under another order of its controllers' names
            base = Path(root, "cpu")
        here = base / path.strip("/")
        for place in (here, *here.parents):  # a parent's limit binds its children
            limit = _quota_of(place)
            if limit is not None:
                limits.append(limit)
            if place == base:
                break
    return min(limits, default=None)


def _quota_of(place: Path) -> float | None:
    try:
        if (place / "cpu.max").exists():  # control groups, version 2
            most, period = (place / "cpu.max").read_text().split()
        else:
            most = (place / "cpu.cfs_quota_us").read_text().strip()
            period = (place / "cpu.cfs_period_us").read_text().strip()
        return None if most in ("max", "-1") else int(most) / int(period)
    except (OSError, ValueError):
        return None


def usable_cores(allowed: set[int] | None = None, granted: float | None = None) -> int:
    """Physical cores within the affinity mask and the control group's quota, at least 1; halves
    of a core count as one. Both are this process' own unless given."""
    cores = len(physical_cores(affinity() if allowed is None else allowed))
    granted = quota() if granted is None else granted
    return max(1, cores if granted is None else min(cores, int(granted + 0.5)))


def memory_bytes(root: str = "/sys/fs/cgroup") -> int:
    """Bytes of memory this process may use: the machine's, or the control group's if less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        total = 1 << 62
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(root, name).read_text()))
        except (OSError, ValueError):
            continue
    return total


def description() -> str:
    """One line for people: processor, vector width, cores, caches."""
    machine = Machine.host()
    return (f"{machine.cpu} ({platform.machine()}), {machine.vector_bits}-bit vectors, "
            f"{machine.cores} cores, L1 {machine.l1 >> 10} KiB, L2 {machine.l2 >> 10} KiB, "
            f"L3 {machine.l3 >> 20} MiB")  # fmt: skip
