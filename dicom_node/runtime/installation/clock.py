"""Is this machine's clock kept right by NTP or the like? Asked of the kernel, which every time daemon tells."""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

from dicom_node.runtime.installation.found import Found, good, look

UNSYNCHRONISED = 0x40  # STA_UNSYNC of adjtimex(2)
WIDE_S = 1.0


class _Timex(ctypes.Structure):
    """struct timex; what comes after status is not used."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 32),
    ]


@dataclass(frozen=True)
class KernelClock:
    """What the kernel knows of its clock. error_s: it is off by no more than this, if it is synchronised."""

    synchronised: bool
    error_s: float


def kernel_clock() -> KernelClock | None:
    """None if the kernel does not say. Reading needs no privilege."""
    answer = _Timex()
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(answer))
    except AttributeError:
        return None
    if state < 0:
        return None
    return KernelClock(not answer.status & UNSYNCHRONISED, answer.maxerror / 1e6)


def clock(found: KernelClock | None) -> Iterator[Found]:
    """found: of `kernel_clock`."""
    part = "clock"
    if found is None:
        yield look(part, "the kernel does not say whether it is synchronised", "look at timedatectl")
    elif not found.synchronised:
        do = "switch NTP on (timedatectl set-ntp true, or chrony): times in reports and audit rows depend on it"
        yield look(part, "is not synchronised", do)
    elif found.error_s > WIDE_S:
        yield look(part, f"is synchronised, to within {found.error_s:.1f} s only", "look at chronyc tracking")
    else:
        yield good(part, f"is synchronised, to within {found.error_s * 1e3:.0f} ms")
