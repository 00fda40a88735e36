"""Read free memory and this process's peak memory from the operating system: Linux, macOS and Windows."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from zoo.lazy import torch


def read_free_memory(device: torch.device) -> int | None:
    """Read how many bytes can still be allocated on a device; None if unknown (or on meta). On CUDA, memory that torch
    has reserved for tensors counts as free."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    known = [limit for limit in (read_available_memory(), read_cgroup_room()) if limit is not None]
    return min(known) if known else None


def read_available_memory() -> int | None:
    """Read how many bytes can still be allocated without swapping; None if unknown."""
    info = Path("/proc/meminfo")
    if info.exists():
        return read_meminfo(info.read_text())
    if sys.platform == "darwin":
        return read_vm_stat(_output_of("vm_stat"))
    if sys.platform == "win32":
        status = WindowsMemory()
        status.length = ctypes.sizeof(status)
        done = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
        return status.available_physical if done else None
    names = getattr(os, "sysconf_names", {})
    if "SC_AVPHYS_PAGES" in names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def read_meminfo(text: str) -> int | None:
    """Read `MemAvailable` from Linux' /proc/meminfo, in bytes."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def read_vm_stat(text: str) -> int | None:
    """Sum the pages that macOS' vm_stat counts as free or reclaimable, in bytes."""
    size = re.search(r"page size of (\d+) bytes", text)
    pages = re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)\.", text, re.MULTILINE)
    return int(size[1]) * sum(map(int, pages)) if size and pages else None


def _output_of(command: str) -> str:
    try:
        return subprocess.run([command], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


class WindowsMemory(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total_physical", ctypes.c_uint64),
        ("available_physical", ctypes.c_uint64),
        ("total_page_file", ctypes.c_uint64),
        ("available_page_file", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended_virtual", ctypes.c_uint64),
    )


def read_cgroup_room() -> int | None:
    """Read how many bytes a container's memory limit leaves free (cgroup v2); None without a limit."""
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if not limit.exists() or not used.exists() or limit.read_text().strip() == "max":
        return None
    return max(0, int(limit.read_text()) - int(used.read_text()))


def read_peak_memory(device: torch.device) -> int | None:
    """Read the peak memory so far in bytes: of the CUDA device, or of this process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_used_memory(device: torch.device) -> int | None:
    """Read how many bytes training takes: the CUDA peak so far, or the resident memory now (its peak if unknown)."""
    statm = Path("/proc/self/statm")
    if device.type == "cuda" or not statm.exists():
        return read_peak_memory(device)
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def begin_peak_memory(device: torch.device) -> int | None:
    """Reset the peak. Returns the bytes in use now, for `read_peak_since`; None if the peak cannot be reset. A process'
    peak can be reset only on Linux (/proc/self/clear_refs, proc(5))."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    importlib.import_module("torch._dynamo")  # an optimizer would import its 55 MB later: memory, but none of a run's
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _read_allocated("VmRSS")


def read_peak_since(device: torch.device, before: int) -> int | None:
    """Read the peak since `begin_peak_memory`, minus `before`, the bytes in use then. None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) - before
    peak = _read_allocated("VmHWM")
    return None if peak is None else peak - before


def _read_allocated(total: str) -> int | None:
    """Read the resident bytes of this process, now (`VmRSS`) or at their peak (`VmHWM`), without mapped files
    (libraries and data, loaded page by page at their first use). None if unknown."""
    text = Path("/proc/self/status").read_text()
    sizes = {name: 1024 * int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return sizes[total] - sizes.get("RssFile", 0) if total in sizes else None


def release_memory() -> None:
    """Return freed memory to the system after a run, including memory retained by `keep_memory`."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def keep_memory() -> None:
    """Let this process keep the memory that it frees, for the rest of its life.

    By default glibc returns each large tensor to the system when it is freed, and the next one is zeroed page by page:
    6 to 17% of a training step on a CPU. A forward pass over 1,024 tokens (12 layers of width 768, float32, one thread)
    has 90,000 page faults, which take 0.2 of 1.9 s of processor time; 3,000 tokens through the engine have 340,000,
    which take 0.8 of 6.8 s. If memory is kept there are no page faults. The next pass needs the same sizes again, so
    the peak does not rise.

    Only commands of the command line call this, because it changes the whole process.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_max, 0)  # allocate everything on the heap
    libc.mallopt(m_trim_threshold, -1)  # never shrink it
    libc.mallopt(m_top_pad, 64 << 20)  # grow it by 64 MiB at a time
