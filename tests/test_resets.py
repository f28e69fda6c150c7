"""The reset clock against a plain restatement and by hand, and the rule for the number of steps."""

import random

import pytest

from ddanalysis.distill import resets
from ddanalysis.distill.resets import Clock


def run(window, errors):
    """(step of the network, recorded) of every end, by the clock."""
    clock, ends, steps = Clock(window), [], 0
    for error in errors:
        clock, ended = clock.tick(error)
        steps += 1
        if ended is not None:
            ends.append((steps, ended))
            steps = 0
    return ends


def plainly(window, errors):
    """The same with lists and nothing else."""
    ends, since = [], []
    lowest = counter = best = None
    for error in errors:
        since.append(error)
        if len(since) < window:
            continue
        total = sum(since[-window:])
        if lowest is None or total < lowest:
            lowest, counter, best = total, 0, len(since)
        elif counter == window:
            ends.append((len(since), best))
            since, lowest = [], None
        else:
            counter += 1
    return ends


@pytest.mark.parametrize("window", [1, 2, 5, 50])
def test_the_smallest_record_is_the_window_and_ends_after_twice_that(window):
    ends = run(window, [0.5] * (4 * window + 2))
    assert ends == [(2 * window + 1, window)] * 2  # and the next network waits just as long


def test_by_hand():
    errors = [9, 9, 6, 7, 6, 8, 5]  # sums of two: 18, 15, 13, 13, 14, 13
    assert run(2, errors) == [(7, 4)]  # the low at step 4; 13 and 14 are waited for, the next 13 is no lower
    assert run(2, [*errors[:6], 4]) == []  # a sum of 12 is


def test_falling_errors_never_end():
    assert run(3, [1 / (n + 1) for n in range(500)]) == []


@pytest.mark.parametrize("window", [1, 3, 10])
def test_any_sequence_is_as_a_plain_restatement(window):
    draw = random.Random(window)
    errors = [draw.randrange(100) * max(1, 300 - n) for n in range(1000)]  # whole numbers, whose sums are exact
    ends = run(window, errors)
    assert len(ends) > 3 and ends == plainly(window, errors)


def test_equal_windows_in_another_order_are_a_tie():
    # in floating point 0.1 + 0.2 + 0.3 > 0.3 + 0.2 + 0.1: the order of the same errors is no new low
    assert run(3, [0.1, 0.2, 0.3] * 3) == [(7, 3)]


def test_the_clock_goes_on_from_its_tensors():
    draw = random.Random(0)
    errors = [draw.random() for _ in range(100)]
    clock, other, ends = Clock(4), Clock(4), 0
    for error in errors:
        clock, ended = clock.tick(error)
        other, same = resets.restored(other.tensors()).tick(error)
        assert other == clock and ended == same
        ends += ended is not None
    assert ends > 3


@pytest.mark.parametrize(
    ("dataset", "n", "learn", "window"),
    [
        ("mnist", 100, "labels", 50), ("mnist", 101, "labels", 200), ("mnist", 500, "images", 50),
        ("cifar100", 100, "labels", 100), ("cifar100", 500, "labels", 100), ("kuzushiji49", 10, "labels", 100),
        ("kuzushiji49_published", 500, "labels", 100), ("cifar10-jpeg", 200, "labels", 200),
        ("cifar100-jpeg", 10, "labels", 100), ("cifar100", 100, "images", 50), ("kmnist", 10, "labels", 50),
    ],
)  # fmt: skip
def test_published_windows(dataset, n, learn, window):
    assert resets.published_window(dataset, n, learn) == window


@pytest.mark.parametrize(
    ("recorded", "steps"), [([], 245), ([1542], 1542), ([7, 8], 7), ([1542, 158, 338, 278, 236], 284)]
)
def test_steps_are_the_mean_of_the_last_three_records(recorded, steps):
    assert resets.steps_to_train(recorded, 245) == steps


def test_refuses():
    with pytest.raises(ValueError, match="window of the reset clock is 0"):
        Clock(0)
    with pytest.raises(ValueError, match="unknown thing to learn 'weights'"):
        resets.published_window("mnist", 10, "weights")
