"""plan.py: the estimate of a config, and the memory of a process that really trains."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from mmengine.config import ConfigDict

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / 'configs/quickstart/dino_fast-itpn-nano_shapes.py'


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    pytest.importorskip('mmdet')
    path = ROOT / 'projects/memory_plan/plan.py'
    spec = importlib.util.spec_from_file_location('memory_plan_script', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_verdicts_and_file(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / 'new' / 'plan.json'
    command = [str(QUICKSTART), '--size', '96x128', '--batch', '1', '--gpus', '1', '4', '--card', '1.55']
    assert tool.main([*command, '--json', str(out)]) == 0  # also where something does not fit
    shown = capsys.readouterr().out
    for words in ('optimizer states', 'overhead (not run here)', 'checkpointing, FSDP 4: fits 1.55 GB', 'AdamW'):
        assert words in shown
    assert 'no checkpointing, DDP 4: does not fit 1.55 GB' in shown
    figures = json.loads(out.read_text())
    assert (figures['batch'], figures['size'], figures['precision']) == (1, [96, 128], 'fp32')
    columns = {(c['gpus'], c['sharded'], c['checkpointing']): c for c in figures['columns']}
    assert len(columns) == 2 + 4
    single, sharded = columns[1, False, 'none'], columns[4, True, 'none']
    assert single['states'] == pytest.approx(2 * single['gradients'], rel=0.001)
    assert sharded['gradients'] == single['gradients'] // 4
    assert columns[1, False, 'all']['activations'] < 0.6 * single['activations']
    assert {key: column['fits'] for key, column in columns.items() if key[0] == 4} == {
        (4, False, 'none'): False,
        (4, False, 'all'): False,
        (4, True, 'none'): True,
        (4, True, 'all'): True,
    }


@pytest.mark.slow
def test_bf16_needs_less(tool: ModuleType, tmp_path: Path) -> None:
    columns = {}
    for precision in ('fp32', 'bf16'):
        out = tmp_path / f'{precision}.json'
        command = [str(QUICKSTART), '--size', '128', '--batch', '1', '--precision', precision, '--json', str(out)]
        assert tool.main(command) == 0
        columns[precision] = json.loads(out.read_text())['columns'][0]
    assert columns['bf16']['parameters'] == columns['fp32']['parameters']  # autocast keeps them in fp32
    assert 0.4 < columns['bf16']['activations'] / columns['fp32']['activations'] < 1


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (['--size', '1333*800'], 'give HxW or one number'),
        (['--gpus', '0'], '--gpus is 0'),
        (['--batch', '0'], '--batch is 0'),
        (['--card', '0'], '--card is 0'),
        (['--check', '--precision', 'bf16'], '--check trains in fp32'),
    ],
)
def test_bad_options(tool: ModuleType, changes: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        tool.main([str(QUICKSTART), '--size', '64', *changes])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (None, 'no config file'),
        ('a = 1', 'has no `model`'),
        ('train_dataloader = dict(num_workers=2)', 'no train_dataloader.batch_size; give --batch'),
    ],
)
def test_bad_configs(
    tool: ModuleType, content: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tmp_path / 'config.py'
    if content is not None:
        config.write_text(content + '\n')
    batch = [] if content and 'dataloader' in content else ['--batch', '1']
    assert tool.main([str(config), '--size', '64', *batch]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith('error: ')
    assert words in message


def test_precision_of_a_config(tool: ModuleType) -> None:
    from mmengine.optim import AmpOptimWrapper, OptimWrapper

    assert tool.precision_of(ConfigDict(optim_wrapper={'type': OptimWrapper})) == 'fp32'
    for mixed in (AmpOptimWrapper, 'AmpOptimWrapper', 'mmitpn.BFloat16OptimWrapper'):
        assert tool.precision_of(ConfigDict(optim_wrapper={'type': mixed})) == 'bf16'


@pytest.mark.slow
@pytest.mark.thorough
def test_a_training_process_needs_what_was_predicted(tool: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / 'check.json'
    command = [str(QUICKSTART), '--size', '384x416', '--batch', '4', '--check', '--json', str(out)]
    assert tool.main(command) == 0
    rows = json.loads(out.read_text())['check']
    assert [row['checkpointing'] for row in rows] == ['none', 'all']
    for row in rows:
        assert row['predicted_bytes'] == pytest.approx(row['tensor_bytes'], rel=0.03)
        assert row['predicted_bytes'] == pytest.approx(row['process_bytes'], rel=0.15)
