"""NVIDIA devices as the driver's own library tells them (NVML, by ctypes); an empty list where there is none."""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Gpu:
    """One visible device. `read_joules` counts from some moment in the past; None if the device does not tell."""

    name: str
    uuid: str
    read_joules: Callable[[], float] | None


@cache
def visible_gpus() -> tuple[Gpu, ...]:
    """The devices this process may use, by CUDA_VISIBLE_DEVICES (numbers or UUIDs), in that order."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        count = ctypes.c_uint()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return ()
    except (OSError, AttributeError):
        return ()
    return choose_visible([_gpu(nvml, index) for index in range(count.value)], os.environ.get("CUDA_VISIBLE_DEVICES"))


def choose_visible(gpus: list[Gpu], visible: str | None) -> tuple[Gpu, ...]:
    """Apply CUDA_VISIBLE_DEVICES: as CUDA does, the first name that fits no device ends the list."""
    if visible is None:
        return tuple(gpus)
    chosen = []
    for name in visible.split(","):
        fits = [gpu for index, gpu in enumerate(gpus) if name.strip() == str(index) or _has_uuid(gpu, name.strip())]
        if not fits:
            break
        chosen.append(fits[0])
    return tuple(chosen)


def _has_uuid(gpu: Gpu, name: str) -> bool:
    return name.startswith("GPU-") and gpu.uuid.startswith(name)


def _gpu(nvml: ctypes.CDLL, index: int) -> Gpu:
    handle = ctypes.c_void_p()
    nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))

    def text(function: Callable[..., int]) -> str:
        buffer = ctypes.create_string_buffer(96)
        function(handle, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    def read_joules() -> float:
        return _millijoules(nvml, handle) / 1e3

    tells = _millijoules(nvml, handle) > 0
    return Gpu(text(nvml.nvmlDeviceGetName), text(nvml.nvmlDeviceGetUUID), read_joules if tells else None)


def _millijoules(nvml: ctypes.CDLL, handle: ctypes.c_void_p) -> int:
    used = ctypes.c_ulonglong()
    nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(used))
    return used.value
