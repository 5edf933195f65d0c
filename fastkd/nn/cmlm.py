"""A conditional masked language model: a Transformer that fills in masked target pieces."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastkd.errors import InputError
from fastkd.nn.attention import SelfAttention, Taps
from fastkd.nn.layers import DecoderLayer, layer_norm
from fastkd.nn.layout import Layout
from fastkd.nn.transformer import Encoded, Transformer, TransformerOutput

if TYPE_CHECKING:
    from fastkd.config.tree import ModelConfig

_ROWS_AT_ONCE = 2048  # whose logits `best` holds


class CMLM(Transformer):
    """Conditional masked language model (Ghazvininejad et al., 2019).

    The decoder reads the target with some pieces replaced by `mask_id`, without causal mask, and
    its state at a masked position predicts the piece there. The target ends with `eos_id`, which
    is never masked. `length` predicts how many pieces there are before it.

    The special ids `pad_id`, `bos_id`, `eos_id` and `mask_id` are never predicted: `output_bias`
    is a constant of zeros with −inf at these.

    With `config.cmlm.causal_attention` each decoder layer has a causal self-attention after the
    full one, so that neighbouring masks differ (CMLMC, Huang et al., 2022, section 3.1).

    Raises InputError where the sizes of the configuration do not fit each other.
    """

    def __init__(
        self,
        config: "ModelConfig",
        source_size: int,
        target_size: int,
        *,
        pad_id: int,
        bos_id: int,
        eos_id: int,
        mask_id: int,
    ) -> None:
        if config.output_bias:
            raise InputError("model.output_bias: expected false where model.kind is cmlm")
        layer = CausalDecoderLayer if config.cmlm.causal_attention else DecoderLayer
        super().__init__(config, source_size, target_size, pad_id, layer)
        self.eos_id, self.mask_id = eos_id, mask_id
        self.length = LengthPredictor(config.width, config.cmlm.length_classes, config.cmlm.length)
        del self.output_bias
        bias = torch.zeros(target_size)
        bias[[pad_id, bos_id, eos_id, mask_id]] = -torch.inf
        self.register_buffer("output_bias", bias, persistent=False)

    def decode(
        self,
        decoder_input: Tensor,
        encoded: Encoded,
        target_lengths: Tensor,
        taps: bool = False,
        causal: bool = False,
    ) -> TransformerOutput:
        """The decoder's last states for targets (B, Tt) with masks, each position seeing all."""
        return super().decode(decoder_input, encoded, target_lengths, taps, causal)

    @torch.no_grad()
    def best(self, rows: Tensor, banned: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """The most probable piece for each of the states (M, width), and its log-probability.

        banned: ids that are passed over; their probability is not given to the others
        """
        barred = torch.tensor(banned, dtype=torch.int64, device=rows.device)
        ids, scores = [], []
        for part in rows.split(_ROWS_AT_ONCE):
            logits = self.logits(part)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            passed_over = logits[:, barred]
            logits.index_fill_(1, barred, -torch.inf)
            top = logits.max(-1, keepdim=True)
            ids.append(top.indices.squeeze(-1))
            # log p of the largest is −log Σ exp(z − max z); in place, as V is large.
            score = -logits.sub_(top.values).exp_().sum(-1).log()
            if banned:
                score = -torch.logaddexp(-score, (passed_over - top.values).logsumexp(-1))
            scores.append(score)
        return torch.cat(ids), torch.cat(scores)


class CausalDecoderLayer(DecoderLayer):
    """A decoder layer whose self-attention is followed by a causal one with its own norm.

    Taps are of the first.
    """

    def __init__(self, config: "ModelConfig") -> None:
        super().__init__(config)
        self.causal_attention = SelfAttention(config.width, config.heads, config.attention_dropout)
        self.causal_attention_norm = layer_norm(config.width)

    def attend(self, rows: Tensor, layout: Layout, causal: bool, taps: Taps) -> Tensor:
        rows = super().attend(rows, layout, causal, taps)
        return self.add(
            rows,
            self.causal_attention_norm,
            lambda x: self.causal_attention(x, layout, causal=True),
        )


class LengthPredictor(nn.Module):
    """Classifies the mean of the encoder's states by the target's length.

    kind: "absolute": class = pieces of the target; "offset": class = pieces of the target −
        pieces of the source + half the number of classes; ends of sentence are not counted, and
        what lies outside falls into the first or the last class
    """

    def __init__(self, width: int, classes: int, kind: str = "absolute") -> None:
        super().__init__()
        self.classes = classes
        self.kind = kind
        self.weight = nn.Parameter(torch.empty(classes, width))
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, encoded: Encoded) -> Tensor:
        """Logits of the classes, (B, classes)."""
        layout = encoded.layout
        hidden = encoded.hidden.float()
        if layout.padded:
            hidden = hidden.masked_fill(~layout.mask[:, :, None], 0.0)
        lengths = layout.lengths.to(hidden.device, non_blocking=True)
        return F.linear((hidden.sum(1) / lengths[:, None]).to(self.weight.dtype), self.weight)

    def class_of(self, target_lengths: Tensor, source_lengths: Tensor) -> Tensor:
        """The class of each pair of lengths (B,), which count no end of sentence."""
        return (target_lengths + self._shift(source_lengths)).clamp(0, self.classes - 1)

    def predict(self, encoded: Encoded) -> Tensor:
        """The most probable number of target pieces of each sentence, at least 1: (B,)."""
        source_lengths = encoded.layout.lengths.to(self.weight.device) - 1
        lengths: Tensor = self(encoded).argmax(-1) - self._shift(source_lengths)
        return lengths.clamp(min=1)

    def _shift(self, source_lengths: Tensor) -> Tensor | int:
        return self.classes // 2 - source_lengths if self.kind == "offset" else 0
