"""The operations by name."""

from fastkd.bench.alignment import Alignment
from fastkd.bench.operation import Operation
from fastkd.bench.tokens import Tokens

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Alignment("map"),
        Alignment("row"),
        Alignment("mixture"),
        Alignment("mixture", mix=False),
        Tokens("kd", linear=False),
        Tokens("tie", linear=False),
        Tokens("ce", linear=True),
        Tokens("kd", linear=True),
        Tokens("tie", linear=True),
    )
}
