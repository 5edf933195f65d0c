"""A training step's memory: measured against the system, predicted against measured."""

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.losses import a2d_memory
from fastkd.backends.tokens.torch import positions
from fastkd.bench.peak import peak_in_own_process
from fastkd.memory.step import cuda_formulas
from fastkd.memory.step.measure import measure_in_own_process, measure_step
from fastkd.memory.step.predict import predict_step
from fastkd.memory.step.predictor import Predictor
from fastkd.memory.step.workload import Update, Vocabulary, workload

PARTS = {
    "word KD, A2D": [{"name": "cross_entropy"}, {"name": "word_kd"}, {"name": "a2d"}],
    "TIE-KD": [{"name": "cross_entropy"}, {"name": "tie_kd", "top_k": 3}],
    "hidden": [{"name": "cross_entropy"}, {"name": "hidden"}],
    "alone": [{"name": "cross_entropy"}],
}
DIMS = [{"name": "masked_cross_entropy"}, {"name": "dims"}, {"name": "length"}]
MASKED = {"kind": "cmlm", "decoder_layers": 2, "encoder_layers": 2, "width": 32, "ffn": 64}


def padded_update():
    """32 target tokens: no row is there to fill a block."""
    return Update(np.array([7, 12, 5, 9], np.int64), np.array([6, 11, 12, 3], np.int64))


@pytest.mark.parametrize("losses", PARTS)
def test_prediction_is_the_measured_step(make_config, teacher, losses):
    taught = None if losses == "alone" else teacher
    config = make_config(losses=PARTS[losses], training={"accumulation": 1 if taught else 2})
    work = workload(config)
    update = padded_update()
    measured = measure_step(config, work.vocabulary, taught, update, torch.device("cpu"))
    predicted = predict_step(config, work.vocabulary, taught, update)
    assert predicted.held == measured.held
    assert predicted.peak == pytest.approx(measured.peak, rel=0.01)
    assert sum(predicted.activations.values()) == pytest.approx(
        sum(measured.activations.values()), rel=0.01
    )


def test_the_compiled_kernel_is_predicted(make_config, teacher, monkeypatch):
    monkeypatch.setenv("FASTKD_NATIVE", "always")
    config = make_config(losses=PARTS["word KD, A2D"])
    work = workload(config)
    update = padded_update()
    measured = measure_step(config, work.vocabulary, teacher, update, torch.device("cpu"))
    predicted = predict_step(config, work.vocabulary, teacher, update)
    assert predicted.peak == pytest.approx(measured.peak, rel=0.01)
    loss = "alignment loss, encoder"
    assert predicted.losses[loss].peak == pytest.approx(measured.losses[loss].peak, rel=0.01)


@pytest.mark.slow
def test_chunks_left_out_of_a_prediction_hold_what_the_others_do(make_config, teacher):
    config = make_config(losses=PARTS["TIE-KD"], training={"precision": "float32"})
    vocabulary = Vocabulary.of_sizes(8000, 8000)
    lengths = np.full(64, 40, np.int64)
    update = Update(lengths, lengths)
    assert update.sentences * 40 * 8000 > 4 * positions.CHUNK
    measured = measure_step(config, vocabulary, teacher, update, torch.device("cpu"))
    predicted = predict_step(config, vocabulary, teacher, update)
    assert predicted.peak == pytest.approx(measured.peak, rel=0.01)
    token = "token losses"
    assert predicted.losses[token].peak == pytest.approx(measured.losses[token].peak, rel=0.01)


def test_a_masked_model_is_predicted(make_config, teacher):
    config = make_config(losses=DIMS, model={**MASKED, "heads": 2})
    work = workload(config)
    taught = dataclasses.replace(config.model)
    measured = measure_step(config, work.vocabulary, taught, padded_update(), torch.device("cpu"))
    predicted = predict_step(config, work.vocabulary, taught, padded_update())
    assert predicted.held == measured.held
    # Which places a teacher masks again depends on its scores, which a prediction lacks.
    assert predicted.peak == pytest.approx(measured.peak, rel=0.02)


def test_held_memory_is_what_a_step_needs_by_formula(make_config, teacher):
    config = make_config()
    work = workload(config)
    memory = predict_step(config, work.vocabulary, teacher, padded_update())
    gradients = memory.held["gradients"]
    # AdamW holds two tensors of each parameter's size and a step count of four bytes.
    assert 2 * gradients < memory.held["optimizer"] < 2.02 * gradients + 4 * 200
    assert memory.held["parameters"] >= gradients
    assert sum(memory.at_peak.parts.values()) == memory.peak
    assert memory.peak >= memory.start


def test_resident_memory_rises_as_the_tensors_do(make_config, teacher):
    """Large enough that the system's own pages do not matter: 60 MB and more."""
    config = make_config(
        tokenizer={"vocabulary": 4000}, training={"batch_tokens": 1024, "backend": "reference"}
    )
    work = workload(config)
    memory = measure_in_own_process(config, work.vocabulary, teacher, work.heaviest(1024)[0])
    assert memory.rise > 60e6
    assert memory.resident == pytest.approx(memory.rise, rel=0.1)


def test_cuda_is_predicted_with_its_kernels_and_its_allocator(make_config, teacher):
    config = make_config(training={"backend": "auto", "precision": "auto"})
    work = workload(config)
    memory = predict_step(config, work.vocabulary, teacher, padded_update(), "cuda")
    figures = memory.allocator
    assert memory.peak <= figures["peak allocated"] <= figures["peak reserved"]
    assert figures["device in use"] == figures["peak reserved"] + cuda_formulas.CONTEXT
    assert figures["peak allocated"] >= cuda_formulas.CUBLAS_WORKSPACE + memory.held["parameters"]


def test_a_kernels_scratch_is_there_beside_its_results():
    found = {}
    for maps in (4, 8):
        shape = {"B": 2, "Ns": maps, "Nt": 4, "T": 64, "D": 64}
        found[maps] = a2d_memory.predict(shape, "triton")
        gradients = 2 * (2 * maps * 64 * 64) * 2  # queries and keys in bfloat16
        scratch = 2 * (maps + 4) * 64 * 64 * 2
        assert found[maps] >= scratch + gradients
    assert found[8] > found[4]


def test_a_loss_by_itself_is_predicted_as_it_is_measured():
    """On a CPU in float32 eager PyTorch holds the same tensors."""
    shape = {"B": 2, "Ns": 6, "Nt": 12, "T": 256, "D": 64}
    measured = peak_in_own_process("alignment-row", shape, torch.float32, "reference")
    predicted = a2d_memory.predict(shape, "reference", torch.float32, Predictor)
    assert predicted == pytest.approx(measured.peak, rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_prediction_against_the_allocator(make_config, teacher):
    config = make_config(training={"backend": "auto", "batch_tokens": 2048})
    work = workload(config)
    update = work.heaviest(2048)[0]
    measured = measure_step(config, work.vocabulary, teacher, update, torch.device("cuda"))
    predicted = predict_step(config, work.vocabulary, teacher, update, "cuda")
    assert predicted.allocator["peak allocated"] == pytest.approx(
        measured.allocator["peak allocated"], rel=0.25
    )
