"""Instructions that work on registers lane by lane, as C++ expressions of a, b, c and d.

`UNITS` maps, unit by unit, a PTX opcode to "destination = sources : expression". Types: u16 s16
u32 s32 u64 s64 f32, and p for predicates. Each unit is compiled by itself when a program first
needs it, so that nobody waits for what no kernel uses.
"""

Rules = dict[str, str]

EQUALITY = (("eq", "=="), ("ne", "!="))
ORDER = (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="))
UNSIGNED_ORDER = (("lo", "<"), ("ls", "<="), ("hi", ">"), ("hs", ">="))
# "u" relations are true of NaN: the contrary of the opposite one.
UNORDERED = (("neu", "=="), ("geu", "<"), ("gtu", "<="), ("leu", ">"), ("ltu", ">="))


def integers(bits: int) -> Rules:
    u, s = f"u{bits}", f"s{bits}"
    rules: Rules = {}
    for name, kind in ((u, u), (s, s)):
        rules |= {
            f"add.{name}": f"{u} = {u} {u} : a + b",
            f"sub.{name}": f"{u} = {u} {u} : a - b",
            f"mul.lo.{name}": f"{u} = {u} {u} : a * b",
            f"mad.lo.{name}": f"{u} = {u} {u} {u} : a * b + c",
            f"min.{name}": f"{kind} = {kind} {kind} : a < b ? a : b",
            f"max.{name}": f"{kind} = {kind} {kind} : a > b ? a : b",
            f"div.{name}": f"{kind} = {kind} {kind} : safe_div<{kind}>(a, b)",
            f"rem.{name}": f"{kind} = {kind} {kind} : safe_rem<{kind}>(a, b)",
        }
        for relation, sign in (*EQUALITY, *ORDER):
            rules[f"setp.{relation}.{name}"] = f"p = {kind} {kind} : a {sign} b"
    for relation, sign in (*EQUALITY, *UNSIGNED_ORDER):
        for name in (u, f"b{bits}"):
            rules[f"setp.{relation}.{name}"] = f"p = {u} {u} : a {sign} b"
    for name in (u, s, f"b{bits}"):
        rules[f"selp.{name}"] = f"{u} = {u} {u} p : c ? a : b"
        rules[f"mov.{name}"] = f"{u} = {u} : a"
    for name, sign in (("and", "&"), ("or", "|"), ("xor", "^")):
        rules[f"{name}.b{bits}"] = f"{u} = {u} {u} : a {sign} b"
    last = bits - 1
    right = f"{u} = {u} u32 : b >= {bits} ? 0 : a >> (b & {last})"
    return rules | {
        f"not.b{bits}": f"{u} = {u} : ~a",
        f"neg.s{bits}": f"{u} = {u} : 0 - a",
        f"abs.s{bits}": f"{s} = {s} : a < 0 ? ({s})(0 - a) : a",
        f"shl.b{bits}": f"{u} = {u} u32 : b >= {bits} ? 0 : a << (b & {last})",
        f"shr.u{bits}": right,
        f"shr.b{bits}": right,
        f"shr.s{bits}": f"{s} = {s} u32 : a >> (b >= {bits} ? {last} : b)",
    }


def wide() -> Rules:
    """Products twice as wide as their factors, and bits put together from several registers."""
    return {
        "mul.wide.s32": "s64 = s32 s32 : (s64)a * (s64)b",
        "mul.wide.u32": "u64 = u32 u32 : (u64)a * (u64)b",
        "mul.wide.s16": "s32 = s16 s16 : (s32)a * (s32)b",
        "mul.wide.u16": "u32 = u16 u16 : (u32)a * (u32)b",
        "mad.wide.s32": "s64 = s32 s32 s64 : (s64)((u64)((s64)a * (s64)b) + (u64)c)",
        "mad.wide.u32": "u64 = u32 u32 u64 : (u64)a * (u64)b + c",
        "mul.hi.u32": "u32 = u32 u32 : ((u64)a * (u64)b) >> 32",
        "mul.hi.s32": "s32 = s32 s32 : ((s64)a * (s64)b) >> 32",
        "bfe.u32": "u32 = u32 u32 u32 : bfe_u(a, b, c)",
        "bfe.s32": "s32 = s32 u32 u32 : bfe_s(a, b, c)",
        "bfi.b32": "u32 = u32 u32 u32 u32 : bfi(a, b, c, d)",
        "prmt.b32": "u32 = u32 u32 u32 : prmt(a, b, c)",
        "lop3.b32": "u32 = u32 u32 u32 u32 : lop3(a, b, c, d)",
        "shf.l.wrap.b32": "u32 = u32 u32 u32 : (((u64)b << 32 | a) << (c & 31)) >> 32",
        "shf.r.wrap.b32": "u32 = u32 u32 u32 : ((u64)b << 32 | a) >> (c & 31)",
        "popc.b32": "u32 = u32 : __builtin_popcount(a)",
        "clz.b32": "u32 = u32 : a ? __builtin_clz(a) : 32",
    }


def floats(ftz: str) -> Rules:
    """float32; .ftz flushes subnormal operands and results to zero of the same sign.

    approximate(x, n) errs by up to n units in the last place where the schedule asks for it.
    """
    a, b, c = (f"flush({x})" if ftz else x for x in "abc")
    root = f"__builtin_sqrtf({a})"
    one: dict[str, str] = {
        f"rcp.approx{ftz}": f"approximate(1.0f / {a}, 1)",
        f"rcp.rn{ftz}": f"1.0f / {a}",
        f"sqrt.rn{ftz}": root,
        f"sqrt.approx{ftz}": f"approximate({root}, 1)",
        f"rsqrt.approx{ftz}": f"approximate(1.0f / {root}, 2)",
        f"ex2.approx{ftz}": f"approximate((float)exp2((double){a}), 2)",
        f"lg2.approx{ftz}": "approximate_log2(a)",
        f"tanh.approx{ftz}": f"approximate((float)tanh((double){a}), 16)",
        f"neg{ftz}": "-a",
        f"abs{ftz}": "__builtin_fabsf(a)",
    }
    two = {
        f"div.rn{ftz}": f"{a} / {b}",
        f"div.full{ftz}": f"approximate({a} / {b}, 2)",
        f"div.approx{ftz}": f"approximate({a} / {b}, 2)",
        f"min{ftz}": f"least({a}, {b})",
        f"max{ftz}": f"most({a}, {b})",
        f"min.NaN{ftz}": f"least_or_nan({a}, {b})",
        f"max.NaN{ftz}": f"most_or_nan({a}, {b})",
    }
    for rounding in ("", ".rn"):
        two |= {
            f"add{rounding}{ftz}": f"{a} + {b}",
            f"sub{rounding}{ftz}": f"{a} - {b}",
            f"mul{rounding}{ftz}": f"{a} * {b}",
        }
    wrap = "flush({})" if ftz else "{}"
    rules = {f"{name}.f32": f"f32 = f32 : {wrap.format(x)}" for name, x in one.items()}
    rules |= {f"{name}.f32": f"f32 = f32 f32 : {wrap.format(x)}" for name, x in two.items()}
    fused = wrap.format(f"__builtin_fmaf({a}, {b}, {c})")
    rules[f"fma.rn{ftz}.f32"] = f"f32 = f32 f32 f32 : {fused}"
    relations = {name: f"{a} {sign} {b}" for name, sign in (EQUALITY[0], *ORDER)}
    relations |= {name: f"!({a} {sign} {b})" for name, sign in UNORDERED}
    relations |= {
        "ne": f"{a} < {b} || {a} > {b}",
        "equ": f"!({a} < {b} || {a} > {b})",
        "num": "a == a && b == b",
        "nan": "a != a || b != b",
    }
    for name, expression in relations.items():
        rules[f"setp.{name}{ftz}.f32"] = f"p = f32 f32 : {expression}"
    return rules


def moves() -> Rules:
    """Registers of float32 and float64 moved as they are, predicates, and packing.

    The assembler writes a `mov` with braces as pack, low and high.
    """
    rules = {
        "selp.f32": "u32 = u32 u32 p : c ? a : b",
        "selp.f64": "u64 = u64 u64 p : c ? a : b",
        "mov.f32": "u32 = u32 : a",
        "mov.f64": "u64 = u64 : a",
        "not.pred": "p = p : !a",
        "mov.pred": "p = p : a",
        "pack.b32": "u32 = u16 u16 : (u32)a | (u32)b << 16",
        "pack.b64": "u64 = u32 u32 : (u64)a | (u64)b << 32",
        "pack4.b64": "u64 = u16 u16 u16 u16 : (u64)a | (u64)b << 16 | (u64)c << 32 | (u64)d << 48",
        "low.b32": "u16 = u32 : a",
        "high.b32": "u16 = u32 : a >> 16",
        "low.b64": "u32 = u64 : a",
        "high.b64": "u32 = u64 : a >> 32",
    }
    for name, sign in (("and", "&&"), ("or", "||"), ("xor", "!=")):
        rules[f"{name}.pred"] = f"p = p p : a {sign} b"
    return rules


def conversions() -> Rules:
    rules = {
        f"cvt.{to}{bits}.{sign}{source}": f"u{bits} = {sign}{source} : ({sign}64)a"
        for to in "us"
        for bits in (16, 32, 64)
        for sign in "us"
        for source in (16, 32, 64)
    }
    rules |= {f"cvt.rn.f32.{s}{n}": f"f32 = {s}{n} : (float)a" for s in "us" for n in (16, 32, 64)}
    return rules | {
        "cvt.s32.s8": "s32 = u32 : (signed char)a",
        "cvt.u32.u8": "u32 = u32 : (unsigned char)a",
        "cvt.rzi.s32.f32": "s32 = f32 : to_s32(a)",
        "cvt.rzi.s64.f32": "s64 = f32 : to_s64(a)",
        "cvt.rmi.f32.f32": "f32 = f32 : __builtin_floorf(a)",
        "cvt.rpi.f32.f32": "f32 = f32 : __builtin_ceilf(a)",
        "cvt.f32.bf16": "u32 = u16 : (u32)a << 16",
        "cvt.rn.bf16.f32": "u16 = f32 : to_bf16(a)",
        "cvt.f32.f16": "f32 = u16 : from_f16(a)",
        "cvt.rn.f16.f32": "u16 = f32 : to_f16(a)",
        "cvt.rn.bf16x2.f32": "u32 = f32 f32 : (u32)to_bf16(a) << 16 | to_bf16(b)",
        "cvt.rn.f16x2.f32": "u32 = f32 f32 : (u32)to_f16(a) << 16 | to_f16(b)",
        "cvt.rna.tf32.f32": "u32 = u32 : (a + 0x1000u) & ~0x1fffu",
    }


def halves(kind: str) -> Rules:
    """float16 and bfloat16, each computed in float32 and rounded once."""
    a, b, c = (f"from_{kind}({x})" for x in "abc")
    two = {"min": f"least({a}, {b})", "max": f"most({a}, {b})", "add": f"{a} + {b}"}
    two |= {"sub": f"{a} - {b}", "mul": f"{a} * {b}"}
    rules = {
        f"{name}{rounding}.{kind}": f"u16 = u16 u16 : to_{kind}({expression})"
        for name, expression in two.items()
        for rounding in ("", ".rn")
    }
    for name, sign in (EQUALITY[0], *ORDER):
        rules[f"setp.{name}.{kind}"] = f"p = u16 u16 : {a} {sign} {b}"
    for name, sign in UNORDERED:
        rules[f"setp.{name}.{kind}"] = f"p = u16 u16 : !({a} {sign} {b})"
    fused = f"to_{kind}(__builtin_fmaf({a}, {b}, {c}))"
    return rules | {
        f"fma.rn.{kind}": f"u16 = u16 u16 u16 : {fused}",
        f"neg.{kind}": "u16 = u16 : a ^ 0x8000",
        f"abs.{kind}": "u16 = u16 : a & 0x7fff",
    }


UNITS: dict[str, Rules] = {
    "integer32": integers(32),
    "integer64": integers(64),
    "float32": floats(""),
    "moves": moves(),
    "conversions": conversions(),
    "wide": wide(),
    "integer16": integers(16),
    "bf16": halves("bf16"),
    "f16": halves("f16"),
    "float32_ftz": floats(".ftz"),
}

# Opcodes of one rule share its function: a number of the machine's table.
RULE = {opcode: (unit, rule) for unit, rules in UNITS.items() for opcode, rule in rules.items()}
FUNCTION = {pair: number for number, pair in enumerate(dict.fromkeys(RULE.values()))}
OPCODE = {opcode: FUNCTION[pair] for opcode, pair in RULE.items()}
UNIT = {FUNCTION[pair]: pair[0] for pair in FUNCTION}

WIDTH = {"u16": 2, "s16": 2, "u32": 4, "s32": 4, "f32": 4, "u64": 8, "s64": 8, "p": 0}


def parts(opcode: str) -> tuple[str, list[str], str]:
    """(type of the destination, types of the sources, expression)"""
    left, expression = RULE[opcode][1].split(" : ", 1)
    destination, sources = left.split(" = ")
    return destination, sources.split(), expression


def source(unit: str) -> str:
    """The C++ text of a unit."""
    numbers = {OPCODE[opcode]: opcode for opcode in UNITS[unit]}
    functions = [_function(number, opcode) for number, opcode in numbers.items()]
    filled = [f"  table[{number}] = run_{number};" for number in numbers]
    return "\n".join(
        [
            '#include "arithmetic.h"',
            *functions,
            'extern "C" void fill(Operation* table, const int* perturb) {',
            "  g_perturb = perturb;",
            *filled,
            "}",
            "",
        ]
    )


def _function(number: int, opcode: str) -> str:
    destination, sources, expression = parts(opcode)
    lines = [f"static void run_{number}(u8* f, const s32* o, u32 m) {{  // {opcode}"]
    loads = []
    for index, (letter, kind) in enumerate(zip("abcd", sources, strict=False), 1):
        if kind == "p":
            lines.append(f"  const u32 {letter}_ = *(const u32*)(f + o[{index}]);")
            loads.append(f"const bool {letter} = {letter}_ >> l & 1;")
        else:
            lines.append(f"  const {kind}* {letter}_ = (const {kind}*)(f + o[{index}]);")
            loads.append(f"const {kind} {letter} = {letter}_[l];")
    load = " ".join(loads)
    if destination == "p":
        lines.append("  u32 r = 0;")
        body = f"{load} r |= (u32)({expression}) << l;"
        after = "  u32* out = (u32*)(f + o[0]); *out = (*out & ~m) | (r & m);"
    else:
        lines += [f"  {destination}* out = ({destination}*)(f + o[0]);", '  _Pragma("GCC ivdep")']
        body = f"{load} out[l] = m >> l & 1 ? ({destination})({expression}) : out[l];"
        after = ""
    return "\n".join([*lines, f"  for (int l = 0; l < 32; ++l) {{ {body} }}", after, "}"])
