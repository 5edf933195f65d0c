"""The components of all positions, gathered chunk by chunk and reduced at the end."""

import torch

from fastkd.backends.tokens.torch.positions import Part, Positions
from fastkd.backends.tokens.torch.rows import RowLosses
from fastkd.functional.calls import TokenLosses, TokenOptions


class Totals:
    def __init__(
        self,
        positions: Positions,
        options: TokenOptions,
        inside: torch.dtype,
        device: torch.device,
    ) -> None:
        self.positions, self.options = positions, options
        self.weights = (
            options.ce_weight,
            options.kd_weight,
            options.rank_weight,
            options.entropy_weight,
        )
        size = len(self.weights), positions.count
        self.components = torch.zeros(size, dtype=inside, device=device)
        self.prediction = None
        if options.return_prediction:
            self.prediction = torch.zeros(positions.count, dtype=torch.int64, device=device)

    def store(self, part: Part, rows: RowLosses) -> None:
        found = (rows.ce, rows.kd, rows.rank, rows.entropy)
        for place, values in enumerate(found):
            if values is not None:
                self.components[place, part] = values
        if self.prediction is not None and rows.prediction is not None:
            self.prediction[part] = rows.prediction

    def reduced(self, shape: torch.Size) -> TokenLosses:
        """Scalars, or `shape` with reduction="none"."""
        options, masked = self.options, self.positions.masked
        if masked is not None:
            self.components.masked_fill_(masked, 0)
        if options.reduction == "none":
            table = self.components.view(len(self.weights), *shape)
        else:
            table = self.components.sum(1)
        if options.reduction == "mean":
            table = table / self.positions.denominator()
        parts = table.unbind()
        terms = [weight * part for weight, part in zip(self.weights, parts, strict=True) if weight]
        loss = sum(terms[1:], terms[0]) if terms else torch.zeros_like(parts[0])
        prediction = self.prediction
        if prediction is not None:
            if masked is not None:
                prediction.masked_fill_(masked, 0)
            prediction = prediction.view(shape)
        ce, kd, rank, entropy = parts
        return TokenLosses(loss, ce, kd, rank, prediction, entropy)
