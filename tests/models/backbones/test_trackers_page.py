"""The blocks of docs/trackers.md, run in order with random weights in place of the files that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mmitpn import FastITPN

PAGE = Path(__file__).parents[3] / 'docs' / 'trackers.md'
SIZES = {'depths': (1, 1, 8), 'dim': 384}  # of tiny, with fewer blocks


@pytest.fixture
def files(tmp_path, authors_weights, monkeypatch):
    """The released file, and a tracker's checkpoint of six channels, with two grids of positions and a class token."""
    torch.save({'module': authors_weights(**SIZES, pyramid=24, pretrain=32)}, tmp_path / 'fast_itpn_tiny_1600e_1k.pt')
    body = authors_weights(**SIZES, layer_scale=False)
    body['patch_embed.proj.weight'] = torch.randn(96, 6, 4, 4)
    body['pos_embed'] = torch.randn(1, 245, 384)
    body['cls_token'] = torch.randn(1, 1, 384)
    state = {f'encoder.body.{name}': value for name, value in body.items()}
    torch.save({'net': {**state, 'decoder.weight': torch.randn(4)}, 'epoch': 180}, tmp_path / 'sutrack_t224.pth.tar')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FastITPN, 'reset_parameters', lambda _: None)  # for speed: every weight comes from a file


@pytest.mark.usefixtures('files')
def test_every_block_runs_and_prints_what_its_comments_say(capsys):
    blocks = re.findall(r'```python\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.DOTALL)
    assert len(blocks) == 4
    values: dict = {}
    with torch.no_grad():
        for block in blocks:
            capsys.readouterr()
            exec(compile(block, str(PAGE), 'exec'), values)  # noqa: S102
            printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith('(')]
            assert printed == re.findall(r'^print\(.*\)  # (.*)$', block, re.MULTILINE)
        # The last block: a tracker's own positions, which are no resized ones, and its own first layer.
        body, positions = values['body'], values['positions']
        assert torch.equal(
            positions[1], torch.load('sutrack_t224.pth.tar')['net']['encoder.body.pos_embed'][:, 196:].view(1, 7, 7, -1)
        )
        assert (body.in_channels, body.blocks[0].gamma_1) == (6, None)
        assert torch.equal(values['x'], body.forward_joint([values['tokens'][0], values['tokens'][1]])[0])
