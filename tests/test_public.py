from __future__ import annotations

import subprocess
import sys

import pytest

import mmitpn

# What users import, and the framework without which it is not there.
PUBLIC = {
    'DINO': 'mmdet',
    'DINOHead': 'mmdet',
    'ITPN': None,
    'FastITPN': None,
    'ITPNPretrain': 'mmpretrain',
    'ITPNPyramid': None,
    'LayerDecayOptimWrapperConstructor': None,
    'MaskDINO': 'mmdet',
    'MaskDINODecodeHead': 'mmdet',
    'MaskDINOFusionHead': 'mmdet',
    'MaskDINOHead': 'mmdet',
    'MeanPoolClsHead': 'mmpretrain',
}
UNREGISTERED = ('Predictor', 'Result', 'export')  # what users call, and no config names


def test_the_public_names_are_these():
    """A name that is taken away breaks its users; one that is added belongs in this list."""
    assert set(mmitpn.__all__) == {*PUBLIC, *UNREGISTERED, '__version__'}
    assert {*PUBLIC, *UNREGISTERED} <= set(dir(mmitpn))


@pytest.mark.parametrize(('name', 'framework'), PUBLIC.items(), ids=PUBLIC)
def test_a_public_name_is_the_registered_class(name, framework):
    if framework is not None:
        pytest.importorskip(framework)
    from mmitpn.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS

    registry = OPTIM_WRAPPER_CONSTRUCTORS if 'Constructor' in name else MODELS
    assert getattr(mmitpn, name) is registry.get(f'mmitpn.{name}')


def test_unknown_names_are_reported():
    with pytest.raises(AttributeError, match="no attribute 'FastITPNN'; public names: DINO"):
        _ = mmitpn.FastITPNN


def run(code: str) -> str:
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def test_importing_is_light():
    code = 'import sys, mmitpn; print([m for m in ("torch", "mmengine", "mmcv", "mmdet") if m in sys.modules])'
    assert run(code) == '[]'


def test_the_backbone_does_not_need_a_detector():
    code = 'import sys; from mmitpn import FastITPN, ITPNPyramid; print([m for m in ("mmdet",) if m in sys.modules])'
    assert run(code) == '[]'


HIDE = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == 'mmdet' else find(name, *rest)
sys.modules['mmdet'] = None
"""


def test_a_missing_framework_breaks_only_what_needs_it():
    code = HIDE + (
        'import mmitpn\n'
        'from mmitpn.registry import MODELS\n'
        "print(type(MODELS.build(dict(type='mmitpn.FastITPN', arch='nano'))).__name__)\n"
    )
    assert run(code) == 'FastITPN'
    code = HIDE + 'import mmitpn\ntry:\n    mmitpn.DINO\nexcept ImportError as error:\n    print(error)\n'
    assert 'mmitpn.DINO needs a framework that is not installed' in run(code)
