"""DINO: equal to mmdet's, on one process and two, and with images of fewer positions than it has queries."""

from __future__ import annotations

import json
import time
from copy import deepcopy
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

import torch.multiprocessing as mp
from dino_cases import base_config, batch, build, resnet_config, tiny_config, total
from dino_ranks import EQUAL, UNEQUAL, WORLD, make_model, values, work
from mmdet.models.detectors import DINO as MMDetDINO  # noqa: N811 (mmitpn.DINO has the same name)

import mmitpn
from mmitpn.models.dino import FeatureLevels, MultiScaleDeformableAttention, make_padding_mask
from mmitpn.models.dino.denoising import ContrastiveDenoising
from mmitpn.models.dino.matching import BoxTargets

NAMES = Path(__file__).with_name('dino_state_dict.json')
PREDICTION = Path(__file__).with_name('dino_prediction.json')
POSITIONS = 85  # of an image of 32 x 32 pixels: 64 + 16 + 4 + 1
QUERIES = 100
# A single image, and a large and a small one in one batch.
SHAPES = {'single': [(32, 32)], 'padded': [(32, 32), (20, 12)], 'both-padded': [(24, 32), (32, 9)]}
SECONDS = 180
NOISE = {'label_noise_scale': 0.5, 'box_noise_scale': 1.0, 'group_cfg': {'num_dn_queries': 100}}


@pytest.fixture
def model():
    return build(tiny_config()).train()


@pytest.fixture
def resnet_pair():
    """mmitpn.DINO and mmdet's DINO."""
    ours, mmdet_model = build(resnet_config('mmitpn.DINO')), build(resnet_config('DINO'))
    return ours, mmdet_model


@pytest.fixture
def same_decoder(resnet_pair):
    ours, mmdet_model = resnet_pair
    if mmdet_model.decoder.ref_point_head.layers[0].in_features != 512:
        pytest.skip('the installed mmdet has a decoder of other shapes (onedl-mmdetection: 1024 inputs, not 512)')
    return ours, mmdet_model


def test_the_public_name_builds_from_a_config(model):
    assert type(model) is mmitpn.DINO


def test_one_config_builds_twice():
    cfg = tiny_config()
    before = deepcopy(cfg)
    build(cfg)
    assert cfg == before
    build(cfg)


# Names, shapes, initialization
def test_parameter_names_and_shapes_are_fixed():
    cfg = base_config()
    cfg.backbone.arch = 'nano'
    cfg.neck.in_channels = (48, 96, 192)
    cfg.encoder.num_layers = cfg.decoder.num_layers = 1
    shapes = {name: list(value.shape) for name, value in build(cfg).state_dict().items()}
    expected = json.loads(NAMES.read_text())
    assert {k: v for k, v in shapes.items() if not k.startswith(('backbone.', 'neck.'))} == expected


def test_names_and_shapes_are_those_of_mmdet(same_decoder):
    ours, mmdet_model = ({name: value.shape for name, value in m.state_dict().items()} for m in same_decoder)
    assert ours == mmdet_model


def test_initialization_is_that_of_mmdet(resnet_pair):
    states = []
    for model in resnet_pair:
        torch.manual_seed(0)
        model.init_weights()
        states.append(model.state_dict())
    ours, mmdet_model = states
    drawn = [name for name in ours if name.startswith(('encoder.', 'decoder.')) and ours[name].dim() > 1]
    drawn += ['memory_trans_fc.weight', 'query_embedding.weight', 'level_embed']
    head = 'decoder.ref_point_head.layers.0.weight'
    if ours[head].shape != mmdet_model[head].shape:
        # onedl-mmdetection draws a larger weight first: later weights come from another position of the random stream.
        later = ('ref_point_head', 'value_proj', 'output_proj', 'memory_trans', 'query_embedding', 'level_embed')
        drawn = [name for name in drawn if not any(part in name for part in later)]
    fixed = [name for name in ours if name.startswith('bbox_head.') and name.endswith('.4.weight')]
    fixed += [name for name in ours if name.startswith('bbox_head.cls_branches') and name.endswith('.bias')]
    assert len(drawn) > 16
    assert len(fixed) == 6
    for name in drawn + fixed:
        torch.testing.assert_close(ours[name], mmdet_model[name], rtol=0, atol=0, msg=name)


def test_a_pretrained_detector_stays_loaded(model, tmp_path):
    path = tmp_path / 'detector.pth'
    torch.save({'state_dict': model.state_dict()}, path)
    cfg = tiny_config()
    cfg.init_cfg = {'type': 'Pretrained', 'checkpoint': str(path)}
    torch.manual_seed(1)
    loaded = build(cfg).state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=0, msg=name)


def test_predictions_do_not_depend_on_the_stack(fill):
    # All 85 positions are queries, so no near tie decides which take part.
    cfg = tiny_config(queries=85)
    cfg.test_cfg.max_per_img = 5
    model = build(cfg).eval()
    model.load_state_dict(fill.fill({name: value.shape for name, value in model.state_dict().items()}))
    images, samples = batch([0, 0], size=32, shapes=[(32, 32), (32, 20)])
    with torch.no_grad():
        results = model(images, samples, mode='predict')
    expected = json.loads(PREDICTION.read_text())
    for result, case in zip(results, expected, strict=True):
        found = result.pred_instances
        torch.testing.assert_close(found.scores, torch.tensor(case['scores']), rtol=0, atol=1e-4)
        torch.testing.assert_close(found.bboxes, torch.tensor(case['bboxes']), rtol=0, atol=1e-2)
        assert found.labels.tolist() == case['labels']


# Equal to mmdet's
class NoiseForMMDet(ContrastiveDenoising):
    """Denoising queries as mmdet's detector takes them."""

    def forward(self, samples):
        instances, metas = [one.gt_instances for one in samples], [one.metainfo for one in samples]
        queries = super().forward(BoxTargets.of(instances, metas))
        meta = {'num_denoising_queries': queries.content.shape[1], 'num_denoising_groups': queries.groups}
        return queries.content, queries.boxes, queries.attention_mask, meta


def test_losses_and_gradients_are_those_of_mmdet(same_decoder):
    ours, mmdet_model = same_decoder
    # Fresh sampling points lie on the centres of cells, where a bilinear sample has two derivatives.
    for name, parameter in mmdet_model.named_parameters():
        if name.endswith('sampling_offsets.bias'):
            parameter.data += 0.2 + 0.1 * torch.rand_like(parameter)
    ours.load_state_dict(mmdet_model.state_dict())
    # The same noise: mmdet's generator draws other numbers from a seed.
    mmdet_model.dn_query_generator = NoiseForMMDet(mmdet_model.dn_query_generator.label_embedding, 20, **NOISE)
    images, samples = batch([2, 3], shapes=[(64, 64), (48, 60)])
    outcomes = []
    for model in (ours, mmdet_model):
        model.train()
        torch.manual_seed(3)
        losses = model(images, samples, mode='loss')
        total(losses).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        outcomes.append((losses, gradients))
    (our_losses, our_gradients), (mmdet_losses, mmdet_gradients) = outcomes
    torch.testing.assert_close(our_losses, mmdet_losses, rtol=1e-4, atol=1e-5)
    assert our_gradients.keys() == mmdet_gradients.keys()
    for name, gradient in our_gradients.items():
        scale = mmdet_gradients[name].abs().max().item()
        torch.testing.assert_close(gradient, mmdet_gradients[name], rtol=0, atol=1e-3 * scale + 1e-6, msg=name)


def test_predictions_are_those_of_mmdet(same_decoder):
    ours, mmdet_model = same_decoder
    ours.load_state_dict(mmdet_model.state_dict())
    images, samples = batch([0, 0], shapes=[(64, 64), (48, 60)])
    with torch.no_grad():
        found, expected = (m.eval()(images, deepcopy(samples), mode='predict') for m in (ours, mmdet_model))
    for ours_one, mmdet_one in zip(found, expected, strict=True):
        for name in ('scores', 'bboxes', 'labels'):
            ours_value, mmdet_value = ours_one.pred_instances[name], mmdet_one.pred_instances[name]
            torch.testing.assert_close(ours_value, mmdet_value, rtol=1e-4, atol=1e-4)


# Training
@pytest.mark.parametrize(
    'counts', [[2, 1], [0, 2], [0, 0], [60, 1]], ids=['objects', 'one-empty', 'all-empty', 'more-than-dn-queries']
)
def test_every_parameter_gets_a_finite_gradient(counts):
    cfg = tiny_config()
    cfg.dn_cfg.group_cfg.num_dn_queries = 20
    model = build(cfg).train()
    losses = model(*batch(counts), mode='loss')
    total(losses).backward()
    assert all(torch.isfinite(value).all() for value in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_label_embedding_is_in_the_graph_without_denoising_queries(model):
    images, samples = batch([0])
    outputs = model.forward_transformer(model.extract_feat(images), samples)
    outputs['hidden_states'].sum().backward()
    assert (model.dn_query_generator.label_embedding.weight.grad == 0).all()


def test_more_objects_than_denoising_queries_is_one_group():
    cfg = tiny_config()
    cfg.dn_cfg.group_cfg.num_dn_queries = 20
    model = build(cfg).train()
    images, samples = batch([60, 1])
    outputs = model.forward_transformer(model.extract_feat(images), samples)
    assert outputs['dn_meta'] == {'num_denoising_queries': 120, 'num_denoising_groups': 1}


def test_the_loss_falls(model):
    images, samples = batch([2, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = total(model(images, samples, mode='loss'))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        seen.append(loss.item())
    assert sum(seen[-3:]) < 0.9 * sum(seen[:3])


@pytest.mark.parametrize(('height', 'width'), [(64, 96), (67, 45)])
def test_any_size(model, height, width):
    images, samples = batch([1, 2], size=96)
    for sample in samples:
        sample.set_metainfo({'img_shape': (height, width), 'batch_input_shape': (height, width)})
    losses = model(images[..., :height, :width], samples, mode='loss')
    assert torch.isfinite(total(losses))


@pytest.mark.parametrize('with_cp', [True, 1])
def test_checkpointing_changes_nothing_but_memory(with_cp):
    plain, cfg = build(tiny_config()).train(), tiny_config()
    cfg.encoder.with_cp = cfg.decoder.with_cp = with_cp
    sparing = build(cfg).train()
    sparing.load_state_dict(plain.state_dict())
    images, samples = batch([2, 1], shapes=[(64, 64), (64, 50)])
    allocated, outcomes = [], []
    for model in (plain, sparing):
        saved = 0

        def pack(x):
            nonlocal saved
            saved += x.numel() * x.element_size()
            return x

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = total(model(images, samples, mode='loss'))
        loss.backward()
        allocated.append(saved)
        outcomes.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-5, atol=1e-6)
    assert allocated[1] < allocated[0] * (0.6 if with_cp is True else 0.8)


def test_autocast_keeps_sampling_boxes_and_losses_in_fp32(model, monkeypatch):
    seen, sampled = set(), []
    sample = MultiScaleDeformableAttention._sample

    def record(self, value, points, weights, *rest):
        sampled.append((value.dtype, points.dtype, weights.dtype))
        return sample(self, value, points, weights, *rest)

    monkeypatch.setattr(MultiScaleDeformableAttention, '_sample', record)
    model.encoder.register_forward_pre_hook(lambda _, args: seen.update((args[0].dtype, args[2].valid_ratios.dtype)))
    for branch in model.bbox_head.reg_branches:
        branch.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    images, samples = batch([2, 0])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        features = model.extract_feat(images)
        outputs = model.forward_transformer(tuple(level.bfloat16() for level in features), samples)
        losses = model(images, samples, mode='loss')
    total(losses).backward()
    assert seen == {torch.float32}
    assert sampled == [(torch.float32,) * 3] * 2 * 4  # two forward passes through two layers of both
    tensors = [outputs['hidden_states'], *outputs['references'], outputs['enc_outputs_class'], *losses.values()]
    assert {x.dtype for x in tensors} == {torch.float32}
    assert torch.isfinite(total(losses))
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


def test_autocast_does_not_round_the_boxes_of_a_prediction(model):
    images, samples = batch([0])
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        boxes = model.eval()(images, samples, mode='predict')[0].pred_instances.bboxes
    assert boxes.dtype is torch.float32
    assert not torch.equal(boxes, boxes.bfloat16().float())


@pytest.mark.slow
def test_the_base_config_trains_and_predicts_in_full_size():
    model = build(base_config()).train()
    assert len(model.encoder.layers) == len(model.decoder.layers) == 6
    images, samples = batch([1], size=128)
    total(model(images, samples, mode='loss')).backward()
    with torch.no_grad():
        assert len(model.eval()(images, samples, mode='predict')[0].pred_instances) == 300


# Inconsistent settings
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'num_queries': 0}, 'num_queries is 0; give an integer'),
        ({'num_queries': 2.5}, 'num_queries is 2.5'),
        ({'num_feature_levels': -1}, 'num_feature_levels is -1'),
        ({'with_box_refine': False}, 'with_box_refine is False'),
        ({'num_feature_levels': 3}, 'num_levels is 4, but num_feature_levels is 3'),
        ({'neck.out_channels': 48}, 'the neck gives 48 channels, but the transformer is 32 wide'),
        ({'neck.num_outs': 3}, 'the neck gives 3 maps, but num_feature_levels is 4'),
        ({'bbox_head.embed_dims': 64}, 'embed_dims of bbox_head = 64'),
        ({'positional_encoding.num_feats': 8}, 'twice num_feats of positional_encoding = 16'),
        ({'encoder.num_cp': 2}, 'num_cp=2, which needs fairscale: write with_cp'),
        ({'encoder.with_cp': 3}, 'with_cp is 3'),
        ({'decoder.with_cp': 'yes'}, "with_cp is 'yes'"),
        ({'decoder.post_norm_cfg': {'type': 'LN'}}, 'post_norm_cfg'),
        ({'bbox_head.num_pred_layer': 3}, 'bbox_head sets num_pred_layer'),
        ({'bbox_head.num_classes': 0}, 'num_classes of bbox_head is 0'),
        ({'test_cfg.max_per_img': 61}, '20 queries of 3 classes give 60 candidates'),
        ({'dn_cfg.num_classes': 3}, 'dn_cfg sets num_classes'),
        ({'dn_cfg.box_noise_scale': 0.0}, 'dn_cfg.box_noise_scale is 0.0'),
        ({'dn_cfg.group_cfg.num_dn_queries': 0}, 'num_dn_queries is 0'),
        ({'dn_cfg.group_cfg.dynamic': False}, 'num_groups is None'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_inconsistent_settings_raise(change, message):
    cfg = tiny_config()
    for name, value in change.items():
        *parents, last = name.split('.')
        part = cfg
        for parent in parents:
            part = part[parent]
        part[last] = value
    with pytest.raises(ValueError, match=message):
        build(cfg)


def test_maps_of_other_necks_are_checked_in_the_first_forward_pass():
    cfg = resnet_config('mmitpn.DINO')
    cfg.neck.num_outs = None
    model = build(cfg)
    with pytest.raises(ValueError, match='the neck gives 3 maps, but num_feature_levels is 4'):
        model(*batch([1]), mode='loss')


def test_package_raises_no_warnings(model, recwarn):
    total(model(*batch([1, 0]), mode='loss')).backward()
    ours = Path(mmitpn.__file__).parent
    assert not [w for w in recwarn if ours in Path(w.filename).parents]


def config(queries, max_per_img=10):
    cfg = tiny_config(queries=queries)
    cfg.test_cfg.max_per_img = max_per_img
    return cfg


def pair(max_per_img=10):
    """A model with more queries than positions, and one with one query per position, with equal weights."""
    more = build(config(QUERIES, max_per_img))
    exact = build(config(POSITIONS, min(max_per_img, POSITIONS * 3)))
    # Fresh box branches give every layer the same boxes; here no two queries and no two layers are alike.
    for name, weight in more.named_parameters():
        if weight.dim() > 1 and not name.startswith(('backbone.', 'neck.')):
            weight.data.normal_(std=0.1)
    weights = more.state_dict()
    weights['query_embedding.weight'] = weights['query_embedding.weight'][:POSITIONS]
    exact.load_state_dict(weights)
    return more, exact


@pytest.mark.parametrize('shapes', SHAPES.values(), ids=SHAPES)
def test_losses_and_gradients_equal_those_of_one_query_per_position(shapes):
    images, samples = batch([2, 3][: len(shapes)], size=32, shapes=shapes)
    outcomes = []
    for model in pair():
        torch.manual_seed(3)
        losses = model.train()(images, samples, mode='loss')
        total(losses).backward()
        outcomes.append((losses, {name: weight.grad for name, weight in model.named_parameters()}))
    (losses, gradients), (expected, expected_gradients) = outcomes
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    unused = gradients['query_embedding.weight'][POSITIONS:]
    assert (unused == 0).all()
    gradients['query_embedding.weight'] = gradients['query_embedding.weight'][:POSITIONS]
    largest = max(gradient.abs().max().item() for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize('shapes', SHAPES.values(), ids=SHAPES)
def test_predictions_equal_those_of_one_query_per_position(shapes):
    images, samples = batch([0] * len(shapes), size=32, shapes=shapes)
    outcomes = []
    for model in pair(max_per_img=40):
        with torch.no_grad():
            results = model.eval()(images, deepcopy(samples), mode='predict')
            outcomes.append([one.pred_instances for one in results])
    for found, expected in zip(*outcomes, strict=True):
        assert len(found) == len(expected) == 40
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.bboxes, expected.bboxes, rtol=1e-4, atol=1e-3)
        assert torch.equal(found.labels, expected.labels)


def test_every_layer_gives_every_position_once():
    more, exact = pair()
    images, samples = batch([0, 0], size=32, shapes=SHAPES['padded'])
    with torch.no_grad():
        found, expected = (m.eval().forward_transformer(m.extract_feat(images), samples) for m in (more, exact))
    assert found['hidden_states'].shape == (2, 2, POSITIONS, 32)
    torch.testing.assert_close(found['hidden_states'], expected['hidden_states'], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found['references'], expected['references'], rtol=1e-4, atol=1e-5)


def test_padded_queries_are_never_returned():
    """max_per_img exceeds the candidates of the image: all of them are returned, without padded ones."""
    model, exact = pair(max_per_img=300)
    images, samples = batch([0, 0], size=32, shapes=SHAPES['padded'])
    with torch.no_grad():
        found = [one.pred_instances for one in model.eval()(images, deepcopy(samples), mode='predict')]
        expected = [one.pred_instances for one in exact.eval()(images, samples, mode='predict')]
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == POSITIONS * 3
        assert ours.scores.min() > 0
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('counts', [[3], [0], [0, 4], [0, 0], [9, 1]], ids=lambda counts: '-'.join(map(str, counts)))
@pytest.mark.parametrize('size', [5, 16, 32])
def test_any_number_of_objects_trains(counts, size):
    """Also more objects than positions (7, with 5 pixels), and images without objects."""
    model = build(config(QUERIES)).train()
    losses = model(*batch(counts, size=size), mode='loss')
    total(losses).backward()
    assert all(torch.isfinite(value).all() for value in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_a_softmax_head_returns_no_padded_query():
    cfg = config(QUERIES, max_per_img=QUERIES)
    cfg.bbox_head.loss_cls = {'type': 'CrossEntropyLoss', 'use_sigmoid': False, 'loss_weight': 1.0}
    model = build(cfg)
    images, samples = batch([2], size=32)
    assert torch.isfinite(total(model.train()(images, samples, mode='loss')))
    with torch.no_grad():
        found = model.eval()(images, samples, mode='predict')[0].pred_instances
    assert len(found) == POSITIONS
    assert found.scores.min() > 0


def test_recomputed_layers_and_autocast_are_padded_too():
    cfg = config(QUERIES)
    cfg.encoder.with_cp = cfg.decoder.with_cp = True
    model = build(cfg).train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model(*batch([2, 1], size=32), mode='loss')
    total(losses).backward()
    assert all(torch.isfinite(value).all() for value in losses.values())
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize('queries', [POSITIONS, 20])
def test_queries_are_selected_as_in_mmdet(queries):
    model = (pair()[1] if queries == POSITIONS else build(config(queries))).eval()
    images, samples = batch([2, 1], size=32, shapes=SHAPES['padded'])
    maps = model.extract_feat(images)
    inputs, _ = model.pre_transformer(maps, samples)
    memory = torch.randn_like(inputs['feat'])
    expected, _ = MMDetDINO.pre_decoder(model, memory, inputs['feat_mask'], inputs['spatial_shapes'], samples)
    padding_mask = make_padding_mask(SHAPES['padded'], (32, 32), images.device)
    _, boxes = model._select_queries(memory, FeatureLevels.of(maps, padding_mask), 0)
    assert torch.equal(boxes.sigmoid(), expected['reference_points'])


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """Results of two processes (gloo, CPU), in order of rank."""
    folder = tmp_path_factory.mktemp('ranks')
    torch.save(make_model().state_dict(), folder / 'start.pth')
    context = mp.spawn(work, args=(str(folder),), nprocs=WORLD, join=False)
    deadline = time.monotonic() + SECONDS
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f'two processes, one without objects, did not end within {SECONDS} s')
    return [torch.load(folder / f'{rank}.pth', weights_only=True) for rank in range(WORLD)]


@pytest.mark.slow
def test_a_process_without_objects_takes_part(results):
    first, second = (result['weights'] for result in results)
    start = make_model().state_dict()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0, msg=name)
    moved = [name for name in start if not torch.equal(start[name], first[name])]
    assert 'dn_query_generator.label_embedding.weight' in moved
    assert 'backbone.patch_embed.proj.weight' in moved


@pytest.mark.slow
@pytest.mark.parametrize(
    ('case', 'counts'),
    [
        ('equal', EQUAL),
        # Denoising losses differ: groups and padding depend on the image with most objects of a process.
        ('unequal', UNEQUAL),
    ],
)
def test_two_processes_have_the_loss_of_one_with_the_same_batch(results, case, counts):
    expected = values(make_model()(*batch(counts), mode='loss'))
    names = [name for name in expected if case == 'equal' or 'dn_' not in name]
    for name in names:
        mean = torch.stack([result[case][name] for result in results]).mean()
        torch.testing.assert_close(mean, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f'{n}: {m}')
