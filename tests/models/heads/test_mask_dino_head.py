"""MaskDINO's head trains on images with any number of objects."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip('mmdet')

from mmitpn.models.mask_dino.core import CROSS_ENTROPY, padding_mask_of
from mmitpn.models.mask_dino.criterion import _LOSS_CHUNK, targets_from_instances

ONE_STAGE = {'two_stage': False, 'box_start': 'no'}


def train(head, maps, samples):
    losses = head.train().loss(maps, samples)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    without = [name for name, weight in head.named_parameters() if weight.grad is None]
    assert without == []
    return losses


@pytest.mark.parametrize(
    'numbers', [(3, 5), (3, 0), (0, 0), (1, 1), (150, 2), (310, 0)], ids=lambda numbers: '-'.join(map(str, numbers))
)
@pytest.mark.parametrize('settings', [{}, ONE_STAGE, {'denoising': {'kind': 'standard'}}], ids=['', 'one-stage', 'dn'])
def test_any_number_of_objects(make_head, make_maps, make_sample, numbers, settings):
    train(make_head(**settings), make_maps(), [make_sample(number) for number in numbers])


@pytest.mark.parametrize('stuff', [((5, 6), (6,)), ((), ()), ((5,), ())])
@pytest.mark.parametrize('things', [(2, 3), (0, 0)])
@pytest.mark.parametrize('loss', [{}, {'loss_cls': CROSS_ENTROPY}], ids=['focal', 'softmax'])
def test_things_and_stuff(make_head, make_maps, make_sample, stuff, things, loss):
    head = make_head(num_stuff_classes=2, box_start='no', **loss)
    samples = [make_sample(number, labels) for number, labels in zip(things, stuff, strict=True)]
    losses = train(head, make_maps(), samples)
    if not any(things):  # boxes of stuff are not learned
        assert losses['loss_bbox'] == losses['loss_iou'] == losses['dn_loss_bbox'] == 0
    assert (losses['loss_mask'] > 0) == any((*things, *map(len, stuff)))


def test_one_class(make_head, make_maps, make_sample):
    train(make_head(num_things_classes=1), make_maps(), [make_sample(4, classes=1), make_sample(0)])


def test_losses_have_names_of_the_detr_family(make_head, make_maps, make_sample):
    names = set(train(make_head(), make_maps(), [make_sample(2), make_sample(1)]))
    kinds = {f'loss_{kind}' for kind in ('cls', 'mask', 'dice', 'bbox', 'iou')}
    prefixes = ('', 'd0.', 'd1.', 'enc_', 'dn_', 'd0.dn_', 'd1.dn_')
    assert names == {prefix + kind for prefix in prefixes for kind in kinds}


def test_many_masks_give_the_gradients_of_few(make_head, make_maps, make_sample, monkeypatch):
    """With more masks than a chunk, the backward pass computes them again, at the same points."""
    samples = [make_sample(_LOSS_CHUNK // 2), make_sample(2)]
    gradients = []
    for chunk in (4, 1000):
        monkeypatch.setattr('mmitpn.models.mask_dino.criterion._LOSS_CHUNK', chunk)
        head = make_head(train_cfg={'num_points': 64, 'importance_sample_ratio': 0.0, 'oversample_ratio': 1.0})
        monkeypatch.setattr(
            'mmitpn.models.mask_dino.criterion.get_uncertain_point_coords_with_randomness',
            lambda masks, *_: torch.linspace(0.01, 0.99, 128).view(1, 64, 2).expand(len(masks), -1, -1),
        )
        torch.manual_seed(0)
        train(head, make_maps(), samples)
        gradients.append({name: weight.grad for name, weight in head.named_parameters()})
    largest = max(gradient.abs().max().item() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-6 * largest)


def test_boxes_and_masks_are_relative_to_the_padded_image(make_sample):
    sample = make_sample(3, (5, 7))
    targets = targets_from_instances(sample.gt_instances, sample.gt_sem_seg, num_things=5, num_stuff=2, size=(96, 128))
    assert targets.labels.tolist()[3:] == [5]  # 7 is not a class of the head
    assert targets.has_box.tolist() == [True] * 3 + [False]
    assert targets.masks.shape == (4, 96, 128)
    assert not targets.masks[:, 90:].any()
    for mask, (cx, cy, w, h) in zip(targets.masks, targets.boxes.tolist(), strict=True):
        y, x = mask.nonzero().T
        assert x.min() == round((cx - w / 2) * 128)
        assert x.max() + 1 == round((cx + w / 2) * 128)
        assert y.min() == round((cy - h / 2) * 96)
        assert y.max() + 1 == round((cy + h / 2) * 96)


def test_padding_mask():
    device = torch.device('cpu')
    whole = {'img_shape': (96, 128, 3), 'batch_input_shape': (96, 128)}
    assert padding_mask_of([whole, whole], device) is None
    padding = padding_mask_of([whole, {**whole, 'img_shape': (90, 100)}], device)
    assert padding.shape == (2, 24, 32)
    assert not padding[0].any()
    assert padding[1].sum() == 24 * 32 - 23 * 25


@pytest.mark.parametrize('released', [False, True])
def test_values_in_the_padding_do_not_matter(make_head, make_maps, make_sample, released):
    settings = {'num_layers': 1, 'num_heads': 4, 'feedforward_channels': 32, 'num_levels': 3}
    head = make_head(released=released, box_start='no', pixel_decoder=settings).eval()
    maps, changed = make_maps(), make_maps()
    for level, stride in zip(changed, (4, 8, 16, 32), strict=True):
        level[..., -(-110 // stride) :] += 1.0
    # GroupNorm and the convolutions of extra levels read the padding: here without them.
    for model in head.modules():
        if isinstance(model, torch.nn.GroupNorm):
            model.forward = lambda x: x
    samples = [make_sample(1), make_sample(1)]
    with torch.no_grad():
        one, two = head.predict(maps, samples), head.predict(changed, samples)
    assert torch.equal(one.logits, two.logits) != released


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'box_start': 'mask'}, "box_start is 'mask'; allowed: 'mask2box', 'bitmask', 'no'"),
        ({'two_stage': False}, 'but two_stage is False'),
        ({'denoising': {'kind': 'contrastive'}}, "give kind \\('seg', 'standard', 'no'\\)"),
        ({'denoising': {'groups': 3}}, 'give kind'),
        ({'num_things_classes': 0}, 'num_things_classes \\+ num_stuff_classes is 0'),
        ({'num_queries': 0}, 'num_queries is 0; give an integer of at least 1'),
        ({'train_cfg': {'assigner': {}}}, 'train_cfg has assigner; allowed: match_costs, num_points'),
        ({'loss_cls': {**CROSS_ENTROPY, 'class_weight': [1.0, 0.1]}}, 'needs num_classes \\+ 1 = 6'),
    ],
)
def test_inconsistent_settings_raise(make_head, settings, message):
    with pytest.raises(ValueError, match=message):
        make_head(**settings)


def test_unsuitable_data_raise(make_head, make_maps, make_sample):
    with pytest.raises(ValueError, match='2 classes of stuff, but the data have no gt_sem_seg'):
        make_head(num_stuff_classes=2).loss(make_maps(), [make_sample(1), make_sample(2)])
    sample = make_sample(2)
    del sample.gt_instances.masks
    with pytest.raises(ValueError, match='gt_instances have no masks'):
        make_head().loss(make_maps(), [make_sample(1), sample])
    with pytest.raises(ValueError, match='the pixel decoder was given 4 maps, the finest of 8 channels'):
        make_head().predict([x[:, :8] for x in make_maps()], [make_sample(1)] * 2)
