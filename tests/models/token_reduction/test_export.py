"""Fixed shapes: compilers and exporters take token reduction as they take the rest."""

from __future__ import annotations

import io

import pytest
import torch
from torch.testing import assert_close

SIZE = (1, 3, 200, 160)
GATHERING = {'window_size': 4, 'num_tokens': 4}


@pytest.fixture
def reduced(network):
    return lambda **more: network(token_gathering=GATHERING, token_migration={}, **more).eval()


def test_exported_gives_the_same_output(reduced):
    model, x = reduced(), torch.randn(SIZE)
    exported = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        assert_close(exported(x + 0.1), model(x + 0.1))


@pytest.mark.slow
@pytest.mark.usefixtures('inductor')
def test_compiled_gives_the_same_output(reduced):
    few = {'depths': (0, 0, 2), 'embed_dim': 48, 'num_heads': 3}
    model = reduced(arch=few)
    compiled = torch.compile(reduced(arch=few), dynamic=False, fullgraph=True)
    x = torch.randn(SIZE)
    with torch.no_grad():
        assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings('ignore')
def test_onnx_gives_the_same_output(reduced):
    pytest.importorskip('onnx', reason='the onnx package writes the file')
    runtime = pytest.importorskip('onnxruntime', reason='onnxruntime runs the file')
    model, x = reduced(), torch.randn(SIZE)
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=False, opset_version=17)
    session = runtime.InferenceSession(file.getvalue())
    found = session.run(None, {session.get_inputs()[0].name: (x + 0.1).numpy()})
    with torch.no_grad():
        for ours, theirs in zip(model(x + 0.1), found, strict=True):
            assert_close(torch.from_numpy(theirs), ours, rtol=1e-3, atol=1e-4)
