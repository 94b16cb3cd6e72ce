"""The roofline: no flow is faster than its bytes over a bandwidth, or its operations over a rate. No torch.

References
----------
Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a computation cannot do without.

    Attributes
    ----------
    operations
        Floating-point operations; a multiply-add is two.
    bytes
        The fewest that must move between the processor and its memory.
    """

    operations: int = 0
    bytes: int = 0

    def __add__(self, other: Work) -> Work:
        """Both, one after the other."""
        return Work(operations=self.operations + other.operations, bytes=self.bytes + other.bytes)


@dataclass(frozen=True, kw_only=True)
class DeviceRates:
    """What a device was measured to do at best.

    Attributes
    ----------
    copy_bandwidth
        Bytes per second of a large copy, read and written bytes both counted.
    arithmetic_rate
        Operations per second of a float32 matrix product.
    """

    copy_bandwidth: float
    arithmetic_rate: float

    def floor(self, work: Work) -> float:
        """Seconds below which `work` cannot be done at these rates, however well the two overlap."""
        return max(work.bytes / self.copy_bandwidth, work.operations / self.arithmetic_rate)

    def binding(self, work: Work) -> Literal["bandwidth", "arithmetic"]:
        """Which of the two rates sets the floor of `work`."""
        slower = work.bytes / self.copy_bandwidth >= work.operations / self.arithmetic_rate
        return "bandwidth" if slower else "arithmetic"
