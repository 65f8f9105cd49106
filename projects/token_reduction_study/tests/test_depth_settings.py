"""The settings that are compared in 12 blocks."""

from __future__ import annotations

import pytest
import token_study  # noqa: F401 - registers the methods
import torch
from token_study.depth_settings import DEPTH_METHODS, DepthSetting, depth_settings, find_setting

from mmitpn.models.backbones import FastITPN

TWELVE = {'depths': (0, 0, 12), 'embed_dim': 24, 'num_heads': 2}
DEEPER = {'depths': (0, 0, 24), 'embed_dim': 24, 'num_heads': 2}


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return FastITPN(TWELVE, img_size=256, weight_init='xavier').eval()


@torch.no_grad()
@pytest.mark.parametrize('setting', depth_settings(), ids=lambda setting: setting.name)
def test_every_setting_runs_and_names_are_unique(model, setting):
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    model.set_token_reduction()
    exact = model(image)[-1]
    model.set_token_reduction(**setting.backbone())
    counts, attends = [], []
    if model.token_reduction is not None:

        def observe(_block, tokens, attend):
            counts.append(tokens.x.shape[1] * tokens.x.shape[2])
            attends.append(type(attend).__name__)

        model.token_reduction.observer = observe
    found = model(image)[-1]
    assert found.shape == exact.shape
    assert torch.equal(found, exact) == (setting.name == 'global')
    method = DEPTH_METHODS[setting.method]
    if method.reducer is not None:
        assert counts == [256] * 2 + [round(setting.keep_ratio * 256)] * 9 + [256]  # all are back in the last block
    if setting.window is not None:
        windowed = [i for i, name in enumerate(attends) if name.endswith('GatheringAttention')]
        assert windowed == [i for i in range(12) if i not in method.global_blocks]
    assert find_setting(setting.name) == setting
    assert [one.name for one in depth_settings()].count(setting.name) == 1


@pytest.mark.parametrize('setting', depth_settings(keep_ratios=[0.5]), ids=lambda setting: setting.name)
def test_a_larger_network_has_the_same_proportions(setting):
    small = FastITPN(TWELVE, **setting.backbone()).token_reduction
    large = FastITPN(DEEPER, **setting.backbone(depth=24, side=64)).token_reduction
    if setting.name == 'global':
        assert small is large is None
        return
    if setting.window is not None:
        assert large.gathering.windows(64, 64).num_windows == small.gathering.windows(16, 16).num_windows
        assert large.gathering.num_tokens == small.gathering.num_tokens
        assert len(large.gathering.global_blocks) == len(small.gathering.global_blocks)
    if small.migration is not None:
        assert [2 * block for block in small.migration.at] == list(large.migration.at)


def test_global_blocks_are_spread_over_the_depth():
    setting = DepthSetting('windows + 4 global blocks', 4)
    assert setting.backbone()['token_gathering'] == {'window_size': 4, 'num_tokens': 0, 'global_blocks': (2, 5, 8, 11)}
    assert setting.backbone(depth=24, side=64)['token_gathering'] == {
        'window_size': 16,
        'num_tokens': 0,
        'global_blocks': (5, 11, 17, 23),
    }


def test_windows_and_ratios_come_where_the_method_has_them():
    found = depth_settings(['global', 'windows', 'ToMe', 'gathering + migration'], windows=[8], keep_ratios=[0.5, 0.25])
    assert [one.name for one in found] == [
        'global',
        'windows, windows of 8',
        'ToMe, keep 0.5',
        'ToMe, keep 0.25',
        'gathering + migration, windows of 8, keep 0.5',
        'gathering + migration, windows of 8, keep 0.25',
    ]


def test_what_there_is_not_is_explained():
    with pytest.raises(ValueError, match="unknown method 'x'; allowed: 'global', 'windows'"):
        depth_settings(['x'])
    with pytest.raises(ValueError, match=r"unknown setting 'migration, keep 0\.1'; allowed: 'global', "):
        find_setting('migration, keep 0.1')
    with pytest.raises(ValueError, match='depth is 18 and side 16; the settings are written for 12 blocks and 16x16'):
        DepthSetting('global').backbone(depth=18)
