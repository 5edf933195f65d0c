"""A kernel's instructions as the machine takes them, put together one by one."""

import re
import struct
from dataclasses import dataclass, field

import numpy as np

WORDS = 12  # int32 words of an instruction: op, guard, negated, target, first operand, 7 modifiers
GUARD, NEGATED, TARGET, FIRST_OPERAND, MODIFIER = 1, 2, 3, 4, 5
LANES = 32
REGISTER_BYTES = {"pred": 4, "b16": 2, "b32": 4, "b64": 8, "f32": 4, "f64": 8, "u32": 4, "s32": 4}
PARAMETER_BYTES = 8 * LANES

# Instructions that are not lane by lane, as products.h and transfers.h number them.
SPECIAL_NAMES = (
    "bra", "ret", "bar", "warpbar", "ld", "st", "cp_async", "cp_commit", "cp_wait", "shfl",
    "ldmatrix", "stmatrix", "mma", "trap", "nop", "redux", "ld_param", "wgmma", "wgmma_commit",
    "wgmma_wait", "proxy_fence",
)  # fmt: skip
SPECIAL = {name: 1000 + number for number, name in enumerate(SPECIAL_NAMES)}


class UnknownInstructionError(Exception):
    """PTX that the machine does not know, with the kernel it stands in."""


@dataclass
class Program:
    """What a kernel was assembled to.

    A warp's registers are one slot of 32 lanes each, at offsets from a place in the middle:
    parameters, special registers and constants below it, which every program starts with, and
    the virtual registers of PTX above.
    """

    name: str
    instructions: np.ndarray  # (n, WORDS) int32
    operands: np.ndarray  # int32, offsets of slots
    text: list[str]  # of each instruction
    register_bytes: int  # of a warp
    fixed: np.ndarray  # the bytes below, without parameters
    parameters: list[tuple[int, int]]  # (offset, bytes) of each
    special: dict[str, int]  # offset of %tid.x and the like
    threads: int
    small_shared: int  # bytes of the smallest access
    small_global: int

    @property
    def opcodes(self) -> set[int]:
        return set(self.instructions[:, 0].tolist())


@dataclass
class Builder:
    """Registers, constants and instructions of a kernel while its text is read."""

    name: str
    parameters: dict[str, int]  # index of each
    widths: list[int]  # bytes of each
    registers: dict[str, tuple[int, int]] = field(default_factory=dict)  # (offset, bytes)
    size: int = 64
    fixed: int = 0
    constants: dict[tuple[int, int], int] = field(default_factory=dict)
    words: list[list[int]] = field(default_factory=list)
    operands: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    jumps: list[tuple[int, str]] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    small: dict[str, int] = field(default_factory=lambda: {"shared": 4, "global": 4})

    def __post_init__(self) -> None:
        self.fixed = PARAMETER_BYTES * len(self.parameters)

    def declare(self, name: str, width: int) -> None:
        self.registers[name] = (self.temporary(width), width)

    def temporary(self, width: int) -> int:
        found = self.size
        self.size += max(64, LANES * width)
        return found

    def parameter(self, name: str) -> int:
        return PARAMETER_BYTES * (self.parameters[name] - len(self.parameters))

    def _below(self, width: int) -> int:
        self.fixed += max(64, LANES * width)
        return -self.fixed

    def constant(self, value: int, width: int) -> int:
        key = (value & ((1 << 8 * max(width, 1)) - 1), width)
        if key not in self.constants:
            self.constants[key] = self._below(width)
        return self.constants[key]

    def register(self, name: str) -> int:
        return self.registers[name][0]

    def width(self, operand: str, otherwise: int) -> int:
        return self.registers.get(operand, (0, otherwise))[1]

    def operand(self, text: str, width: int) -> int:
        """The slot of a register, a special register, an address or a constant."""
        if text in self.registers:
            return self.register(text)
        if text.startswith("%"):  # tid and its kind
            if text not in self.special:
                self.special[text] = self._below(4)
            return self.special[text]
        if text in self.parameters:  # its address, which ld_param understands
            return self.constant(8 * self.parameters[text], width)
        if text == "global_smem":
            return self.constant(0, width)
        if text == "true" or (width == 0 and text == "-1"):
            return self.constant(0xFFFFFFFF, 4)
        if text == "false" or (width == 0 and text == "0"):
            return self.constant(0, 4)
        return self.constant(_number(text), width)

    def emit(
        self,
        guard: str | None,
        opcode: int,
        operands: list[int],
        modifiers: list[int],
        text: str,
        target: str | None = None,
    ) -> None:
        words = [0] * WORDS
        words[0], words[GUARD], words[FIRST_OPERAND] = opcode, -1, len(self.operands)
        if guard:
            words[NEGATED] = int(guard.startswith("!"))
            words[GUARD] = self.register(guard.lstrip("!"))
        for index, value in enumerate(modifiers):
            words[MODIFIER + index] = value
        self.operands += operands
        if target is not None:
            self.jumps.append((len(self.words), target))
        self.words.append(words)
        self.text.append(text)

    def program(self, threads: int) -> Program:
        self.emit(None, SPECIAL["ret"], [], [], "(end)")
        for index, target in self.jumps:
            self.words[index][TARGET] = self.labels[target]
        size = -(-self.fixed // 64) * 64
        fixed = np.zeros(size, np.uint8)
        for (value, width), place in self.constants.items():
            raw = struct.pack("<Q", value)[: max(width, 1)]
            start = size + place
            fixed[start : start + LANES * len(raw)] = np.frombuffer(raw * LANES, np.uint8)
        return Program(
            name=self.name,
            instructions=np.array(self.words, np.int32),
            operands=np.array([*self.operands, 0], np.int32),
            text=self.text,
            register_bytes=-(-self.size // 64) * 64,
            fixed=fixed,
            parameters=[
                (PARAMETER_BYTES * (index - len(self.widths)), width)
                for index, width in enumerate(self.widths)
            ],
            special=self.special,
            threads=threads,
            small_shared=self.small["shared"],
            small_global=self.small["global"],
        )


def _number(text: str) -> int:
    if re.match(r"0[fFdD][0-9a-fA-F]+$", text):
        return int(text[2:], 16)
    return int(text.rstrip("U"), 0)
