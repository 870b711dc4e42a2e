"""What a figure was measured on: the processor with its instruction sets, or the GPU, and the
versions.
"""

import os
import platform
import re
import resource
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


# Flags of /proc/cpuinfo that decide how fast products are, and the names people know them by.
INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX int8",
}


@dataclass(frozen=True)
class Machine:
    """One machine; `name` is its column in tables."""

    name: str
    instruction_sets: tuple[str, ...]
    cores: int
    torch: str

    def __str__(self) -> str:
        sets = f" ({', '.join(self.instruction_sets)})" if self.instruction_sets else ""
        return f"{self.name}{sets}, {self.cores} cores, torch {self.torch}"

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def this_machine() -> Machine:
    """The GPU where there is one, else the processor."""
    cores = usable_cores()
    if torch.cuda.is_available():
        return Machine(torch.cuda.get_device_name(), (), cores, torch.__version__)
    fields = read_cpuinfo()
    name = fields.get("model name") or platform.processor() or platform.machine()
    # virtual machines often hide the exact name; family and model tell the design
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    flags = set(fields.get("flags", "").split())
    sets = tuple(label for flag, label in INSTRUCTION_SETS.items() if flag in flags)
    return Machine(name, sets, cores, torch.__version__)


def usable_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_cpuinfo(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The fields of the first processor; empty where the system has no such file."""
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def peak_memory() -> float:
    """The most memory that this process has had so far, in MiB.

    Where the system tells it (Linux), that of this process alone: `getrusage` of a process that was
    just started begins with the memory of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if peak:
            return int(peak[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def load_average() -> float:
    """Programs that wanted a processor in the last minute, these measurements among them; 0 where
    the system does not tell. More than there are cores: others were at work as well.
    """
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0
