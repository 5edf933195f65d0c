import math
from dataclasses import replace

from fastkd.train.position import Position

NAN = math.nan


def after(*results):
    """Position after validations (result, loss), each 50 updates later."""
    position = Position()
    for result, loss in results:
        position = replace(position, update=position.update + 50).with_result(result, loss)
    return position


def test_the_highest_result_is_best():
    position = after((3.0, 1.0), (5.0, 2.0), (4.0, 0.5))
    assert (position.best, position.best_loss, position.best_update) == (5.0, 2.0, 100)
    assert position.stale == 1


def test_of_equal_results_the_lower_loss_is_best_and_is_progress():
    position = after((0.0, 3.0), (0.0, 2.0), (0.0, 1.0))
    assert (position.best_update, position.stale) == (150, 0)
    assert after((0.0, 1.0), (0.0, 2.0)).best_update == 50


def test_of_equal_losses_too_the_later_is_best_without_being_progress():
    position = after((0.0, 3.0), (0.0, 3.0), (0.0, 3.0))
    assert (position.best_update, position.stale) == (150, 2)


def test_what_is_not_a_number_is_never_best():
    position = after((NAN, NAN), (NAN, NAN))
    assert (position.best, position.best_update, position.stale) == (None, None, 2)
    position = after((NAN, NAN), (0.0, 2.0), (NAN, 1.0))
    assert (position.best, position.best_update, position.stale) == (0.0, 100, 1)
    assert after((1.0, NAN), (1.0, 7.0)).best_update == 100
    assert after((1.0, 7.0), (1.0, NAN)).best_update == 50


def test_a_best_that_is_not_a_number_gives_way():
    """As a run of an earlier version may hold it."""
    held = Position(update=50, best=NAN, best_update=50)
    assert replace(held, update=100).with_result(0.0, 9.0).best_update == 100


def test_scores_by_another_tokenizer_do_not_compare():
    position = after((30.0, 1.0)).measured_by("13a")
    assert position.best == 30.0
    position = replace(position.measured_by("zh"), update=100).with_result(20.0, 2.0)
    assert (position.best, position.best_update, position.bleu_tokenizer) == (20.0, 100, "zh")
