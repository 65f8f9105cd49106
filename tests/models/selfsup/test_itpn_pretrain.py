from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from mmengine.logging import MessageHub
from mmpretrain.structures import DataSample
from torch.testing import assert_close

from mmitpn.checkpoint import convert_from_authors, convert_to_authors, identify, load_pretrained
from mmitpn.models.backbones import FastITPN
from mmitpn.models.layers import nhwc_to_nchw
from mmitpn.models.necks import ITPNPyramid
from mmitpn.models.selfsup.masking import pack_visible_patches, patchify, unpatchify
from mmitpn.registry import MODELS

FORMS = ('fast', 'clip', 'pixel', 'mfm', 'hog')


def step(model, images, samples=None):
    torch.manual_seed(3)
    losses = model.loss(images, samples)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize('form', FORMS)
def test_every_weight_learns(form, build, images):
    model = build(form).train()
    losses = step(model, images)
    assert all(loss.isfinite() for loss in losses.values())
    frozen = {'backbone.pos_embed', 'head.positions'} if form == 'pixel' else set()
    for name, parameter in model.named_parameters():
        if name.startswith('teacher.') or name in frozen:
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize('form', FORMS)
def test_loss_falls_on_one_batch(form, build, images):
    model = build(form, backbone={'weight_init': 'xavier'}, neck={'weight_init': 'xavier'}).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    seen = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = sum(step(model, images).values())
        optimizer.step()
        seen.append(float(loss))
    assert seen[-1] < seen[0] - 0.1 * abs(seen[0])


@pytest.mark.parametrize('form', FORMS)
def test_recomputing_changes_nothing(form, build, images):
    results = []
    for with_cp in (False, True):
        model = build(form, backbone={'with_cp': with_cp}, neck={'with_cp': with_cp}).train()
        step(model, images)
        results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name


@pytest.mark.parametrize('form', FORMS)
def test_bfloat16(form, build, images):
    model = build(form).train()
    with torch.autocast('cpu', torch.bfloat16):
        losses = step(model, images)
    full = build(form).train()
    for name, loss in step(full, images).items():
        assert losses[name].dtype == torch.float32
        assert_close(losses[name], loss, rtol=0.05, atol=0.05)


@pytest.mark.parametrize('form', ['fast', 'clip', 'mfm', 'hog'])
def test_images_of_other_shapes(form, build):
    losses = step(build(form), torch.randn(1, 3, 48, 96))
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize('form', FORMS)
def test_masked_pixels_are_not_seen(form, build, images):
    """Two images that differ in masked patches only are the same to the network."""
    model = build(form).eval()
    masks = model.masks(images)
    other = unpatchify(torch.where(masks[..., None], torch.randn(2, 4, 4, 768), patchify(images)))
    with torch.no_grad():
        first, second = (model.head(model.backbone, model.neck, x, masks) for x in (images, other))
    same = [name for name in first if torch.allclose(first[name], second[name], atol=1e-5)]
    # iTPN with CLIP masks before the main stage: its pyramid sees them through the two finer levels.
    assert same == (['auxiliary'] if form == 'clip' else list(first))


def test_only_masked_patches_count(build, images):
    model = build('fast').eval()
    masks = model.masks(images)
    predictions, targets = model.reconstruct(images, masks)
    losses = model.head.losses(predictions, targets, masks)
    targets['tokens'] = torch.where(masks[..., None], targets['tokens'], torch.randn(2, 4, 4, 64))
    assert_close(model.head.losses(predictions, targets, masks), losses)


def gradient_ranks(model, images):
    step(model, images)
    weights = (model.neck.align4.weight, model.neck.align8.weight)
    return [int(torch.linalg.matrix_rank(weight.grad, rtol=1e-4)) for weight in weights]


@pytest.mark.parametrize('form', ['mfm', 'hog'])
def test_lateral_connections_learn_from_images(form):
    """With a loss on masked positions alone they would see only the mask token's 16 and 4 vectors."""

    def build(**head):
        torch.manual_seed(0)
        backbone = FastITPN('nano', img_size=64, weight_init='xavier')
        neck = ITPNPyramid(backbone.out_channels, out_channels=128, num_outs=3, weight_init='xavier')
        return MODELS.build(
            {'type': 'mmitpn.ITPNPretrain', 'backbone': backbone, 'neck': neck, 'form': form, 'head': head}
        )

    images = torch.randn(4, 3, 64, 64)
    assert gradient_ranks(build(masked_only=True), images) == [16, 4]
    assert gradient_ranks(build(), images) == [48, 96]


@pytest.mark.parametrize(('settings', 'same'), [({}, False), ({'normalize_targets': 'channels'}, True)])
def test_targets_of_mfm_do_not_collapse_to_one_per_image(settings, same, build, images):
    """A teacher whose features hardly differ within an image gives targets that do."""
    head = build('mfm', head=settings).head
    maps = [torch.randn(2, 1, 1, 48) + 1e-2 * torch.randn(2, side, side, 48) for side in (16, 8, 4)]
    for name, target in head.targets(maps, images).items():
        if name != 'tokens':
            assert bool(target.flatten(1, 2).std(1).mean() < 0.1) == same
    constant = head.targets([torch.ones_like(one) for one in maps], images)
    assert all(target.isfinite().all() for target in constant.values())


def test_negative_cosine_and_the_two_smooth_l1(build, images):
    model = build('fast').eval()
    masks = model.masks(images)
    predictions, targets = model.reconstruct(images, masks)
    expected = -torch.cosine_similarity(predictions['tokens'][masks], targets['tokens'][masks], dim=-1).mean()
    assert_close(model.head.losses(predictions, targets, masks)['loss_tokens'], expected)
    model = build('clip').eval()
    predictions, targets = model.reconstruct(images, masks)
    losses = model.head.losses(predictions, targets, masks)
    assert losses.keys() == {'loss_tokens', 'loss_auxiliary'}
    assert_close(targets['tokens'].mean(-1), torch.zeros(2, 4, 4), atol=1e-5, rtol=0)
    for name in ('tokens', 'auxiliary'):
        expected = torch.nn.functional.smooth_l1_loss(predictions[name], targets[name])
        assert_close(losses[f'loss_{name}'], expected)


def test_the_auxiliary_branch_begins_at_three_quarters(build):
    model = build('clip')
    assert model.head.auxiliary.after == 3
    assert len(model.head.auxiliary.blocks) == 2


def test_removed_patches_are_not_computed(build, images):
    model = build('pixel', mask_ratio=0.75).eval()
    seen = []
    model.backbone.blocks[0].register_forward_hook(lambda _m, _a, out: seen.append(tuple(out.shape)))
    model.loss(images)
    assert seen == [(2, 1, 4, 64)]


def test_all_patches_visible_is_the_backbone_itself(build, images):
    """Without attention, the packed patches give what the network gives for the whole image."""
    model = build('pixel').eval()
    model.backbone.blocks = torch.nn.ModuleList()  # what is left works on every patch alone
    ids = torch.arange(16).expand(2, -1)
    backbone = model.backbone
    position = backbone.pos_embed.expand(2, -1, -1).unsqueeze(1)
    with torch.no_grad():
        rows = model.neck(
            [
                nhwc_to_nchw(x)
                for x in backbone.forward_stages(backbone.patch_embed(pack_visible_patches(images, ids)), position)
            ]
        )
        whole = model.neck(backbone(images))
    for row, level in zip(rows, whole, strict=True):
        side = level.shape[-1] // 4
        tiles = level.unflatten(2, (4, side)).unflatten(4, (4, side)).permute(0, 1, 3, 2, 4, 5)
        assert_close(row, tiles.reshape(2, 32, side, 16 * side))


@pytest.mark.parametrize('form', FORMS)
def test_a_checkpoint_of_the_run_loads_into_backbone_and_pyramid(form, build, tmp_path):
    model = build(form)
    file = tmp_path / 'iter_1.pth'
    torch.save({'state_dict': model.state_dict(), 'optimizer': {}}, file)
    other = build(form, backbone={'weight_init': 'xavier'})
    torch.nn.init.ones_(other.neck.align8.weight)
    for part in ('backbone', 'neck'):
        report = load_pretrained(getattr(other, part), file)
        assert not report.warnings
        for name, value in getattr(model, part).state_dict().items():
            assert torch.equal(getattr(other, part).state_dict()[name], value), name


def test_moving_average_starts_as_the_backbone_and_follows(build, images, monkeypatch):
    # Other tests run runners in this process: none runs now.
    monkeypatch.setattr(MessageHub.get_current_instance(), '_runtime_info', OrderedDict())
    model = build('mfm').train()
    own, average = model.backbone.state_dict(), model.teacher.average.module.state_dict()
    assert all(torch.equal(own[name], average[name]) for name in own)
    step(model, images)  # copies the weights
    with torch.no_grad():
        model.backbone.norm.weight.add_(1.0)
    step(model, images)
    moved = model.teacher.average.module.norm.weight
    assert_close(moved, torch.full_like(moved, 1.004))
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())


def test_moving_average_goes_on_from_the_updates_of_a_checkpoint(build, monkeypatch):
    monkeypatch.setattr(MessageHub.get_current_instance(), '_runtime_info', OrderedDict(max_iters=10))
    model = build('mfm', teacher={'type': 'mmitpn.MovingAverageTeacher', 'momentum': 0.5})
    for _ in range(3):
        model.teacher.update(model.backbone)
    state = model.state_dict()
    assert state['teacher.average.steps'] == 3
    state['teacher.average.steps'] = torch.tensor(5)  # half of the run: momentum 0.75
    model.load_state_dict(state)
    with torch.no_grad():
        model.backbone.norm.weight.add_(1.0)
    model.teacher.update(model.backbone)
    moved = model.teacher.average.module.norm.weight
    assert_close(moved, torch.full_like(moved, 1.25))
    assert model.teacher.average.steps == 6

    model.init_weights()  # starts again from the backbone
    assert model.teacher.average.steps == 0
    model.teacher.update(model.backbone)
    assert torch.equal(model.teacher.average.module.norm.weight, model.backbone.norm.weight)


def test_checkpoints_hold_the_average_and_no_frozen_teacher(build):
    assert any(name.startswith('teacher.') for name in build('mfm').state_dict())
    for form in ('fast', 'hog'):
        model = build(form)
        assert not any(name.startswith('teacher.') for name in model.state_dict())
        model.load_state_dict(model.state_dict())  # strict


def test_from_a_config(images):
    model = MODELS.build(
        {
            'type': 'mmitpn.ITPNPretrain',
            'form': 'mfm',
            'backbone': {'type': 'mmitpn.FastITPN', 'arch': 'nano', 'img_size': 64},
            'neck': {'type': 'mmitpn.ITPNPyramid', 'in_channels': (48, 96, 192), 'num_outs': 3},
            'data_preprocessor': {'mean': [127.5] * 3, 'std': [127.5] * 3, 'bgr_to_rgb': True},
        }
    )
    model.init_weights()
    batch = model.data_preprocessor({'inputs': (images * 50 + 127).clamp(0, 255), 'data_samples': None}, True)
    losses = model(**batch, mode='loss')
    assert losses.keys() == {'loss_stride4', 'loss_stride8', 'loss_stride16', 'loss_pixels'}
    assert [level.shape[-1] for level in model(batch['inputs'])] == [16, 8, 4]


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'form': 'mae'}, "form is 'mae'; allowed: 'fast', 'clip', 'pixel', 'mfm', 'hog'"),
        ({'mask_ratio': 0.0}, 'mask_ratio is 0.0; allowed: more than 0 and less than 1'),
        ({'mask_ratio': 1}, 'mask_ratio is 1; allowed'),
        ({'masking': 'blocks'}, "masking is 'blocks'; allowed: 'random', 'pipeline'"),
        ({'teacher': 'clap'}, "teacher is 'clap'; allowed: 'clip'"),
        ({'teacher': None}, "form='fast' needs a teacher"),
        ({'teacher': 'moving_average'}, "gives maps, but form='fast' learns from tokens"),
        ({'form': 'mfm', 'head': {'normalize_targets': 'batch'}}, "normalize_targets is 'batch'; allowed: True or"),
        ({'form': 'mfm', 'teacher': 'hog'}, "gives tokens, but form='mfm' learns from maps"),
        ({'head': {'loss': 'l3'}}, "loss is 'l3'; allowed: 'cosine', 'smooth_l1', 'l2'"),
        ({'head': {'mask_at': 'end'}}, "mask_at is 'end'"),
        ({'neck': {'num_outs': 5}}, r'strides \(4, 8, 16, 32, 64\); pre-training needs 4, 8, 16: num_outs=3'),
        ({'form': 'pixel', 'backbone': {'relative_position': 'table'}}, 'no patch can be removed'),
        ({'form': 'clip', 'head': {'norm': 'shared'}}, "the backbone has no last norm .*use norm='own'"),
        ({'form': 'mfm', 'head': {'pixel_weight': 0, 'feature_weight': 0}}, 'are both 0: nothing would be learned'),
    ],
)
def test_bad_settings(settings, message, build):
    with pytest.raises(ValueError, match=message):
        build(**{'teacher': 'random', **settings} if settings.get('form', 'fast') != 'mfm' else settings)


def test_sizes_that_do_not_fit(build):
    with pytest.raises(ValueError, match='the images are 60x64 pixels; pre-training needs sides that are multiples'):
        build('fast').loss(torch.randn(1, 3, 60, 64))
    with pytest.raises(ValueError, match='4x6 patches; the decoder was built for 4x4: set img_size of the backbone'):
        build('pixel').loss(torch.randn(1, 3, 64, 96))


def test_a_released_file_is_loaded_with_its_prediction_layers(reference_case):
    """Prediction layers and mask token of the authors' file are loaded too."""
    weights = reference_case('fast_tiny_pretrain').weights
    model = MODELS.build(
        {
            'type': 'mmitpn.ITPNPretrain',
            'backbone': {'type': 'mmitpn.FastITPN', 'arch': 'tiny'},
            'neck': {'type': 'mmitpn.ITPNPyramid', 'in_channels': (96, 192, 384), 'num_outs': 3},
            'teacher': {'type': 'mmitpn.RandomTeacher', 'channels': 768},
        }
    )
    report = load_pretrained(model, weights)
    assert not report.warnings
    state = model.state_dict()
    for ours, theirs in model.head.authors_names.items():
        assert torch.equal(state[f'head.{ours}'], weights[theirs]), ours


def test_exported_weights_are_the_authors_and_back(build):
    for form in ('fast', 'pixel', 'clip'):
        model = build(form)
        state = model.state_dict()
        authors = convert_to_authors(state)
        back = convert_from_authors(identify(authors)).state
        own = {k.partition('.')[2]: v for k, v in state.items() if k.startswith(('backbone.', 'neck.'))}
        assert back.keys() == own.keys()
        assert all(torch.equal(back[name], own[name]) for name in own)


def test_classes_are_public():
    import mmitpn

    assert mmitpn.ITPNPretrain is MODELS.get('ITPNPretrain')
    assert FastITPN
    assert ITPNPyramid


def test_masks_of_the_pipeline(build, images):
    model = build('fast', masking='pipeline')
    mask = torch.zeros(4, 4, dtype=torch.long)
    mask[1, 2] = 1
    samples = [DataSample(), DataSample()]
    for sample in samples:
        sample.set_field(mask.numpy(), 'mask')
    masks = model.masks(images, samples)
    assert masks.sum() == 2
    assert masks[:, 1, 2].all()
    samples[1].set_field(torch.zeros(14, 14), 'mask')
    with pytest.raises(ValueError, match='mask for 14x14 patches, but the image has 4x4: set input_size=4'):
        model.masks(images, samples)
    samples[1] = DataSample()
    with pytest.raises(ValueError, match='but a sample has no mask'):
        model.masks(images, samples)
    with pytest.raises(ValueError, match='there are no data samples'):
        model.masks(images)
