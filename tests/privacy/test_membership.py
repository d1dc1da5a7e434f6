"""Halves of the pool."""

import numpy as np
import pytest
import torch

from condensate import Streams, UserError
from condensate.privacy import check_members, draw_members

LABELS = torch.tensor([0] * 6 + [1] * 5 + [2] * 2)[torch.randperm(13, generator=torch.Generator().manual_seed(0))]


def test_draw__every_image_is_a_member_once_in_a_pair():
    members = draw_members(LABELS, 6, Streams(0))
    assert members.shape == (6, 13)
    assert members.dtype == torch.bool
    assert (members[0::2] ^ members[1::2]).all()
    assert (members.sum(0) == 3).all()


def test_draw__halves_every_class_and_the_spare_image_goes_to_either():
    members = draw_members(LABELS, 40, Streams(0))
    sizes = {label: set(members[:, label == LABELS].sum(1).tolist()) for label in range(3)}
    assert sizes == {0: {3}, 1: {2, 3}, 2: {1}}
    assert set(members[0::2, LABELS == 1].sum(1).tolist()) == {2, 3}  # the first of a pair is not always the larger


def test_draw__pairs_differ_a_seed_repeats_and_more_shadows_keep_the_first():
    members = draw_members(LABELS, 8, Streams(0))
    assert len({tuple(row) for row in members.tolist()}) > 4
    assert members.equal(draw_members(LABELS, 8, Streams(0)))
    assert not members.equal(draw_members(LABELS, 8, Streams(1)))
    assert members[:4].equal(draw_members(LABELS, 4, Streams(0)))


def test_draw__leaves_the_global_generators_alone(random_state):
    before = random_state()
    draw_members(LABELS, 4, Streams(0))
    assert random_state() == before


@pytest.mark.parametrize("shadows", [0, 2, 5])
def test_draw__shadows_must_be_even_and_four(shadows: int):
    with pytest.raises(UserError, match=f"even number from 4 on, got {shadows}"):
        draw_members(LABELS, shadows, Streams(0))


def test_draw__a_class_of_one_image_is_named():
    with pytest.raises(UserError, match="class 2 has one image"):
        draw_members(torch.tensor([0, 0, 1, 1, 2]), 4, Streams(0))


def test_check__says_what_does_not_fit():
    members = draw_members(LABELS, 4, Streams(0)).numpy()
    values = np.zeros(members.shape)
    check_members(values, members)
    with pytest.raises(UserError, match=r"one shape \(T, n\), got \(4, 12\) and \(4, 13\)"):
        check_members(values[:, 1:], members)
    with pytest.raises(UserError, match="these 2 do not"):
        check_members(values[:2], members[:2])
    with pytest.raises(UserError, match="share out the pool"):
        check_members(values, members[[0, 2, 1, 3]])
    with pytest.raises(UserError, match="finite"):
        check_members(np.full(members.shape, np.nan), members)
