"""What trainers do around an update: resuming, new students, epochs that are cut short."""

import pytest
import torch

import fastkd
from fastkd.losses import A2D, CrossEntropy, WordKD

transformers = pytest.importorskip("transformers", minversion="5.1")
pytest.importorskip("accelerate")

from fastkd.integrations.trainer import DistillationTrainer
from tests.integrations.families import VOCABULARY, build

PLAIN = CrossEntropy(weight=1.0, label_smoothing=0.0)


def rows(count):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (count, 7), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def arguments(folder, **settings):
    usual = {"max_steps": 6, "save_strategy": "no", "logging_steps": 2, "learning_rate": 1e-4}
    return transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **{**usual, **settings},
    )


def logged(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_components_logged_after_a_resume(tmp_path):
    def trainer():
        settings = arguments(tmp_path, save_strategy="steps", save_steps=4)
        return DistillationTrainer(
            model=build("llama"), args=settings, train_dataset=rows(12), losses=[PLAIN]
        )

    trainer().train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for entry in logged(resumed):
        assert entry["cross_entropy"] == pytest.approx(entry["loss"], rel=1e-3)


def test_each_training_begins_with_the_student_that_is_made_for_it(tmp_path):
    made = []

    def model_init():
        made.append(build("llama"))
        return made[-1]

    trainer = DistillationTrainer(
        model_init=model_init,
        args=arguments(tmp_path, max_steps=2, learning_rate=1e-2, logging_steps=1),
        train_dataset=rows(4),
        losses=[PLAIN, WordKD(), A2D()],
        teacher=build("llama", num_hidden_layers=1),
    )
    before = dict(build("llama").named_parameters())
    entries = []
    for count in (2, 3):  # the Trainer makes one when it is made
        trainer.train()
        entries.append(logged(trainer)[-1])
        assert len(made) == count
        assert trainer.model is trainer.distillation.student is made[-1]
        after = dict(trainer.model.named_parameters())
        assert after.keys() == before.keys()  # and so without what A2D learned
        assert any(not torch.equal(after[name], before[name]) for name in before)
    assert entries[0]["cross_entropy"] == entries[1]["cross_entropy"]


def test_hyperparameter_search(tmp_path):
    """Each trial trains a student of its own by the same losses; the better rate is found."""
    pytest.importorskip("optuna")
    rates, made = (1e-6, 1e-2), []

    def model_init():
        made.append(build("llama"))
        return made[-1]

    def trainer(folder, **settings):
        return DistillationTrainer(
            model_init=model_init,
            args=arguments(folder, max_steps=4, eval_strategy="steps", eval_steps=4, **settings),
            train_dataset=rows(8),
            eval_dataset=rows(8),
            losses=[PLAIN, WordKD(weight=0.1), A2D()],
            teacher=build("llama", num_hidden_layers=1),
        )

    def space(trial):
        rate = rates[trial.number]
        return {"learning_rate": trial.suggest_float("learning_rate", rate, rate)}

    found = trainer(tmp_path / "search").hyperparameter_search(
        space, n_trials=2, direction="minimize", backend="optuna"
    )
    assert found.hyperparameters == {"learning_rate": rates[1]}
    assert len({id(student) for student in made}) == len(made) >= 3
    assert not any(hasattr(student, "fastkd_distillation") for student in made)
    torch.manual_seed(42)  # as each trial is seeded
    alone = trainer(tmp_path / "alone", learning_rate=rates[1])
    alone.train()
    assert found.objective == pytest.approx(alone.evaluate()["eval_loss"], rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_training_in_bfloat16(tmp_path, family):
    """Logits of bfloat16 products, which Accelerate hands on as float32."""
    trainer = DistillationTrainer(
        model=build(family),
        args=arguments(tmp_path, max_steps=2, bf16=True, logging_steps=1),
        train_dataset=rows(4),
        losses=[PLAIN, WordKD()],
        teacher=build(family, num_hidden_layers=1),
    )
    trainer.train()
    assert logged(trainer)[0]["cross_entropy"] > 0


class Placed(transformers.LlamaForCausalLM):
    def to(self, *arguments, **keywords):
        raise AssertionError("moved")


@pytest.mark.parametrize("placed", ["hf_device_map", "hf_quantizer"])
def test_a_teacher_that_was_placed_is_not_moved(tmp_path, placed):
    teacher = Placed(build("llama").config)
    setattr(teacher, placed, {"": "cpu"})
    DistillationTrainer(
        model=build("llama"),
        args=arguments(tmp_path),
        train_dataset=rows(4),
        losses=[WordKD()],
        teacher=teacher,
    )


def test_what_is_not_the_models_loss_is_refused_before_an_update(tmp_path):
    class Doubled(transformers.LlamaForCausalLM):
        def forward(self, input_ids=None, labels=None, **inputs):
            output = super().forward(input_ids=input_ids, labels=labels, **inputs)
            if output.loss is not None:
                output.loss = 2 * output.loss
            return output

    settings = {"args": arguments(tmp_path), "train_dataset": rows(4), "losses": [PLAIN]}
    student = Doubled(build("llama").config)
    before = {name: p.clone() for name, p in student.named_parameters()}
    with pytest.raises(fastkd.InputError, match="its own loss"):
        DistillationTrainer(model=student, **settings).train()
    assert all(torch.equal(p, before[name]) for name, p in student.named_parameters())
    DistillationTrainer(model=student, verify=False, **settings).train()


def test_a_frozen_student_is_evaluated_and_not_trained(tmp_path):
    student = build("llama").requires_grad_(False)
    settings = {"args": arguments(tmp_path), "train_dataset": rows(4), "eval_dataset": rows(4)}
    trainer = DistillationTrainer(model=student, losses=[PLAIN], **settings)
    inputs = {key: torch.stack([row[key] for row in rows(4)]) for key in rows(1)[0]}
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(student(**inputs).loss), rel=1e-4)
    with pytest.raises(fastkd.InputError, match="student: none of its parameters requires grad"):
        trainer.train()


@pytest.mark.parametrize(("limit", "whole"), [(5, 5), (3, 3), (0.625, 5)])
def test_an_epoch_of_lightning_that_is_cut_short(tmp_path, limit, whole):
    """The gradients of each update are those of a loader that has no more batches."""
    lightning = pytest.importorskip("lightning")
    from fastkd.integrations.lightning import CountedLoader, DistillationModule

    def norms(count, **settings):
        module = DistillationModule(
            build("llama"), [PLAIN], optimizer=lambda p: torch.optim.SGD(p, lr=0.1)
        )
        loader = CountedLoader(
            rows(2 * count), batch_size=2, counts=module.distillation.counts, accumulation=4
        )
        seen = []

        class Watch(lightning.Callback):
            def on_before_optimizer_step(self, trainer, module, optimizer):
                gradients = [p.grad for p in module.parameters() if p.grad is not None]
                seen.append(float(torch.nn.utils.get_total_norm(gradients)))

        lightning.Trainer(
            max_epochs=2,
            accumulate_grad_batches=4,
            accelerator="cpu",
            callbacks=[Watch()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(tmp_path),
            **settings,
        ).fit(module, loader)
        return seen

    assert norms(8, limit_train_batches=limit) == pytest.approx(norms(whole), rel=1e-5)
