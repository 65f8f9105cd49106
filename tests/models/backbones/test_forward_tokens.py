"""Several images with one joint main stage, as trackers use it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mmitpn.models.backbones import FastITPN

NANO = {'depths': (1, 2, 3), 'embed_dim': 48, 'num_heads': 3}


def build(**settings) -> FastITPN:
    torch.manual_seed(1)
    model = FastITPN(NANO, layer_scale_init_value=1.0, **settings).eval()
    for parameter in model.parameters():  # so that attention matters
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def template_and_search(channels: int = 3, batch: int = 2) -> list[torch.Tensor]:
    return [torch.randn(batch, channels, 64, 64), torch.randn(batch, channels, 100, 135)]


def tokens_of(model: FastITPN, image: torch.Tensor) -> torch.Tensor:
    """Stem and stages by the public submodules, and a position embedding resized by torch: ``(B, N, C)``."""
    image = F.pad(image, (0, -image.shape[3] % 16, 0, -image.shape[2] % 16))
    x = model.patch_embed(image)
    for layer in (*model.stage1, model.merge1, *model.stage2, model.merge2):
        x = layer(x)
    grid = model.pos_embed.view(1, 14, 14, -1).permute(0, 3, 1, 2)
    positions = F.interpolate(grid, size=x.shape[1:3], mode='bicubic', align_corners=False)
    return (x + positions.permute(0, 2, 3, 1)).flatten(1, 2)


def test_equals_the_submodules_one_after_the_other():
    model = build()
    images = template_and_search()
    with torch.no_grad():
        maps = model.forward_tokens(images)
        tokens = torch.cat([tokens_of(model, image) for image in images], 1)
        for block in model.blocks:
            tokens = block(tokens)
        template, search = model.norm(tokens).split((16, 63), 1)
    assert [out.shape for out in maps] == [(2, 48, 4, 4), (2, 48, 7, 9)]
    assert_close(maps[0].flatten(2).mT, template, rtol=1e-4, atol=1e-4)
    assert_close(maps[1].flatten(2).mT, search, rtol=1e-4, atol=1e-4)
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in maps)


@pytest.mark.parametrize('size', [(64, 64), (224, 224), (37, 130), (1, 1)])
def test_one_image_equals_forward(size):
    model = build(out_blocks=(1,))
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        ((last, block),) = model.forward_tokens([x])
        expected = model(x)
    assert torch.equal(last, expected[2])
    assert torch.equal(block, expected[3])


def test_the_order_of_the_images_is_that_of_the_outputs():
    model = build(out_blocks=(0, 2))
    images = [*template_and_search(), torch.randn(2, 3, 16, 48)]
    with torch.no_grad():
        outs = model.forward_tokens(images)
        for order in ((2, 0, 1), (1, 0, 2)):
            for index, others in zip(order, model.forward_tokens([images[i] for i in order]), strict=True):
                for ours, theirs in zip(outs[index], others, strict=True):
                    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_images_see_each_other_and_samples_do_not():
    model = build()
    template, search = template_and_search()
    changed = template.clone()
    changed[1] *= -1
    with torch.no_grad():
        before, after = model.forward_tokens([template, search]), model.forward_tokens([changed, search])
    assert_close(after[1][0], before[1][0])
    assert (after[1][1] - before[1][1]).abs().max() > 0.1


def test_blocks_of_several_images():
    model, images = build(out_blocks=(0, -1)), template_and_search()
    outs = {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, __, out, i=i: outs.update({i: out}))
    with torch.no_grad():
        maps = model.forward_tokens(images)
        only_blocks = build(out_indices=(), out_blocks=(0, -1)).forward_tokens(images)
    for image, (start, count) in enumerate(((0, 16), (16, 63))):
        for block, ours, alone in zip((0, 2), maps[image][1:], only_blocks[image], strict=True):
            assert torch.equal(ours.flatten(2).mT, outs[block][:, start : start + count])
            assert torch.equal(ours, alone)


def test_a_tracker_adds_tokens_and_positions_of_its_own():
    """A crop of the position embedding in place of a resized one, the type of each token, a class token."""
    model, (template, search) = build(), template_and_search()
    positions = model.pos_embed.view(1, *model.grid, -1)
    types, class_token = torch.randn(2, 48), torch.randn(1, 1, 1, 48)
    with torch.no_grad():
        z = model.embed_tokens(template, positions[:, :4, :4]) + types[0]
        x = model.embed_tokens(search) + types[1]
        maps = model.forward_joint([class_token.expand(2, 1, 1, -1), z, x])
        plain = (
            tokens_of(model, template)
            - F.interpolate(positions.permute(0, 3, 1, 2), size=(4, 4), mode='bicubic', align_corners=False)
            .flatten(2)
            .mT
        )
    assert [out.shape[2:] for out in maps] == [(1, 1), (4, 4), (7, 9)]
    assert_close(z.flatten(1, 2), plain + positions[:, :4, :4].flatten(1, 2) + types[0], rtol=1e-4, atol=1e-4)
    tokens = torch.cat((class_token.flatten(1, 2).expand(2, 1, -1), z.flatten(1, 2), x.flatten(1, 2)), 1)
    for block in model.blocks:
        tokens = block(tokens)
    assert_close(maps[2].flatten(2).mT, model.norm(tokens)[:, 17:], rtol=1e-4, atol=1e-4)


def test_gradients_checkpointing_and_autocast():
    plain, saving = build(in_channels=6).train(), build(in_channels=6, with_cp=True).train()
    images = template_and_search(6)
    copies = [image.clone() for image in images]
    for model in (plain, saving):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            sum(out.float().square().mean() for out in model.forward_tokens(images)).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert a.grad is not None, name
        assert a.grad.isfinite().all(), name
        assert_close(a.grad, b.grad)
    assert all(torch.equal(image, copied) for image, copied in zip(images, copies, strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures('inductor')
def test_compiled_gives_the_same_output():
    model, images = build(), template_and_search(batch=1)
    compiled = torch.compile(copy.deepcopy(model).forward_tokens, dynamic=False, fullgraph=True)
    with torch.no_grad():
        for a, b in zip(model.forward_tokens(images), compiled(images), strict=True):
            assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ('settings', 'images', 'error', 'message'),
    [
        ({}, torch.zeros(2, 3, 32, 32), TypeError, r'images is a Tensor; give a list, such as \[template, search\]'),
        ({}, [], ValueError, 'images is an empty list'),
        ({}, [torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32)], ValueError, r'batch sizes are \[1, 2\]'),
        ({}, [torch.zeros(1, 6, 32, 32)], ValueError, r'\(1, 6, 32, 32\).*in_channels=6'),
        ({}, [torch.zeros(3, 32, 32)], ValueError, r'takes \(B, 3, H, W\)'),
        ({}, ['a.jpg'], TypeError, 'was given a str'),
        (
            {'out_indices': (0, 1)},
            [torch.zeros(1, 3, 32, 32)],
            ValueError,
            r'\(0, 1\); add 2 to them, or set out_blocks',
        ),
        (
            {'token_migration': {}},
            [torch.zeros(1, 3, 32, 32)],
            ValueError,
            r'switch them off by set_token_reduction\(\)',
        ),
        ({'token_gathering': {}}, [torch.zeros(1, 3, 32, 32)], ValueError, 'on the grid of one image'),
    ],
)
def test_bad_input_is_named(settings, images, error, message):
    with pytest.raises(error, match=message):
        build(**settings).forward_tokens(images)
