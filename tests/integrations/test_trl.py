"""TRL's SFTTrainer with fastkd's losses: chats, prompts, packing, adapters."""

import pytest
import torch

import fastkd
from fastkd.losses import A2D, CrossEntropy, WordKD

transformers = pytest.importorskip("transformers", minversion="5.1")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")

from fastkd.integrations.trl import DistillationSFTTrainer

PLAIN = CrossEntropy(weight=1.0, label_smoothing=0.0)
WORDS = ["<pad>", "<eos>", "<unk>", "user", "assistant", ":", *"abcdef"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }} <eos> {% endgeneration %}"
    "{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
)
TINY = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}


def tokenizer():
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)
    fast.chat_template = TEMPLATE
    return fast


def chats():
    said = [("a b c", "d e f"[: 1 + 2 * (i % 3)]) for i in range(8)]
    messages = [
        [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
        for ask, answer in said
    ]
    return datasets.Dataset.from_list([{"messages": chat} for chat in messages])


def prompts():
    rows = [
        {"prompt": "user : a b", "completion": " assistant : c d"[: 14 + 2 * (i % 2)]}
        for i in range(8)
    ]
    return datasets.Dataset.from_list(rows)


def model(seed):
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY))


SHORT = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "max_length": 16,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "disable_tqdm": True,
}


def trainer(folder, losses, data=None, student=None, **settings):
    config = trl.SFTConfig(output_dir=str(folder), dataset_num_proc=None, **SHORT, **settings)
    return DistillationSFTTrainer(
        model=student or model(0),
        teacher=model(1),
        losses=losses,
        args=config,
        train_dataset=chats() if data is None else data,
        processing_class=tokenizer(),
    )


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (chats, {}),
        (chats, {"assistant_only_loss": True}),
        (prompts, {"completion_only_loss": True}),
        (chats, {"packing": True}),
    ],
)
def test_components_are_those_of_the_labels_that_count(tmp_path, data, settings):
    """Of the first update, by the models' own logits over the very batches."""
    made = trainer(tmp_path, [PLAIN, WordKD()], data(), learning_rate=1e-9, **settings)
    batches = []
    counts = made.distillation.counts

    def seen(rows):
        batches.append([dict(row) for row in rows])
        return counts(rows)

    made.distillation.counts = seen
    made.train()
    student, teacher = made.distillation.student.eval(), made.distillation.teacher
    sums, count = torch.zeros(2), 0
    for batch in batches[0]:
        inputs = {k: v for k, v in batch.items() if k != "labels"} | {"use_cache": False}
        with torch.no_grad():
            p, q = (m(**inputs).logits[:, :-1].log_softmax(-1) for m in (student, teacher))
        target = batch["labels"][:, 1:]
        kept = target != -100
        own = torch.nn.functional.nll_loss(p[kept], target[kept], reduction="sum")
        sums += torch.stack([own, (q.exp() * (q - p)).sum(-1)[kept].sum()])
        count += int(kept.sum())
    entry = next(entry for entry in made.state.log_history if "cross_entropy" in entry)
    expected = (sums / count).tolist()
    assert [entry["cross_entropy"], entry["word_kd"]] == pytest.approx(expected, rel=1e-4)


def test_a2d_in_rows_of_their_own(tmp_path):
    made = trainer(tmp_path, [PLAIN, A2D()])
    made.train()
    assert "a2d.decoder" in made.state.log_history[0]
    with pytest.raises(fastkd.InputError, match="packed"):
        trainer(tmp_path, [PLAIN, A2D()], packing=True).train()


def test_an_adapted_student(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    student = peft.get_peft_model(model(0), config)
    before = {name: p.clone() for name, p in student.named_parameters()}
    trainer(tmp_path, [PLAIN, WordKD()], student=student, learning_rate=1e-2).train()
    moved = {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all("lora" in name for name in moved)


def test_another_loss_is_refused(tmp_path):
    with pytest.raises(fastkd.InputError, match="loss_type: expected nll"):
        trainer(tmp_path, [PLAIN], loss_type="dft")
