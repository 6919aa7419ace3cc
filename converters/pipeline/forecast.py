"""How fast this machine multiplies, for a forecast's hours."""

from pathlib import Path


def machine_rate(file: Path) -> float:
    """FLOP/s of the best matrix product that is found in a second, where and in the number format that a pipeline's file says."""
    import torch

    from ..bench.ceiling import measure_ceiling
    from ..loading import Dtype, pick_device
    from ..threads import limit_threads
    from .file import read_pipeline

    parts = read_pipeline(file).parts
    device = torch.device(pick_device(parts.device))
    usual = Dtype.FLOAT32 if device.type == "cpu" else Dtype.BFLOAT16
    dtype = usual if parts.dtype == "auto" else Dtype(parts.dtype)
    limit_threads()
    return measure_ceiling(device, getattr(torch, dtype), 512, 1024, 1024).flops_per_second
