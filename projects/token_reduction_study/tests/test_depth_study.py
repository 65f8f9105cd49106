"""The study in 12 blocks: its stages, with training, evaluation and measuring replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import training_scores
from token_study.depth_settings import depth_settings
from token_study.turns import measure_turns

from mmitpn.benchmark.case import BenchmarkCase

PROJECT = Path(__file__).parents[1]
TUNED = 'gathering, 4 tokens, windows of 4'


@pytest.fixture
def study(load_script, monkeypatch, tmp_path):
    """The script on small data, the commands that it would have run, and arguments for its folders."""
    tool, commands = load_script('depth_study'), []

    def run(*command):
        command = [str(part) for part in command]
        commands.append(command)
        folder = Path(command[command.index('--work-dir') + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'test_metrics.json').write_text(json.dumps({'metrics': {'mIoU': 60.0}}))

    monkeypatch.setattr(training_scores, 'run_tool', run)
    for module in (tool, training_scores):
        monkeypatch.setattr(module, 'find_latest_checkpoint', lambda folder: folder / 'iter_5.pth')
    for name in ('TRAIN_IMAGES', 'HELD_OUT_IMAGES', 'TEST_IMAGES'):
        monkeypatch.setattr(tool, name, 1)
    names = ('data', 'test-set', 'work-dir', 'out', 'plot')
    files = {name: tmp_path / f'{name}.png' if name == 'plot' else tmp_path / name for name in names}
    return tool, commands, [part for name, path in files.items() for part in (f'--{name}', str(path))]


def options_of(command):
    return dict(part.split('=', 1) for part in command[command.index('--cfg-options') + 1 :])


def test_training_is_resumed_until_it_is_complete(study, tmp_path):
    tool, commands, files = study
    for _ in range(2):
        assert tool.main(['--stage', 'train', '--seeds', '0', '3', *files, '--cfg-options', 'a.b=1']) == 0
    assert [command[0] for command in commands] == ['tools/train.py'] * 2  # the second time there is nothing to do
    assert all('--resume' in command for command in commands)
    options = options_of(commands[1])
    assert options['randomness.seed'] == '3'
    assert options['a.b'] == '1'
    assert Path(options['model.backbone.init_cfg.checkpoint']).stat().st_size > 10**6
    roots = [options[f'{part}_dataloader.dataset.data_root'] for part in ('train', 'val', 'test')]
    assert roots[0] == roots[1] != roots[2]
    assert Path(roots[0], 'images/training').is_dir()
    assert Path(roots[2], 'images/validation').is_dir()
    assert (tmp_path / 'work-dir/global_3' / tool.FINISHED).is_file()
    assert tool.main(['--stage', 'train', '--seeds', '0', '--again', *files]) == 0
    assert '--resume' not in commands[2]


def test_a_run_that_fails_is_not_complete(study, tmp_path, monkeypatch, capsys):
    tool, _, files = study

    def fail(*_):
        raise RuntimeError('killed')

    monkeypatch.setattr(training_scores, 'run_tool', fail)
    assert tool.main(['--stage', 'train', '--seeds', '0', *files]) == 2
    assert not (tmp_path / 'work-dir/global_0' / tool.FINISHED).exists()
    assert tool.main(['--stage', 'switch', '--seeds', '0', *files]) == 2
    assert 'no complete training run of seed 0; run --stage train first' in capsys.readouterr().err


def test_every_setting_is_switched_on_once(study, tmp_path, monkeypatch):
    tool, _, files = study
    loaded, evaluated = [], []

    def load_trained(_args, seed):
        loaded.append(seed)

        def evaluate_setting(setting):
            evaluated.append(setting.name)
            if len(evaluated) == 2:
                raise RuntimeError('stopped')
            return 0.5

        return evaluate_setting

    monkeypatch.setattr(tool, 'load_trained', load_trained)
    line = [
        '--stage',
        'switch',
        '--seeds',
        '0',
        '1',
        '--method',
        'global',
        'migration',
        '--keep',
        '0.5',
        '0.25',
        *files,
    ]
    for status in (2, 0, 0):  # stopped once, resumed, and nothing to do
        assert tool.main(line) == status
    names = ['global', 'migration, keep 0.5', 'migration, keep 0.25']
    assert evaluated == [*names[:2], *names[1:], *names]
    assert loaded == [0, 0, 1]
    scores = json.loads((tmp_path / 'out').read_text())
    assert scores == {tool.SWITCHED: {name: {'0': 0.5, '1': 0.5} for name in names}}


def test_settings_are_trained_on_under_the_same_recipe(study, tmp_path):
    tool, commands, files = study
    assert tool.main(['--stage', 'train', 'tune', '--seeds', '1', '--tune', 'global', TUNED, *files]) == 0
    assert [command[0] for command in commands] == ['tools/train.py', *['tools/train.py', 'tools/test.py'] * 2]
    plain, windowed = (options_of(commands[index]) for index in (1, 3))
    reduction = {
        'model.backbone.token_gathering.window_size': '4',
        'model.backbone.token_gathering.num_tokens': '4',
    }
    assert windowed == {**plain, **reduction}
    assert plain['load_from'] == str(tmp_path / 'work-dir/global_1/iter_5.pth')
    assert reduction.items() <= options_of(commands[4]).items()
    assert all(command[1] == tool.TUNE_CONFIG for command in commands[1:])
    assert commands[2][2].endswith('tune_global_1/iter_5.pth')
    assert commands[4][2].endswith('tune_gathering-4-tokens-windows-of-4_1/iter_5.pth')
    assert json.loads((tmp_path / 'out').read_text())[tool.TUNED] == {'global': {'1': 0.6}, TUNED: {'1': 0.6}}


def test_times_are_relative_to_global_attention_of_the_same_round(study, tmp_path, monkeypatch, capsys):
    tool, _, files = study
    jobs = []

    def run_job(task, cases, **settings):
        jobs.append((task, cases, settings))
        rows = [{'macs': 8 - i, 'seconds': [(2 + i) * load for load in (1.0, 2.0, 3.0)]} for i in range(len(cases))]
        rows[-1]['seconds'][0] *= 2
        return {'cases': rows}

    monkeypatch.setattr(tool, 'run_job', run_job)
    line = ['--stage', 'time', '--method', 'global', 'windows', 'ToMe', '--keep', '0.5', '--together', '2', *files]
    for _ in range(2):
        assert tool.main(line) == 0
    assert [len(cases) for _, cases, _ in jobs] == [3, 2, 3, 2]
    (_, cases, settings), (_, large, _) = jobs[0], jobs[2]
    assert settings['pyramid'] == {'out_channels': 64, 'num_outs': 3}
    assert [case.backbone.get('token_gathering') for case in cases] == [
        None,
        {'window_size': 4, 'num_tokens': 0},
        {'window_size': 8, 'num_tokens': 0},
    ]
    assert large[1].arch == 'base'
    assert large[1].size == (1024, 1024)
    assert large[1].backbone['token_gathering'] == {'window_size': 16, 'num_tokens': 0}
    scores = json.loads((tmp_path / 'out').read_text())
    assert list(scores) == list(tool.NETWORKS)
    assert scores['time of base at 1024x1024']['windows, windows of 8'] == {
        'median': 2.0,
        'lowest': 2.0,
        'highest': 4.0,
        'multiply-adds': 0.75,
        'ms': 8000.0,
        'rounds': 3,
    }
    scores[tool.SWITCHED] = {'global': {'0': 0.6}, 'ToMe, keep 0.5': {'0': 0.5}}
    (tmp_path / 'out').write_text(json.dumps(scores))
    assert tool.main(['--stage', 'plot', *files]) == 0
    assert '| ToMe, keep 0.5 | 0.500 | -10.0 |' in capsys.readouterr().out
    assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--tune', 'x'], "unknown setting 'x'; allowed: 'global'"),
        (['--rounds', '0'], 'must be positive'),
        (['--keep', '0.4'], 'invalid choice'),
        (['--method', 'x'], 'invalid choice'),
    ],
)
def test_refused(load_script, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        load_script('depth_study').parse_args(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def job_of(*backbones, **case):
    arch = {'depths': (0, 0, 12), 'embed_dim': 24, 'num_heads': 2}
    cases = [
        vars(BenchmarkCase('backbone+pyramid', (256, 256), arch=arch, backbone={'img_size': 256, **one}, **case))
        for one in backbones
    ]
    return {'cases': cases, 'threads': None, 'seconds': 0.0, 'min_rounds': 2, 'pyramid': {'out_channels': 8}}


def test_one_network_is_timed_with_every_setting():
    settings = depth_settings(['global', 'windows', 'migration'], windows=[4], keep_ratios=[0.25])
    result = measure_turns(job_of(*(setting.backbone() for setting in settings)))
    plain, windows, migration = result['cases']
    assert [len(case['seconds']) for case in result['cases']] == [2, 2, 2]
    # Attention of 12 blocks: keys of 256 tokens, and of 16, with 24 channels each for scores and values.
    assert plain['macs'] - windows['macs'] == 12 * 256 * (256 - 16) * 24 * 2
    assert migration['macs'] < windows['macs']


def test_cases_of_different_networks_are_refused():
    with pytest.raises(ValueError, match='the cases are of 2 networks'):
        measure_turns(job_of({}, {'img_size': 128}))
    with pytest.raises(ValueError, match=r'give cases of backbone\+pyramid in fp32 for inference'):
        measure_turns(job_of({}, dtype='bf16'))


@pytest.mark.slow
def test_settings_are_switched_on_in_a_trained_segmentor(study, tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmseg')
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    tool, _, files = study
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, 'find_latest_checkpoint', lambda folder: folder / 'trained.pth')
    config = Config.fromfile(PROJECT / 'configs/seg_fast-itpn-nano12_shapes-256.py').model
    config.backbone.init_cfg = None
    folder = tmp_path / 'work-dir/global_0'
    folder.mkdir(parents=True)
    init_default_scope('mmseg')
    torch.manual_seed(0)
    torch.save({'state_dict': MODELS.build(config).state_dict(), 'meta': {}}, folder / 'trained.pth')
    (folder / tool.FINISHED).touch()
    loader = [f'test_dataloader.{option}' for option in ('num_workers=0', 'persistent_workers=False')]
    line = ['--stage', 'switch', '--seeds', '0', '--method', 'global', 'windows', 'gathering, 16 tokens', 'ToMe']
    assert tool.main([*line, '--keep', '0.25', *files, '--cfg-options', *loader]) == 0
    scores = json.loads((tmp_path / 'out').read_text())[tool.SWITCHED]
    expected = ['global', 'windows, windows of 4', 'windows, windows of 8', 'gathering, 16 tokens, windows of 8']
    assert list(scores) == [*expected, 'ToMe, keep 0.25']
    assert len({score['0'] for score in scores.values()}) > 1  # the settings do reach the network


@pytest.mark.parametrize('name', ['seg_fast-itpn-nano12_shapes-256', 'seg_fast-itpn-nano12_shapes-256-tune'])
def test_the_segmentor_builds_and_learns(name):
    pytest.importorskip('mmseg')
    from mmengine.config import Config

    from mmitpn.testing.demo_inputs import build_from_config, loss_call, make_samples

    config = PROJECT / f'configs/{name}.py'
    cfg = Config.fromfile(config)
    assert cfg.model.backbone.arch.depths[2] == 12
    ends = [scheduler.end for scheduler in cfg.param_scheduler]
    assert ends[1] == cfg.train_cfg.max_iters == cfg.param_scheduler[1].begin + cfg.param_scheduler[1].T_max
    model = build_from_config(str(config), overrides={'model.backbone.init_cfg': None})
    image = torch.randn(1, 3, 64, 64)
    loss_call(model, image, make_samples(model, (64, 64), batch=1, objects=1, device=torch.device('cpu')))().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
