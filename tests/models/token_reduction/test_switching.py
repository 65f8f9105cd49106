"""Token reduction switched on, changed and off again in a built network."""

from __future__ import annotations

import pytest
import torch

GATHERING = {'window_size': 4, 'num_tokens': 4}


def run(model):
    torch.manual_seed(2)
    with torch.no_grad():
        return model.eval()(torch.randn(2, 3, 200, 160))[-1]


def test_switched_on_is_as_if_built_so(network):
    settings = {'token_gathering': GATHERING, 'token_migration': {'keep_ratio': 0.6}}
    model = network()
    plain = run(model)
    model.set_token_reduction(**settings)
    assert torch.equal(run(model), run(network(**settings)))
    model.set_token_reduction()
    assert torch.equal(run(model), plain)


def test_the_mode_and_frozen_parts_stay_as_they_are(network):
    model = network(frozen_stages=3).eval()
    model.set_token_reduction(
        token_migration={'keep_ratio': 1.0, 'test_keep_ratio': 0.5}, token_gathering={'learned': True}
    )
    assert model.token_reduction.migration.ratio == 0.5
    assert not any(p.requires_grad for p in model.parameters())
    assert model.train().token_reduction.migration.ratio == 1.0


def test_learned_offsets_come_stay_and_go(network):
    model = network(token_gathering={**GATHERING, 'learned': True})
    names = set(model.state_dict())
    with torch.no_grad():
        model.blocks[0].attn.gathering_offset.fill_(0.5)
    model.set_token_reduction(token_gathering={**GATHERING, 'learned': True}, token_migration={})
    assert (model.blocks[0].attn.gathering_offset == 0.5).all()
    model.set_token_reduction(token_gathering=GATHERING)
    assert names - set(model.state_dict()) == {f'blocks.{i}.attn.gathering_offset' for i in range(4)}


def test_bad_settings_leave_the_network_as_it_was(network):
    model = network(token_gathering=GATHERING)
    before = run(model)
    with pytest.raises(ValueError, match='keep_ratio is 2'):
        model.set_token_reduction(token_migration={'keep_ratio': 2})
    assert torch.equal(run(model), before)
