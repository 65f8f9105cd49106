"""MaskDINO's heads: any number of objects, few positions, two processes; instances, segments, label maps."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmdet')

import torch.multiprocessing as mp
from mask_dino_ranks import WORLD, fix_points, work

from mmitpn.models import mask_dino_postprocess as postprocess
from mmitpn.models.heads import MaskDINODecodeHead, MaskDINOFusionHead
from mmitpn.models.mask_dino import LayerOutputs
from mmitpn.models.mask_dino.core import CROSS_ENTROPY, padding_mask_of
from mmitpn.models.mask_dino.criterion import _LOSS_CHUNK
from mmitpn.models.mask_dino.targets import targets_from_instances

ONE_STAGE = {'two_stage': False, 'box_start': 'no'}
PADDED = (32, 64)
# Of the strides 8, 16, 32 and the extra level of 64.
POSITIONS = 4 * 8 + 2 * 4 + 1 * 2 + 1
QUERIES = 60
SHAPES = {'no-padding': [PADDED, PADDED], 'one-small': [PADDED, (20, 24)], 'both-small': [(30, 20), (20, 24)]}
SECONDS = 180
EVENLY = {'train_cfg': {'num_points': 64, 'oversample_ratio': 1.0, 'importance_sample_ratio': 0.0}}


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
    targets = targets_from_instances(
        [sample.gt_instances], [sample.gt_sem_seg.sem_seg[0]], num_things=5, num_stuff=2, size=(96, 128)
    )
    assert targets.objects.labels[0, 3:].tolist() == [5]  # 7 is not a class of the head
    assert targets.has_box.tolist() == [[True] * 3 + [False]]
    assert targets.masks.shape == (4, 96, 128)
    assert not targets.masks[:, 90:].any()
    for mask, (cx, cy, w, h) in zip(targets.masks, targets.objects.boxes[0].tolist(), strict=True):
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
    assert padding.shape == (2, 96, 128)
    assert not padding[0].any()
    assert padding[1].sum() == 96 * 128 - 90 * 100


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


def pair(make_head, **settings):
    """A head with more queries than positions, and one with one query per position, with equal weights."""
    more, exact = (make_head(num_queries=number, **settings) for number in (QUERIES, POSITIONS))
    torch.manual_seed(4)
    for name, weight in more.named_parameters():
        if weight.dim() > 1 and name.startswith('predictor.'):
            torch.nn.init.normal_(weight, std=0.2)
    weights = more.state_dict()
    for name in weights.keys() & {'predictor.query_content.weight'}:
        weights[name] = weights[name][:POSITIONS]
    exact.load_state_dict(weights)
    return more, exact


def samples_of(make_sample, shapes, numbers=(2, 3), stuff=None):
    return [
        make_sample(number, stuff, shape=shape, padded=PADDED) for number, shape in zip(numbers, shapes, strict=True)
    ]


@pytest.mark.parametrize(
    ('settings', 'shapes'),
    [
        ({}, 'one-small'),
        ({'box_start': 'bitmask', 'released': True}, 'both-small'),
        ({'box_start': 'no', 'learn_queries': True, 'loss_cls': CROSS_ENTROPY}, 'one-small'),
        ({'denoising': {'kind': 'no'}}, 'no-padding'),
    ],
    ids=['default', 'released', 'learned-content', 'no-denoising'],
)
def test_losses_and_gradients_equal_those_of_one_query_per_position(
    make_head, make_maps, make_sample, settings, shapes
):
    outcomes = []
    for head in pair(make_head, **settings):
        torch.manual_seed(3)
        losses = head.train().loss(make_maps(PADDED), samples_of(make_sample, SHAPES[shapes]))
        sum(losses.values()).backward()
        outcomes.append((losses, {name: weight.grad for name, weight in head.named_parameters()}))
    (losses, gradients), (expected, expected_gradients) = outcomes
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    largest = max(gradient.abs().max().item() for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        if name == 'predictor.query_content.weight':
            assert (gradient[POSITIONS:] == 0).all()
            gradient = gradient[:POSITIONS]
        # The projections before a GroupNorm of one or two cells have gradients of rounding errors only.
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-4 * largest, msg=name)


@pytest.mark.parametrize('shapes', SHAPES.values(), ids=SHAPES)
def test_every_layer_gives_every_position_once(make_head, make_maps, make_sample, shapes):
    samples = samples_of(make_sample, shapes)
    outcomes = []
    for head in pair(make_head):
        with torch.no_grad():
            padding_mask = padding_mask_of([sample.metainfo for sample in samples], torch.device('cpu'))
            outcomes.append(head.eval()(make_maps(PADDED), padding_mask)[0])
    found, expected = outcomes
    assert found.selected.index.sort().values.tolist() == [list(range(POSITIONS))] * 2
    # All positions on padding have the same score, content and box: their order is arbitrary.
    best, expected_best = (one.selected.scores.gather(1, one.selected.index) for one in (found, expected))
    assert torch.equal(best, expected_best)
    torch.testing.assert_close(found.references, expected.references, rtol=1e-4, atol=1e-5)
    found, expected = found.matched(), expected.matched()
    assert found.logits.shape == (2, 2, POSITIONS, 5)  # of the encoder and the last layer
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.masks(), expected.masks(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('shapes', [SHAPES['no-padding'], SHAPES['one-small']], ids=['no-padding', 'one-small'])
def test_instances_segments_and_label_maps_have_no_padded_query(make_head, make_maps, make_sample, shapes):
    """If max_per_image allows all candidates, every position is returned once per thing class."""
    fusion = MaskDINOFusionHead(
        5, 2, test_cfg={'panoptic_on': True, 'semantic_on': True, 'max_per_image': 10 * QUERIES, 'object_mask_thr': 0.0}
    )
    samples = samples_of(make_sample, shapes)
    outcomes = []
    for head in pair(make_head, num_stuff_classes=2, box_start='no'):
        with torch.no_grad():
            outcomes.append(fusion.predict(head.eval().predict(make_maps(PADDED), samples), samples))
    for found, expected in zip(*outcomes, strict=True):
        instances, expected_instances = found['ins_results'], expected['ins_results']
        assert len(instances) == POSITIONS * 5
        scores, expected_scores = (one.scores.sort().values for one in (instances, expected_instances))
        torch.testing.assert_close(scores, expected_scores, rtol=1e-4, atol=1e-5)
        for name in ('pan_results', 'sem_results'):
            different = found[name].sem_seg != expected[name].sem_seg
            assert different.float().mean() < 0.01  # rounding on the border between two masks


@pytest.mark.parametrize('numbers', [(3, 0), (0, 0), (50, 1)], ids=lambda numbers: '-'.join(map(str, numbers)))
@pytest.mark.parametrize(
    ('loss', 'stuff'), [({}, None), ({'loss_cls': CROSS_ENTROPY}, (5, 6))], ids=['focal-instances', 'softmax-panoptic']
)
def test_any_number_of_objects_trains(make_head, make_maps, make_sample, numbers, loss, stuff):
    """Also more objects than positions, and images without objects."""
    head = make_head(num_queries=QUERIES, num_stuff_classes=2 if stuff else 0, **loss).train()
    losses = head.loss(make_maps(PADDED), samples_of(make_sample, SHAPES['one-small'], numbers, stuff))
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    for name, weight in head.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name


@pytest.mark.parametrize('loss', [{}, {'loss_cls': CROSS_ENTROPY}], ids=['focal', 'softmax'])
def test_semantic_scores_equal_those_of_one_query_per_position(make_head, make_maps, loss):
    settings = {'cls': MaskDINODecodeHead, 'num_classes': 4, 'two_stage': True}
    focal = {} if loss else {'loss_cls': {'type': 'mmdet.FocalLoss', 'use_sigmoid': True, 'loss_weight': 4.0}}
    outcomes = []
    for head in pair(make_head, **settings, **(loss or focal)):
        with torch.no_grad():
            outcomes.append(head.eval().predict(make_maps(PADDED), [{'img_shape': PADDED}] * 2, {}))
    assert outcomes[0].shape == (2, 4, *PADDED)
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('two_stage', [True, False])
def test_a_decode_head_trains_on_a_window_with_fewer_positions_than_queries(make_head, make_maps, two_stage):
    head = make_head(MaskDINODecodeHead, num_classes=4, num_queries=QUERIES, two_stage=two_stage).train()
    targets = head.targets_of([torch.randint(0, 4, PADDED), torch.full(PADDED, 255)])
    losses = head.core.loss_by_targets(make_maps(PADDED), None, targets)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert all(weight.grad.isfinite().all() for weight in head.parameters())


@pytest.mark.slow
def test_two_processes_train_as_one_even_if_one_has_no_objects(
    make_head, make_maps, make_sample, tmp_path, monkeypatch
):
    kinds = {'focal': {}, 'softmax': {'loss_cls': CROSS_ENTROPY}}
    settings = {'num_stuff_classes': 2, 'denoising': {'noise_scale': 1e-9}, **EVENLY}
    heads = {kind: make_head(**settings, **loss).train() for kind, loss in kinds.items()}
    cases = {
        'equal': (make_maps(), [make_sample(2, (5,)), make_sample(2, (6,))]),
        'unequal': (make_maps(), [make_sample(4, (5, 6)), make_sample(1, ())]),
        'one empty': (make_maps(), [make_sample(3, ()), make_sample(0, ())]),
        'none': (make_maps(), [make_sample(0, ()), make_sample(0, ())]),
    }
    monkeypatch.setattr(torch, 'rand', torch.rand)  # restored after the test
    fix_points()
    expected = {
        kind: {name: {k: v.detach() for k, v in head.loss(*args).items()} for name, args in cases.items()}
        for kind, head in heads.items()
    }
    context = mp.spawn(work, args=(str(tmp_path), heads, cases), nprocs=WORLD, join=False)
    deadline = time.monotonic() + SECONDS
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f'two processes did not end within {SECONDS} s')
    first, second = (torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in range(WORLD))
    for kind, of_cases in expected.items():
        rank0, rank1 = first[kind], second[kind]
        for name, losses in of_cases.items():
            if name == 'none':  # sums are divided by at least one object per process, as in the released code
                continue
            for loss, value in losses.items():
                if (
                    name != 'equal' and 'dn_' in loss
                ):  # the number of groups depends on the image with most objects of a process
                    continue
                mean = (rank0[name][loss] + rank1[name][loss]) / 2
                where = (kind, name, loss)
                torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-5, msg=lambda m, w=where: f'{w}: {m}')
        for name, value in rank0['weights'].items():
            assert torch.equal(value, rank1['weights'][name]), name
        start = heads[kind].state_dict()
        assert any(not torch.equal(value, start[name]) for name, value in rank0['weights'].items())


def outputs(masks, logits, boxes=None):
    """Queries with these masks ``(Q, H, W)``, one channel each."""
    queries = len(masks)
    boxes = torch.full((1, queries, 4), 0.5) if boxes is None else boxes[None]
    return LayerOutputs(logits[None], boxes, torch.eye(queries)[None], masks[None])


def rectangle(top, bottom, left, right, *, size=(24, 32)):
    mask = torch.full(size, -20.0)
    mask[top:bottom, left:right] = 20.0
    return mask


def one_hot(labels, classes, score=4.0):
    return torch.where(F.one_hot(torch.tensor(labels), classes).bool(), score, -6.0)


def test_instances_are_in_pixels_of_the_image_before_resizing(make_sample):
    head = MaskDINOFusionHead(5, test_cfg={'max_per_image': 2})
    masks = torch.stack([rectangle(0, 12, 0, 16), rectangle(12, 24, 16, 32)])
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]])
    sample = make_sample(0)  # 90 x 110, padded to 96 x 128; 45 x 55 before resizing
    (found,) = head.predict(outputs(masks, one_hot([1, 4], 5), boxes), [sample])
    instances = found['ins_results']
    assert instances.masks.shape == (2, 45, 55)
    assert sorted(instances.labels.tolist()) == [1, 4]
    first = instances[instances.labels == 1]
    assert first.masks[0, :23, :31].all()
    assert not first.masks[0, 25:].any()
    assert first.bboxes.tolist() == [[0.0, 0.0, 32.0, 24.0]]
    second = instances[instances.labels == 4]
    assert second.bboxes.tolist() == [[32.0, 24.0, 55.0, 45.0]]  # clipped at the border of the image
    assert first.scores.item() == pytest.approx(torch.tensor(4.0).sigmoid().item(), abs=0.02)
    (padded,) = head.predict(outputs(masks, one_hot([1, 4], 5), boxes), [sample], rescale=False)
    assert padded['ins_results'].masks.shape == (2, 90, 110)


def test_score_is_class_score_times_mask_score(make_sample):
    head = MaskDINOFusionHead(2)
    masks = torch.stack([rectangle(0, 12, 0, 16), rectangle(0, 12, 0, 16).clamp(-20, 0.5)])
    (found,) = head.predict(outputs(masks, one_hot([0, 0], 2)), [make_sample(0)])
    best = found['ins_results'].scores.sort(descending=True).values
    assert best[1] / best[0] == pytest.approx(torch.tensor(0.5).sigmoid().item(), abs=0.03)


def test_stuff_gives_no_instances_and_few_queries_give_few_instances(make_sample):
    head = MaskDINOFusionHead(2, 3, test_cfg={'max_per_image': 100})
    masks = torch.stack([rectangle(0, 12, 0, 16), rectangle(12, 24, 0, 16)])
    (found,) = head.predict(outputs(masks, one_hot([1, 4], 5)), [make_sample(0)])
    assert len(found['ins_results']) == 2 * 2  # every query with every thing class
    assert found['ins_results'].labels.max() < 2


@pytest.mark.parametrize('values', [1, 2**24])
def test_segments(make_sample, monkeypatch, values):
    monkeypatch.setattr(postprocess, '_MAX_VALUES', values)  # one mask at a time, or all
    head = MaskDINOFusionHead(2, 2, test_cfg={'panoptic_on': True, 'instance_on': False})
    masks = torch.stack(
        [
            rectangle(0, 8, 0, 10),  # thing
            rectangle(0, 8, 12, 22),  # thing of the same class
            rectangle(10, 20, 0, 10),  # stuff, twice: one segment
            rectangle(10, 20, 12, 22),
            rectangle(0, 8, 0, 10),  # where the first thing is, with a lower score: keeps no pixel
            rectangle(20, 22, 0, 10),  # a score below the threshold
        ]
    )
    logits = torch.cat((one_hot([0, 0, 3, 3], 4), one_hot([1], 4, 1.0), one_hot([1], 4, -2.0)))
    (found,) = head.predict(outputs(masks, logits), [make_sample(0)])
    segments = found['pan_results'].sem_seg[0]
    assert segments.shape == (45, 55)
    assert segments[4, 4] % 1000 == segments[4, 36] % 1000 == 0
    assert {int(segments[4, 4]) // 1000, int(segments[4, 36]) // 1000} == {1, 2}
    assert segments[30, 4] == segments[30, 36] == 3
    assert set(segments.unique().tolist()) == {1000, 2000, 3, 4}  # 4: no class
    (nothing,) = head.predict(outputs(masks, torch.full((6, 4), -6.0)), [make_sample(0)])
    assert (nothing['pan_results'].sem_seg == 4).all()


@pytest.mark.parametrize('values', [1, 2**24])
def test_label_map(make_sample, monkeypatch, values):
    monkeypatch.setattr(postprocess, '_MAX_VALUES', values)
    head = MaskDINOFusionHead(3, test_cfg={'semantic_on': True, 'instance_on': False})
    masks = torch.stack([rectangle(0, 24, 0, 16), rectangle(0, 24, 16, 32)])
    (found,) = head.predict(outputs(masks, one_hot([2, 0], 3)), [make_sample(0)])
    labels = found['sem_results'].sem_seg[0]
    assert (labels[:, :31] == 2).all()
    assert (labels[:, 33:] == 0).all()


def test_background_is_left_out(make_sample):
    head = MaskDINOFusionHead(2, 1, test_cfg={'panoptic_on': True, 'semantic_on': True})
    masks = torch.stack([rectangle(0, 24, 0, 16), rectangle(0, 24, 16, 32)])
    (found,) = head.predict(outputs(masks, one_hot([1, 3], 4)), [make_sample(0)])
    assert set(found['pan_results'].sem_seg.unique().tolist()) == {1001, 3}
    assert found['sem_results'].sem_seg.max() < 3


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'iou': 0.5}, 'test_cfg has iou; allowed: instance_on, panoptic_on'),
        ({'instance_on': False}, 'switches everything off'),
    ],
)
def test_invalid_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        MaskDINOFusionHead(2, test_cfg=settings)
