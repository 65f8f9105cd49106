"""MaskDINO with the synthetic weights of the reference, against outputs, losses and gradients of the released code."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmdet')

from mmitpn.models.dino.matching import assign
from mmitpn.models.mask_dino import MaskDINOTargets
from mmitpn.models.mask_dino.query_init import (
    init_reference_boxes,
    make_denoising_queries,
    normalized_boxes_of_masks,
)
from mmitpn.testing import build_mask_dino_case

REFERENCE = Path(__file__).parents[1] / 'data/reference/mask_dino.json'
CASES = ('instance_bitmask_3of3', 'extra_smooth_bitmask_3of3')
LOSSES = {'ce': 'cls', 'giou': 'iou'}
WEIGHTS = {'cls': 4, 'mask': 5, 'dice': 5, 'bbox': 5, 'iou': 2}


@pytest.fixture(scope='module')
def reference():
    return json.loads(REFERENCE.read_text())


def weights_of(case, fill):
    weights = fill.fill(case['shapes'])
    for name, others in case['aliases'].items():
        weights |= dict.fromkeys(others, weights[name])
    return weights | {name: torch.ones(shape) for name, shape in case['buffers'].items()}


def features_of(case):
    features = {}
    for name, shape in case['constructor']['encoder']['input_shape'].items():
        channels, stride = shape['channels'], shape['stride']
        size = [side // stride for side in case['size']]
        kind, smooth = ('smooth', case['smooth_features']) if case['smooth_features'] else ('feat', size)
        generator = torch.Generator().manual_seed(zlib.crc32(f'maskdino_{kind}_{name}'.encode()))
        x = torch.randn(2, channels, *smooth, generator=generator)
        features[name] = F.interpolate(x, size=size, mode='bilinear', align_corners=False) if kind == 'smooth' else x
    return features


def agree(actual, expected, fill, tolerance):
    sample = fill.sample(actual)
    assert sample['shape'] == expected['shape']
    torch.testing.assert_close(torch.tensor(sample['values']), torch.tensor(expected['values']), rtol=0, atol=tolerance)


@pytest.mark.parametrize('name', CASES)
def test_every_stage_equals_the_released_code(name, reference, fill):
    case = reference[name]
    model = build_mask_dino_case(case, {'model': weights_of(case, fill)})
    with torch.no_grad():
        stages = model(features_of(case))
    agree(stages['pixel_decoder']['mask_features'], case['pixel_decoder']['mask_features'], fill, 1e-5)
    for level, expected in zip(
        stages['pixel_decoder']['multi_scale'], case['pixel_decoder']['multi_scale'], strict=True
    ):
        agree(level, expected, fill, 1e-5)
    assert [list(level) for level in stages['decoder_levels']] == case['decoder_levels']
    assert stages['topk'].tolist() == case['topk']
    agree(stages['token_scores'], case['token_scores'], fill, 2e-5)
    torch.testing.assert_close(
        stages['refpoint_init_sigmoid'].flatten(),
        torch.tensor(case['refpoint_init_sigmoid']['values']),
        rtol=0,
        atol=1e-6,
    )
    for layer, expected in case['references'].items():
        agree(stages['references'][layer], expected, fill, 5e-6)
    for layer, expected in case['outputs'].items():
        found = stages['outputs'][layer]
        agree(found['pred_logits'], expected['pred_logits'], fill, 2e-5)
        agree(found['pred_boxes'], expected['pred_boxes'], fill, 5e-6)
        agree(found['pred_masks'], expected['pred_masks'] or case['aux_masks_in_train_mode'][layer], fill, 1.6e-4)


def targets_of(images, objects):
    """Targets of a batch of the reference, and the rectangles of its objects."""
    rectangles = [one for image in images for one in objects.get(image, [])]
    masks = torch.zeros(len(rectangles), 128, 160, dtype=torch.bool)
    for mask, (x0, y0, x1, y1, _) in zip(masks, rectangles, strict=True):
        mask[y0:y1, x0:x1] = True
        mask[y0 : (y0 + y1) // 2, x0 : (x0 + x1) // 2] = False
    of_images = [objects.get(image, []) for image in images]
    labels = [torch.tensor([int(one[4].split()[1]) for one in some], dtype=torch.long) for some in of_images]
    boxes = [torch.tensor([one[:4] for one in some], dtype=torch.float32).view(-1, 4) for some in of_images]
    return MaskDINOTargets.of(labels, boxes, masks)


def loss_name(name):
    """loss_ce_dn_3 -> d3.dn_loss_cls, loss_mask_interm -> enc_loss_mask, loss_giou -> loss_iou."""
    kind, denoising, layer = re.fullmatch(r'loss_(ce|mask|dice|bbox|giou)(_dn)?(?:_(\d+|interm))?', name).groups()
    prefix = '' if layer is None else 'enc_' if layer == 'interm' else f'd{layer}.'
    return f'{prefix}{"dn_" if denoising else ""}loss_{LOSSES.get(kind, kind)}'


@pytest.fixture
def fixed_points(monkeypatch):
    """Random points as the reference has them: the same for all masks, by their number."""
    real = torch.rand

    def rand(*size, **kwargs):
        size = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        if len(size) != 3 or size[2] != 2:
            return real(*size, **kwargs)
        generator = torch.Generator().manual_seed(zlib.crc32(f'maskdino_points_{size[1]}'.encode()))
        return real(size[1], 2, generator=generator).expand(size).clone()

    return lambda: monkeypatch.setattr(torch, 'rand', rand)


def fix_noise(patch, dn, counts, num_classes):
    """Let the noise be what the released code draws: flat, group by group and image by image, without padding."""
    batch = torch.cat([torch.full((count,), image) for image, count in enumerate(counts)]).repeat(dn['scalar'])
    where = batch, torch.tensor(dn['map_known_indice'])
    torch.manual_seed(0)
    size = (len(counts), dn['pad_size'])
    change, labels, noise = torch.ones(size), torch.zeros(size, dtype=torch.long), torch.full((*size, 4), 0.5)
    change[where] = torch.rand(len(batch))
    changed = change[where] < 0.2
    labels[batch[changed], where[1][changed]] = torch.randint(0, num_classes, (int(changed.sum()),))
    noise[where] = torch.rand(len(batch), 4)
    patch.setattr(torch, 'rand', lambda *_, **__: change)
    patch.setattr(torch, 'randint_like', lambda *_: labels)
    patch.setattr(torch, 'rand_like', lambda *_: noise)
    return where


@pytest.mark.parametrize('batch', ['3_0', '3_5', '0_0'])
def test_losses_and_gradients_equal_the_released_criterion(batch, reference, fill, fixed_points, monkeypatch):
    case = reference[CASES[0]]
    model = build_mask_dino_case(case, weights_of(case, fill)).train()
    head, expected = model.head, case['train'][batch]
    rectangles = {'A': 'A (3)', 'B': 'B (5)'}
    objects = {image: reference['about']['objects'][name] for image, name in rectangles.items()}
    targets = targets_of(expected['images'], objects)
    for image, target in enumerate(expected['targets']):
        count = len(target['labels'])
        assert targets.objects.labels[image, :count].tolist() == target['labels']
        torch.testing.assert_close(targets.objects.boxes[image, :count], torch.tensor(target['boxes']).view(-1, 4))
    features = list(features_of(case).values())
    with monkeypatch.context() as patch:
        dn = expected['dn']
        where = fix_noise(patch, dn, targets.counts, head.num_classes) if dn else None
        outputs, dn_queries = head(features, None, targets)
    if dn is None:
        assert dn_queries is None
    else:
        assert (dn_queries.groups, dn_queries.number) == (dn['scalar'], dn['pad_size'])
        assert dn_queries.labels[where].tolist() == dn['labels_after']
    fixed_points()
    criterion = head.criterion
    criterion.num_points = criterion.match_costs.num_points = 512
    for variant in ('importance', 'fixed'):
        settings = expected['criterion'][variant]
        criterion.oversample_ratio = settings['oversample_ratio']
        criterion.importance_sample_ratio = settings['importance_sample_ratio']
        queries = assign(criterion.match_costs(outputs.matched(), targets), targets.objects.valid)
        losses = criterion(outputs, targets, queries, dn_queries, denoising=True)
        assert len(losses) == len(settings['losses'])
        for name, value in settings['losses'].items():
            key = loss_name(name)
            weight = WEIGHTS[key.rsplit('_', 1)[1]]
            assert losses[key].item() / weight == pytest.approx(value, rel=2e-5, abs=1e-6), name
        assert sum(losses.values()).item() == pytest.approx(settings['total_weighted'], rel=1e-5)
    if 'grad_norm' in expected:
        from mmitpn.checkpoint.mask_dino_keys import convert_head_key

        sum(losses.values()).backward()
        gradients = {name: weight.grad.norm().item() for name, weight in head.named_parameters()}
        assert all(gradients.values())
        for name, value in expected['grad_norm'].items():
            # Bilinear sampling has kinks: a point that lies on the other side of one changes the offsets' gradients.
            assert gradients[convert_head_key(name)] == pytest.approx(value, rel=2e-3), name


@pytest.mark.parametrize('kind', ['bitmask', 'mask2box'])
def test_initial_boxes_of_given_masks(kind, reference):
    case = reference['box_init']
    masks = torch.zeros(len(case['masks']), *case['size'], dtype=torch.bool)
    for mask, rectangles in zip(masks, case['masks'], strict=True):
        for x0, y0, x1, y1 in rectangles:
            mask[y0:y1, x0:x1] = True
    logits = torch.where(masks, 3.0, -3.0)[None]
    found = init_reference_boxes(logits, torch.zeros(1, len(masks), 4), kind, released=True)[0]
    torch.testing.assert_close(found, torch.tensor(case[kind]['refpoint_unsigmoid']), rtol=1e-5, atol=2e-5)
    boxes, filled = normalized_boxes_of_masks(masks, kind)
    assert filled.tolist() == [bool(rectangles) for rectangles in case['masks']]
    torch.testing.assert_close(boxes[filled], torch.tensor(case[kind]['cxcywh_norm'])[filled], rtol=1e-6, atol=1e-6)


def test_an_empty_mask_starts_from_its_proposal():
    proposals = torch.randn(1, 2, 4)
    logits = torch.full((1, 2, 8, 8), -1.0)
    logits[0, 0, 2:4, 1:5] = 1.0
    found = init_reference_boxes(logits, proposals, 'bitmask', released=False)
    assert torch.equal(found[0, 1], proposals[0, 1])
    torch.testing.assert_close(found[0, 0].sigmoid(), torch.tensor([3 / 8, 3 / 8, 4 / 8, 2 / 8]))
    assert torch.equal(init_reference_boxes(logits, proposals, 'no', released=False), proposals)


def test_wrong_weights_raise(reference, fill):
    case = reference[CASES[0]]
    weights = weights_of(case, fill)
    wrong = {'decoder': case['constructor']['decoder'], 'encoder': dict(case['constructor']['encoder'])}
    wrong['encoder']['transformer_dim_feedforward'] = 2048
    with pytest.raises(ValueError, match=r'num_levels=3, feedforward_channels=1024 in the pixel decoder, 80 classes'):
        build_mask_dino_case({'constructor': wrong}, weights)
    with pytest.raises(ValueError, match='no weight is below sem_seg_head'):
        build_mask_dino_case(case, {'x': torch.zeros(1)})


def test_denoising_queries_are_noised_copies():
    torch.manual_seed(0)
    labels = [torch.tensor([1, 2]), torch.tensor([0])]
    boxes = [torch.tensor([[8.0, 8.0, 24.0, 40.0], [0.0, 0.0, 64.0, 64.0]]), torch.tensor([[16.0, 16.0, 32.0, 32.0]])]
    targets = MaskDINOTargets.of(labels, boxes, torch.zeros(3, 64, 64, dtype=torch.bool)).objects
    dn = make_denoising_queries(targets, num_queries=2001, num_classes=4, noise_scale=0.4)
    assert (dn.groups, dn.number) == (1000, 2000)
    assert dn.valid.unflatten(1, (1000, 2)).all(1).tolist() == [[True, True], [True, False]]
    assert (dn.boxes[1, 1::2] == 0).all()
    changed = (dn.labels[0, ::2] != 1).float().mean().item()
    assert changed == pytest.approx(0.2 * 3 / 4, abs=0.04)  # a random label may be the same one
    moved = dn.boxes[0, ::2].sigmoid() - targets.boxes[0, 0]
    reach = torch.tensor([0.25 / 2, 0.5 / 2, 0.25, 0.5]) * 0.4
    assert (moved.abs() <= reach + 1e-6).all()
    assert (moved.abs().amax(0) > 0.95 * reach).all()
    mask = dn.attention_mask(3)
    assert mask.shape == (2003, 2003)
    assert not mask[:, 2000:].any()
    assert mask[2000:, :2000].all()
    assert mask[0, :4].tolist() == [False, False, True, True]


def test_too_many_objects_give_no_denoising_queries():
    masks = torch.zeros(101, 4, 4, dtype=torch.bool)
    targets = MaskDINOTargets.of([torch.zeros(101, dtype=torch.long)], [torch.rand(101, 4)], masks).objects
    assert make_denoising_queries(targets, num_queries=100, num_classes=5, noise_scale=0.4) is None
    assert make_denoising_queries(targets, num_queries=101, num_classes=5, noise_scale=0.4).groups == 1
