"""What is measured, by hand."""

import pytest

from condensate.continual import average_incremental_accuracy, forgetting


def test_average_incremental_accuracy__mean_over_steps():
    assert average_incremental_accuracy([1.0, 0.5, 0.3]) == pytest.approx(0.6)


def test_forgetting__best_before_the_end_minus_the_end():
    matrix = [[0.9], [0.95, 0.8], [0.5, 0.7, 0.6]]
    assert forgetting(matrix) == pytest.approx(((0.95 - 0.5) + (0.8 - 0.7)) / 2)
    assert forgetting([[0.4], [0.6, 0.3]]) == pytest.approx(-0.2)  # learnt on: negative
    assert forgetting([[0.4]]) is None
