"""The patches that tokens are made of: interpolation between them, pooling and concatenation."""

from __future__ import annotations

import torch

from idsel_core.backbones._shared.patches import Patches, bilinear_corners, pooling_windows, unflatten_values


def test_points_between_patches_have_the_weights_of_bilinear_interpolation():
    rows, columns, weights = bilinear_corners(
        torch.tensor([2.25, 1.0, 3 - 1e-14]).double(), torch.tensor([0.5, 4.0, 7.0]).double()
    )
    assert rows.tolist() == [[2, 2, 3, 3], [1] * 4, [3] * 4]
    assert columns.tolist() == [[0, 1, 0, 1], [4] * 4, [7] * 4]
    assert weights.tolist() == [[0.375, 0.375, 0.125, 0.125], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_members_without_weight_are_left_out():
    one = Patches(torch.tensor([[5, 5, 9, 5]]), torch.tensor([[0.5, 0, 0.5, 0]]))
    other = Patches(torch.tensor([[3, 3, 3, 3], [2, 2, 2, 2]]), torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]))
    both = Patches.concatenate([one, other], torch.device("cpu"))
    assert both.members[:2].tolist() == [[5, 9], [3, 3]]
    assert both.weights.tolist() == [[0.5, 0.5], [1, 0], [0, 0]]
    values = torch.arange(20.0).view(10, 2)
    assert both.mean(values).tolist() == [[14, 15], [6, 7], [0, 0]]
    patches, weights = unflatten_values(both.flatten_values(values, 4), 4)
    assert patches[:, :2].tolist() == [[[10, 11], [18, 19]], [[6, 7], [0, 0]], [[0, 0], [0, 0]]]
    assert not patches[:, 2:].any() and weights[..., 0].tolist() == [[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_pooling_windows_are_squares_of_each_frame():
    patches = pooling_windows(2, 5, 2).repeat_frames(2, 10)
    assert patches.members.tolist() == [[0, 1, 5, 6], [2, 3, 7, 8], [10, 11, 15, 16], [12, 13, 17, 18]]
    assert torch.equal(patches.weights, torch.full((4, 4), 0.25))
