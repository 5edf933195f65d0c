"""From the text of a kernel's PTX to its program."""

import re
from collections.abc import Callable

from tests.compiled.executor.alu import OPCODE, WIDTH, parts
from tests.compiled.executor.program import (
    REGISTER_BYTES,
    SPECIAL,
    Builder,
    Program,
    UnknownInstructionError,
)

TOKEN = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
STATEMENT = re.compile(r"(?:@(!?)\s*(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)
ENTRY = re.compile(r"\.visible \.entry (.*?)\n\{\n(.*?)// -- End function", re.S)
PARAMETER = re.compile(r"\.param \.(\w+)(?: \.ptr[^,\n]*?)? (\w+)[,\n]")
SHUFFLES = {"up": 0, "down": 1, "bfly": 2, "idx": 3}
REDUCTIONS = (
    "add.s32",
    "min.u32",
    "max.u32",
    "min.s32",
    "max.s32",
    "and.b32",
    "or.b32",
    "xor.b32",
)
MATRIX_TYPES = {"bf16": 0, "f16": 1, "tf32": 2}


def assemble(ptx: str) -> Program:
    """The program of the one kernel in `ptx`; UnknownInstructionError names what cannot be run."""
    entry = ENTRY.search(ptx)
    if entry is None:
        raise UnknownInstructionError("no kernel in this text")
    head, body = entry.groups()
    found = PARAMETER.findall(head + "\n")
    widths = [max(_bits(kind) // 8, 4) for kind, _ in found]
    name = head.split("(")[0].strip()
    builder = Builder(name, {parameter: i for i, (_, parameter) in enumerate(found)}, widths)
    for kind, prefix, count in re.findall(r"\.reg \.(\w+)\s+(%\w+?)<(\d+)>", body):
        for index in range(int(count)):
            builder.declare(f"{prefix}{index}", 0 if kind == "pred" else REGISTER_BYTES[kind])
    for line in body.splitlines():
        line = line.split("//")[0].strip()
        label = re.match(r"(\$?\w+):", line)
        if label:
            builder.labels[label[1]] = len(builder.words)
            line = line[label.end() :].strip()
        if line.startswith("."):
            continue
        for statement in line.split(";"):
            if statement.strip() not in ("", "{", "}"):
                _assemble_statement(builder, statement.strip())
    threads = re.search(r"\.reqntid (\d+)", head)
    return builder.program(int(threads[1]) if threads else 32)


def _bits(kind: str) -> int:
    return int(re.sub(r"\D", "", kind))


def _address(text: str) -> tuple[str, int]:
    """[base+offset]"""
    match = re.fullmatch(r"\[([%\w$]+?)(?:\+(-?\w+))?\]", text.replace(" ", ""))
    if match is None:
        raise ValueError(text)
    return match[1], int(match[2], 0) if match[2] else 0


def _braces(text: str) -> list[str]:
    return [part.strip() for part in text[1:-1].split(",")] if text.startswith("{") else [text]


class _Statement:
    """One instruction of the text: what it is, and how it is written into the program."""

    def __init__(self, builder: Builder, text: str) -> None:
        match = STATEMENT.match(text)
        if match is None:
            raise ValueError(text)
        self.builder, self.text = builder, text
        self.guard = match[1] + match[2] if match[2] else None
        self.opcode = match[3]
        self.operands = [token.strip() for token in TOKEN.findall(match[4])]

    def emit(self, kind: str | int, operands: list[int], *modifiers: int) -> None:
        opcode = SPECIAL[kind] if isinstance(kind, str) else kind
        self.builder.emit(self.guard, opcode, operands, list(modifiers), self.text)

    def all(self, width: int) -> list[int]:
        """Slots of all operands, those within braces one after another."""
        return [self.builder.operand(x, width) for o in self.operands for x in _braces(o)]

    def lane_by_lane(self) -> None:
        builder, (first, *rest) = self.builder, self.operands
        destination, sources, _ = parts(self.opcode)
        if len(rest) != len(sources) or builder.width(first, -1) != WIDTH[destination]:
            raise ValueError("operands of another number or width")
        values = []
        for operand, kind in zip(rest, sources, strict=True):
            width, have = WIDTH[kind], builder.width(operand, WIDTH[kind])
            place = builder.operand(operand, width)
            if have < width:
                raise ValueError("an operand that is too narrow")
            if have > width:  # an instruction may read the lower part of a register
                part, narrow = builder.temporary(width), OPCODE[f"cvt.u{8 * width}.u{8 * have}"]
                builder.emit(None, narrow, [part, place], [], self.text)
                place = part
            values.append(place)
        self.emit(OPCODE[self.opcode], [builder.register(first), *values])

    def move_braces(self) -> None:
        """mov that packs or unpacks registers."""
        builder, (to, source) = self.builder, self.operands
        bits = _bits(self.opcode)
        if source.startswith("{"):
            pieces = _braces(source)
            name = "pack" if len(pieces) == 2 else "pack4"
            each = bits // 8 // len(pieces)
            values = [builder.operand(piece, each) for piece in pieces]
            self.emit(OPCODE[f"{name}.b{bits}"], [builder.register(to), *values])
            return
        value = builder.operand(source, bits // 8)
        for part, piece in zip(("low", "high"), _braces(to), strict=True):
            if piece != "_":
                self.emit(OPCODE[f"{part}.b{bits}"], [builder.register(piece), value])

    def two_halves(self) -> None:
        """setp of both halves of a register, to two predicates."""
        builder, (flags, *rest) = self.builder, self.operands
        sources = [builder.operand(operand, 4) for operand in rest]
        for part, flag in zip(("low", "high"), flags.split("|"), strict=True):
            halves = [builder.temporary(2) for _ in sources]
            for half, source in zip(halves, sources, strict=True):
                self.emit(OPCODE[f"{part}.b32"], [half, source])
            opcode = OPCODE[self.opcode.removesuffix("x2")]
            self.emit(opcode, [builder.register(flag.strip()), *halves])

    def load_parameter(self) -> None:
        builder, (to, source) = self.builder, self.operands
        base, offset = _address(source)
        kind = self.opcode.split(".")[-1]
        place, width = builder.registers[to]
        if offset or _bits(kind) == 8:
            raise ValueError("part of a parameter")
        if base in builder.registers:
            if _bits(kind) != 8 * width:
                raise ValueError("part of a parameter")
            first = builder.parameter(next(iter(builder.parameters)))
            self.emit("ld_param", [place, builder.register(base), first], width)
            return
        sign = "s" if kind[0] == "s" else "u"
        opcode = OPCODE[f"cvt.u{8 * width}.{sign}{_bits(kind)}"]
        self.emit(opcode, [place, builder.parameter(base)])

    def memory(self) -> None:
        builder, store = self.builder, self.opcode.startswith("st")
        space = "shared" if ".shared" in self.opcode else "global"
        kind = self.opcode.split(".")[-1]
        each = _bits(kind) // 8
        where, data = self.operands[:2] if store else self.operands[1::-1]
        base, offset = _address(where)
        address_width = builder.width(base, 8 if space == "global" else 4)
        pieces = _braces(data)
        values = [builder.operand(piece, each) for piece in pieces]
        builder.small[space] = min(builder.small[space], each)
        self.emit(
            "st" if store else "ld",
            [builder.operand(base, address_width), *values],
            int(space == "shared"),
            each,
            len(pieces),
            builder.width(pieces[0], each),
            int(kind[0] == "s"),
            offset,
            address_width,
        )

    def branch(self) -> None:
        self.builder.emit(self.guard, SPECIAL["bra"], [], [], self.text, self.operands[0])

    def barrier(self) -> None:
        count = int(self.operands[1], 0) if len(self.operands) > 1 else 0
        self.emit("bar", [], int(self.operands[0], 0), count)

    def copy(self) -> None:
        builder, size = self.builder, int(self.operands[2], 0)
        (to, to_offset), (source, source_offset) = map(_address, self.operands[:2])
        amount = builder.constant(size, 4)
        if len(self.operands) > 3:
            amount = builder.operand(self.operands[3], 4)
        places = [builder.operand(to, 4), builder.operand(source, 8), amount]
        self.emit("cp_async", places, size, to_offset, source_offset)

    def wait(self) -> None:
        kind = "wgmma_wait" if self.opcode.startswith("wgmma") else "cp_wait"
        self.emit(kind, [], int(self.operands[0], 0) if self.operands else 0)

    def shuffle(self) -> None:
        builder, (to, *rest) = self.builder, self.operands
        destination, _, flag = to.partition("|")
        places = [builder.operand(operand, 4) for operand in rest[:3]]
        place = builder.register(flag.strip()) if flag else 0
        mode = SHUFFLES[self.opcode.split(".")[2]]
        places = [builder.register(destination.strip()), *places, place]
        self.emit("shfl", places, mode, int(bool(flag)))

    def matrices(self) -> None:
        builder, store = self.builder, self.opcode.startswith("st")
        where, data = self.operands if store else self.operands[::-1]
        base, offset = _address(where)
        places = [builder.operand(base, 4), *map(builder.register, _braces(data))]
        count, transposed = len(places) - 1, int(".trans" in self.opcode)
        self.emit("stmatrix" if store else "ldmatrix", places, count, transposed, offset)

    def mma(self) -> None:
        shape = re.fullmatch(
            r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col\.f32\.(\w+)\.\2\.f32", self.opcode
        )
        if shape is None:
            raise ValueError("a product of another shape or type")
        self.emit("mma", self.all(4), MATRIX_TYPES[shape[2]], int(shape[1]))

    def group_product(self) -> None:
        shape = re.fullmatch(
            r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k\d+\.f32\.(\w+)\.\2", self.opcode
        )
        sums, a, b, adds, *signs = self.operands
        if shape is None or signs[:2] != ["1", "1"]:
            raise ValueError("a product of another shape or type")
        builder, registers = self.builder, a.startswith("{")
        turned = [int(sign) for sign in signs[2:]]  # of b, and of a before it in shared memory
        across = [0, *turned] if registers else turned or [0, 0]
        places = [
            *map(builder.register, _braces(sums)),
            *(builder.operand(x, 4 if registers else 8) for x in _braces(a)),
            builder.operand(b, 8),
            builder.operand(adds, 0),
        ]
        columns = int(shape[1])
        self.emit("wgmma", places, MATRIX_TYPES[shape[2]], columns, int(registers), *across)

    def reduction(self) -> None:
        kind = self.opcode.removeprefix("redux.sync.").replace("add.u32", "add.s32")
        self.emit("redux", self.all(4)[:2], REDUCTIONS.index(kind))

    def plain(self, kind: str) -> None:
        self.emit(kind, [])


# What an opcode starts with, and how it is assembled; the first that fits.
FORMS: list[tuple[str, Callable[[_Statement], None]]] = [
    ("ld.param", _Statement.load_parameter),
    ("ld.", _Statement.memory),
    ("st.", _Statement.memory),
    ("bra", _Statement.branch),
    ("ret", lambda s: s.plain("ret")),
    ("exit", lambda s: s.plain("ret")),
    ("bar.warp.sync", lambda s: s.plain("warpbar")),
    ("bar.sync", _Statement.barrier),
    ("barrier.sync", _Statement.barrier),
    ("cp.async.commit_group", lambda s: s.plain("cp_commit")),
    ("cp.async.wait", _Statement.wait),
    ("cp.async.c", _Statement.copy),
    ("shfl.sync", _Statement.shuffle),
    ("ldmatrix.sync.aligned.m8n8.", _Statement.matrices),
    ("stmatrix.sync.aligned.m8n8.", _Statement.matrices),
    ("mma.sync.aligned.", _Statement.mma),
    ("wgmma.mma_async.", _Statement.group_product),
    ("wgmma.fence.", lambda s: s.plain("nop")),
    ("wgmma.commit_group.", lambda s: s.plain("wgmma_commit")),
    ("wgmma.wait_group.", _Statement.wait),
    ("fence.proxy.async", lambda s: s.plain("proxy_fence")),
    ("redux.sync.", _Statement.reduction),
    ("trap", lambda s: s.plain("trap")),
]


def _assemble_statement(builder: Builder, text: str) -> None:
    try:
        statement = _Statement(builder, text)
        if statement.opcode.startswith("mov.") and any("{" in o for o in statement.operands):
            statement.move_braces()
        elif statement.opcode in OPCODE:
            statement.lane_by_lane()
        elif statement.opcode.startswith("setp.") and statement.opcode.endswith("f16x2"):
            statement.two_halves()
        else:
            form = next(form for start, form in FORMS if statement.opcode.startswith(start))
            form(statement)
    except (KeyError, ValueError, IndexError, StopIteration) as error:
        why = f" ({error})" if str(error) else ""
        raise UnknownInstructionError(
            f"{builder.name}: unknown instruction `{text}`{why}"
        ) from error
