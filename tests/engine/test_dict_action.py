"""Names and paths with spaces on the command line."""

from __future__ import annotations

import argparse

import pytest
from mmengine.config import DictAction as MMEngineAction

from mmitpn.engine.dict_action import DictAction


def parse(*options: str, action=DictAction) -> dict:
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=action)
    return parser.parse_args(['--cfg-options', *options]).cfg_options


@pytest.mark.parametrize(
    ('value', 'wanted'),
    [
        ("('traffic light','cat')", ('traffic light', 'cat')),
        ("('traffic light', 'cat')", ('traffic light', 'cat')),
        ('["stop sign", "cat"]', ['stop sign', 'cat']),
        ('(traffic light,cat)', ('traffic light', 'cat')),
        ("('traffic light')", ('traffic light',)),
        ('traffic light,cat', ['traffic light', 'cat']),
        ("('a, b','c (big)')", ('a, b', 'c (big)')),
        ('("dog\'s nose",)', ("dog's nose",)),
        ("('0','1')", ('0', '1')),
        ('/data/my set/', '/data/my set/'),
        ('[[0,0,0],[1, 2, 3]]', [[0, 0, 0], [1, 2, 3]]),
    ],
)
def test_spaces_inside_values_are_kept(value, wanted):
    assert parse(f'x={value}') == {'x': wanted}
    assert type(parse(f'x={value}')['x']) is type(wanted)


@pytest.mark.parametrize(
    'value',
    [
        '3',
        '1e-4',
        'True',
        'none',
        'None',
        '1,2,3',
        '[1,2]',
        '(1, 2)',
        '[a,(b,c)]',
        "'cat'",
        '(cat)',
        'a=b',
        '',
        '()',
        '[(1, 2, 3), [a, b], c]',
    ],
)
def test_other_values_are_those_of_mmengine(value):
    assert repr(parse(f'x={value}')) == repr(parse(f'x={value}', action=MMEngineAction))
