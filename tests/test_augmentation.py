"""Augmentation in batches: image and label stay together, background stays 0, and nothing else happens."""

from __future__ import annotations

import math

import pytest
import torch

from omnet_monai.augmentation import BatchAugmentation


def batch(number: int, *spatial: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((number, 4, *spatial), generator=generator)
    return image, torch.randint(0, 4, (number, 1, *spatial), generator=generator, dtype=torch.uint8)


def ramps(*spatial: int) -> torch.Tensor:
    """One channel per axis that holds the voxel's place on it, counted from the center."""
    return torch.stack(torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in spatial), indexing="ij"))[None]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [((8, 6, 4), (8, 6, 4)), ((12, 9, 7), (8, 6, 4)), ((9, 6), (6, 6))],
    ids=["as is", "cut", "2-D"],
)
def test_without_probabilities_the_middle_comes_back(given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    image, label = batch(3, *given)
    out, classes = BatchAugmentation(wanted, flip_prob=0)(image, label)
    middle = [slice((n - w) // 2, (n - w) // 2 + w) for n, w in zip(given, wanted, strict=True)]
    assert torch.equal(out, image[:, :, *middle])
    assert torch.equal(classes, label[:, :, *middle])
    assert classes.dtype == torch.uint8


@pytest.mark.parametrize("given", [(8, 6, 4), (12, 9, 7), (9, 8)], ids=["as is", "cut", "2-D"])
def test_turning_by_nothing_changes_nothing(given: tuple[int, ...]) -> None:
    image, label = batch(2, *given)
    size = tuple(min(n, w) for n, w in zip(given, (8, 6, 4), strict=False))
    out, classes = BatchAugmentation(size, affine_prob=1, flip_prob=0)(image, label)
    expected, expected_classes = BatchAugmentation(size, flip_prob=0)(image, label)
    torch.testing.assert_close(out, expected)
    assert torch.equal(classes, expected_classes)


def test_a_quarter_turn_moves_one_axis_onto_the_other(monkeypatch) -> None:
    # A random number of 0 is the largest angle: the patch is sampled at (a, b) -> (-b, a).
    monkeypatch.setattr(torch, "rand", torch.zeros)
    image = ramps(7, 7, 3)
    turn = BatchAugmentation((7, 7, 3), affine_prob=1, rotation=[math.pi / 2, 0, 0], flip_prob=0)
    out, _ = turn(image, torch.zeros(1, 1, 7, 7, 3, dtype=torch.uint8))
    torch.testing.assert_close(out[0, 0], -image[0, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[0, 1], image[0, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[0, 2], image[0, 2], atol=1e-5, rtol=0)


def test_zoom_samples_each_side_at_its_own_pace(monkeypatch) -> None:
    monkeypatch.setattr(torch, "rand", torch.zeros)
    image = ramps(12, 12, 6)
    out, _ = BatchAugmentation((8, 8, 4), affine_prob=1, zoom=0.25, flip_prob=0)(image, torch.zeros(1, 1, 12, 12, 6))
    torch.testing.assert_close(out, 1.25 * ramps(8, 8, 4))  # of the larger patch, a quarter more is seen


def test_rotation_keeps_distances_from_the_center() -> None:
    torch.manual_seed(0)
    image = ramps(15, 15, 15).repeat(4, 1, 1, 1, 1)
    turn = BatchAugmentation((5, 5, 5), affine_prob=1, rotation=math.pi, flip_prob=0)
    out, _ = turn(image, torch.zeros(4, 1, 15, 15, 15))
    torch.testing.assert_close(out.norm(dim=1), ramps(5, 5, 5).norm(dim=1).expand(4, -1, -1, -1), atol=1e-4, rtol=0)


def test_each_patch_is_turned_for_itself_and_its_sides_keep_right_angles() -> None:
    torch.manual_seed(0)
    image = ramps(25, 25, 25).repeat(40, 1, 1, 1, 1)
    augment = BatchAugmentation((5, 5, 5), affine_prob=0.5, rotation=math.pi, zoom=0.5, flip_prob=0)
    out, _ = augment(image, torch.zeros(40, 1, 25, 25, 25))
    # Where the next voxel along each side of a patch was taken from, relative to the voxel in the center.
    steps = torch.stack([out[:, :, 3, 2, 2], out[:, :, 2, 3, 2], out[:, :, 2, 2, 3]], 1) - out[:, None, :, 2, 2, 2]
    products = steps @ steps.transpose(1, 2)
    lengths = products.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(products, torch.diag_embed(lengths), atol=1e-4, rtol=0)
    turned = ((lengths - 1).abs() > 1e-4).all(1)
    assert 10 < turned.sum() < 30
    assert (steps[turned, 0].std(0) > 0.2).all()  # the first side points anywhere
    assert (lengths[turned].std(1) > 1e-4).all()  # each side is longer or shorter by its own share
    assert 0.25 <= lengths.min() < 0.5
    assert 1.5 < lengths.max() <= 2.25


def test_image_and_label_move_together() -> None:
    torch.manual_seed(0)
    label = torch.zeros(16, 1, 12, 12, 12, dtype=torch.uint8)
    label[:, :, 3:9, 2:7, 4:10] = 3
    augment = BatchAugmentation((8, 8, 8), affine_prob=1, rotation=0.4, zoom=0.2)
    out, classes = augment(label.float().repeat(1, 4, 1, 1, 1), label)
    assert set(classes.unique().tolist()) == {0, 3}
    # Interpolated, the box's border blurs; nearest, it falls on the nearer side of the middle value.
    assert ((out[:, :1] > 1.5) == (classes == 3)).float().mean() > 0.97


def test_mirroring_happens_per_patch_and_axis() -> None:
    torch.manual_seed(0)
    image = ramps(4, 4, 2).repeat(400, 1, 1, 1, 1)
    out, _ = BatchAugmentation((4, 4, 2), flip_prob=0.5)(image, torch.zeros(400, 1, 4, 4, 2))
    mirrored = out[:, :, 0, 0, 0] > 0
    assert torch.equal(out.abs(), image.abs())
    assert ((mirrored.float().mean(0) - 0.5).abs() < 0.1).all()
    assert len(mirrored.unique(dim=0)) == 8


def test_intensities_change_per_sequence_and_background_stays_zero() -> None:
    torch.manual_seed(0)
    image = torch.ones(300, 4, 4, 4, 2)
    image[:, :, 0] = 0
    out, _ = BatchAugmentation((4, 4, 2), flip_prob=0, scale=0.2, shift=0.1)(image, torch.zeros(300, 1, 4, 4, 2))
    assert not out[:, :, 0].any()
    values = out[:, :, 1:].flatten(2)
    drawn = torch.corrcoef(values[..., 0].T)
    assert (drawn - torch.eye(4)).abs().max() < 0.2  # each sequence for itself
    assert torch.equal(values[..., :1].expand_as(values), values)  # one value per patch and sequence
    assert 0.7 < values.min() < 0.75
    assert 1.25 < values.max() < 1.3


def test_scale_and_shift_are_drawn_each_for_itself() -> None:
    torch.manual_seed(0)
    image = torch.tensor([1.0, -1.0]).reshape(2, 1, 1).expand(300, 4, 2, 1, 1)
    out, _ = BatchAugmentation((2, 1, 1), flip_prob=0, scale=0.2, shift=0.1)(image, torch.zeros(300, 1, 2, 1, 1))
    high, low = out.flatten(2).unbind(2)
    scaled, shifted = (high - low) / 2, (high + low) / 2  # 1 plus at most 0.2, and at most 0.1
    assert 0.19 < (scaled - 1).abs().max() <= 0.2001
    assert 0.09 < shifted.abs().max() <= 0.1001
    assert torch.corrcoef(torch.stack([scaled.flatten(), shifted.flatten()]))[0, 1].abs() < 0.1


def test_each_sequence_may_have_a_shift_of_its_own() -> None:
    torch.manual_seed(0)
    image = torch.ones(300, 4, 4, 4, 2)
    out, _ = BatchAugmentation((4, 4, 2), flip_prob=0, shift=(0, 0.1, 0.2, 0.5))(image, torch.zeros(300, 1, 4, 4, 2))
    moved = (out - image).abs().amax((0, 2, 3, 4))
    torch.testing.assert_close(moved, torch.tensor([0, 0.1, 0.2, 0.5]), atol=0.005, rtol=0)


def test_blurring_is_a_gaussian_average_of_brain_alone(monkeypatch) -> None:
    # A random number of 0 chooses every sequence, and of 0.5 (the width) half the largest.
    numbers = iter([torch.zeros, lambda *size: torch.full(size, 0.5)])
    monkeypatch.setattr(torch, "rand", lambda *size: next(numbers, torch.zeros)(*size))
    augment = BatchAugmentation((9, 9, 9), flip_prob=0, blur_prob=1, blur=2)
    image = torch.zeros(1, 1, 9, 9, 9)
    image[..., 4:] = 3  # brain of one value stays so up to its border
    image[0, 0, 4, 4, 6] = 4
    out = augment._blurred(image)
    assert not out[..., :4].any()
    torch.testing.assert_close(out[0, 0, :2, :, 4:], torch.full((2, 9, 5), 3.0), atol=2e-3, rtol=0)
    # Two voxels away along one axis, a Gaussian of width 1 has fallen to exp(-2).
    risen = out - image.clamp(max=3)
    assert float(risen[0, 0, 4, 6, 6] / risen[0, 0, 4, 4, 6]) == pytest.approx(math.exp(-2), rel=0.05)
    # Three of the largest widths, six voxels, are averaged over: three voxels away there are still exp(-4.5).
    assert float(risen[0, 0, 4, 7, 6] / risen[0, 0, 4, 4, 6]) == pytest.approx(math.exp(-4.5), rel=0.1)


@pytest.mark.parametrize("spatial", [(12, 10), (10, 8, 6)], ids=["2-D", "3-D"])
def test_blurring_takes_the_share_of_sequences_asked_for(spatial: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    image, label = batch(100, *spatial)
    out, _ = BatchAugmentation(spatial, flip_prob=0, blur_prob=0.3, blur=1.5)(image, label)
    changed = (out != image).flatten(2).any(2)
    assert changed.float().mean() == pytest.approx(0.3, abs=0.06)
    assert set(changed.sum(1).tolist()) >= {0, 1, 2, 3}  # of the four of a patch, each for itself
    assert (out.flatten(2).var(2)[changed] < image.flatten(2).var(2)[changed]).all()


def test_gamma_keeps_the_order_the_ends_and_the_background(monkeypatch) -> None:
    monkeypatch.setattr(torch, "rand", torch.zeros)  # the greatest power, 1 + gamma
    image = torch.tensor([-1.0, 0.0, 0.5, 1.0, 3.0]).reshape(1, 1, 5, 1, 1)
    out, _ = BatchAugmentation((5, 1, 1), flip_prob=0, gamma=1)(image, torch.zeros(1, 1, 5, 1, 1))
    # Brain reaches from -1 to 3; 0.5 lies 3/8 of the way, and its square is 9/64.
    assert out.flatten().tolist() == pytest.approx([-1, 0, -1 + 4 * 9 / 64, -1 + 4 / 4, 3])


def test_gamma_bends_between_the_ends_of_brain_alone(monkeypatch) -> None:
    # Of brain from 1 to 5, 2 lies a quarter of the way; of brain from -5 to -1, -2 three quarters.
    monkeypatch.setattr(torch, "rand", torch.zeros)
    image = torch.tensor([[0.0, 1, 2, 5], [0, -5, -2, -1]]).reshape(1, 2, 4, 1, 1)
    out, _ = BatchAugmentation((4, 1, 1), flip_prob=0, gamma=1)(image, torch.zeros(1, 1, 4, 1, 1))
    assert out.flatten().tolist() == pytest.approx([0, 1, 1 + 4 / 16, 5, 0, -5, -5 + 4 * 9 / 16, -1])


def test_an_empty_or_uniform_patch_survives_every_change() -> None:
    torch.manual_seed(0)
    augment = BatchAugmentation((4, 4, 4), affine_prob=1, rotation=0.2, blur_prob=1, blur=1, gamma=0.5, scale=0.1)
    for value in (0.0, 2.0):
        out, _ = augment(torch.full((2, 4, 4, 4, 4), value), torch.zeros(2, 1, 4, 4, 4))
        assert torch.isfinite(out).all()
        assert bool(out.any()) == bool(value)


def test_a_patch_loses_at_most_one_sequence_each_equally_often() -> None:
    torch.manual_seed(0)
    out, _ = BatchAugmentation((2, 2, 2), flip_prob=0, drop_prob=0.25)(
        torch.ones(800, 4, 2, 2, 2), torch.zeros(800, 1, 2, 2, 2)
    )
    lost = (out == 0).flatten(2)
    assert torch.equal(lost.all(2), lost.any(2))
    lost = lost.any(2)
    assert lost.sum(1).max() == 1
    assert ((lost.float().mean(0) - 0.25 / 4).abs() < 0.03).all()


def test_the_same_seed_gives_the_same_batch_and_the_input_is_left_alone() -> None:
    image, label = batch(4, 8, 8, 8)
    before = image.clone(), label.clone()
    augment = BatchAugmentation(
        (6, 6, 6), affine_prob=0.5, rotation=0.3, zoom=0.1, blur_prob=0.5, blur=1, gamma=0.5, scale=0.1, shift=0.1
    )
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(augment(image, label))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])


def test_shifts_of_another_number_of_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shift must be one number or one for each of 4 sequences, got \[0.1, 0.5\]"):
        BatchAugmentation((4, 4, 4), shift=[0.1, 0.5])(torch.ones(1, 4, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4))


@pytest.mark.parametrize("name", ["affine_prob", "flip_prob", "blur_prob", "drop_prob"])
def test_a_probability_beyond_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], got 1.5"):
        BatchAugmentation((4, 4, 4), **{name: 1.5})


@pytest.mark.parametrize("zoom", [1.0, -0.1], ids=str)
def test_a_zoom_that_leaves_nothing_of_a_side_is_refused(zoom: float) -> None:
    with pytest.raises(ValueError, match=rf"zoom must be in \[0, 1\), got {zoom}"):
        BatchAugmentation((4, 4, 4), zoom=zoom)


@pytest.mark.parametrize(
    ("spatial", "rotation"), [((4, 4, 4), [0.1, 0.2]), ((4, 4), [0.1] * 3), ((4, 4, 4), [[0.1] * 3])], ids=str
)
def test_angles_of_another_number_of_planes_are_refused(spatial: tuple[int, ...], rotation: list) -> None:
    with pytest.raises(ValueError, match=r"rotation must be one angle or one for each of \[\(0, 1\).*\], got \["):
        BatchAugmentation(spatial, rotation=rotation)


@pytest.mark.parametrize("name", ["blur", "gamma"])
def test_a_negative_strength_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must not be negative, got -1"):
        BatchAugmentation((4, 4, 4), **{name: -1})
