"""Root, for whom no rights hold, as a user for whom they do."""

import ctypes
import os

_VERSION = 0x20080522  # of Linux's capset
_OVERRIDES = 0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def obey_rights() -> None:
    """Gives up, for this process, what lets root read and write all."""
    if os.geteuid() != 0:
        return
    library = ctypes.CDLL(None, use_errno=True)
    header, data = _Header(_VERSION, 0), (_Data * 2)()
    if library.capget(ctypes.byref(header), ctypes.byref(data)):
        raise OSError(ctypes.get_errno(), "capget")
    data[0].effective &= ~_OVERRIDES
    data[0].permitted &= ~_OVERRIDES
    data[0].inheritable &= ~_OVERRIDES
    if library.capset(ctypes.byref(header), ctypes.byref(data)):
        raise OSError(ctypes.get_errno(), "capset")
