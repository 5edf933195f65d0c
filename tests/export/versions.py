"""What the installed Transformers can do."""

import pytest

transformers = pytest.importorskip("transformers", minversion="5.1")

# Before, Marian's own beam search takes the source's vocabulary for the target's.
two_vocabularies = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18),
    reason="Marian with two vocabularies needs Transformers 5.18",
)
