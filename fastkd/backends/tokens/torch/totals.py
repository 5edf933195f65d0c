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
        self.components = [
            torch.zeros(positions.count, dtype=inside, device=device) for _ in self.weights
        ]
        self.prediction = None
        if options.return_prediction:
            self.prediction = torch.zeros(positions.count, dtype=torch.int64, device=device)

    def store(self, part: Part, rows: RowLosses) -> None:
        found = (rows.ce, rows.kd, rows.rank, rows.entropy)
        for component, values in zip(self.components, found, strict=True):
            if values is not None:
                component[part] = values
        if self.prediction is not None and rows.prediction is not None:
            self.prediction[part] = rows.prediction

    def reduced(self, shape: torch.Size) -> TokenLosses:
        """Scalars, or `shape` with reduction="none"."""
        options, masked = self.options, self.positions.masked
        if masked is not None:
            for component in self.components:
                component.masked_fill_(masked, 0)
        if options.reduction == "none":
            parts = [component.view(shape) for component in self.components]
        else:
            parts = [component.sum() for component in self.components]
        if options.reduction == "mean":
            parts = [part / self.positions.denominator() for part in parts]
        terms = [weight * part for weight, part in zip(self.weights, parts, strict=True) if weight]
        loss = sum(terms[1:], terms[0]) if terms else torch.zeros_like(parts[0])
        prediction = self.prediction
        if prediction is not None:
            if masked is not None:
                prediction.masked_fill_(masked, 0)
            prediction = prediction.view(shape)
        ce, kd, rank, entropy = parts
        return TokenLosses(loss, ce, kd, rank, prediction, entropy)
