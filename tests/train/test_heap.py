import ctypes
import platform

import psutil
import pytest

from fastkd.train.heap import give_back

BLOCK, COUNT = 1 << 12, 1 << 14  # bytes, and blocks: 64 MiB in all


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone takes memory back")
def test_pieces_of_the_heap_go_back():
    heap = ctypes.CDLL(None)
    heap.malloc.restype, heap.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    resident = psutil.Process().memory_info
    blocks = [heap.malloc(BLOCK) for _ in range(COUNT)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    # What is freed lies between blocks that stay, four of five.
    for place, block in enumerate(blocks):
        if place % 5:
            heap.free(block)
    before = resident().rss
    give_back()
    assert before - resident().rss > BLOCK * COUNT / 2
    for block in blocks[::5]:
        heap.free(block)
