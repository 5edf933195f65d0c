"""A student distilled in one's own PyTorch loop, with models of one's own.

`python examples/own_loop.py`. It needs the losses alone: PyTorch, Triton and NumPy.
"""

import torch
from cipher import PAD, VOCABULARY, collate, sentences
from torch import Tensor, nn
from torch.nn import functional as F

import fastkd


class Layer(nn.Module):
    """Self-attention and a feed-forward part; hands out its queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            self.qkv(self.norms[0](x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.feed_forward(self.norms[1](x)), q, k


class Model(nn.Module):
    """Writes one symbol for each that it reads."""

    def __init__(self, layers: int, width: int, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(0.1 * torch.randn(16, width))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.output = nn.Linear(width, VOCABULARY)

    def forward(self, ids: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The last states, and each layer's queries and keys."""
        x, queries, keys = self.embedding(ids) + self.positions[: ids.shape[1]], [], []
        for layer in self.layers:
            x, q, k = layer(x, ids != PAD)
            queries.append(q)
            keys.append(k)
        return x, queries, keys


def train(student: Model, teacher: Model | None, steps: int, seed: int) -> None:
    align = fastkd.AttentionAlignment(4 * len(student.layers), 8)
    optimizer = torch.optim.AdamW([*student.parameters(), *align.parameters()], lr=5e-3)
    data = sentences(64 * steps, seed)
    for step in range(steps):
        batch = collate(data[64 * step :][:64])
        hidden, queries, keys = student(batch["input_ids"])
        taught = {}
        if teacher:
            with torch.no_grad():
                states, teacher_queries, teacher_keys = teacher(batch["input_ids"])
            teacher.requires_grad_(False)
            taught = {
                "teacher_hidden": states,
                "teacher_weight": teacher.output.weight,
                "teacher_bias": teacher.output.bias,
            }
        tokens = fastkd.linear_token_distillation_loss(  # logits are never held whole
            hidden,
            student.output.weight,
            target=batch["labels"],
            student_bias=student.output.bias,
            ce_weight=0.5,
            kd_weight=0.5 if teacher else 0.0,
            rank_weight=0.5 if teacher else 0.0,
            reduction="mean",
            **taught,
        )
        loss = tokens.loss
        if teacher:
            lengths = batch["attention_mask"].sum(1)
            call = {"query_lengths": lengths, "key_lengths": lengths}
            aligned = align(queries, keys, teacher_queries, teacher_keys, **call)
            loss = loss + aligned
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if teacher and step % 30 == 0:
            print(
                f"{step}: ce {tokens.ce:.3f} kd {tokens.kd:.3f} rank {tokens.rank:.3f} "
                f"alignment {aligned:.3f}"
            )


@torch.no_grad()
def accuracy(model: Model) -> float:
    """Share of unseen sentences that are translated without an error."""
    batch = collate(sentences(300, seed=2))
    written = model.output(model(batch["input_ids"])[0]).argmax(-1)
    return ((written == batch["labels"]) | (batch["labels"] == -100)).all(1).float().mean().item()


torch.manual_seed(1)
teacher, student = Model(layers=2, width=64), Model(layers=1, width=32)
train(teacher, None, steps=60, seed=1)
train(student, teacher, steps=100, seed=3)
print(f"right: teacher {accuracy(teacher):.1%}, student {accuracy(student):.1%}")
