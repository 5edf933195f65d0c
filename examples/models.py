"""Models of Hugging Face's Marian family for `cipher.py`."""

import torch
from cipher import END, PAD, START, VOCABULARY, collate, sentences
from transformers import MarianConfig, MarianMTModel


def marian(layers: int, width: int) -> MarianMTModel:
    config = MarianConfig(
        vocab_size=VOCABULARY,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        max_position_embeddings=32,
        dropout=0.0,
        init_std=width**-0.5,
        scale_embedding=True,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=START,
        decoder_start_token_id=START,
        forced_eos_token_id=None,
    )
    return MarianMTModel(config)


def trained_teacher(steps: int = 120) -> MarianMTModel:
    model = marian(layers=2, width=64).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    data = sentences(64 * steps, seed=1)
    for step in range(steps):
        loss = model(**collate(data[64 * step :][:64])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def accuracy(model: MarianMTModel) -> float:
    """Share of unseen sentences that are translated without an error."""
    batch = collate(sentences(300, seed=2))
    labels = batch.pop("labels")
    written = model.eval().generate(**batch, max_new_tokens=labels.shape[1], num_beams=1)[:, 1:]
    written = torch.nn.functional.pad(written, (0, labels.shape[1] - written.shape[1]), value=PAD)
    right = (written == labels) | (labels == -100)
    return right.all(1).float().mean().item()
