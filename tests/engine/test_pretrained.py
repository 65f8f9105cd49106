"""Where the weights of a config come from, and models that are built with the position grid of a checkpoint."""

from __future__ import annotations

import contextlib
import logging

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch.distributed import checkpoint as dcp

from mmitpn.engine import pretrained, setup_environment
from mmitpn.engine.checkpointing import WholeWeightsHook
from mmitpn.engine.pretrained import use_checkpoint_grid, use_pretrained, warn_if_random
from mmitpn.models.backbones import ITPN, FastITPN
from mmitpn.models.layers import resample_abs_pos_embed

SIZES = {'depths': (1, 1, 1), 'embed_dim': 64, 'num_heads': 1}


@pytest.fixture
def logged(monkeypatch):
    """What is logged."""
    lines = []
    monkeypatch.setattr(pretrained, 'print_log', lambda text, *_, **__: lines.append(text))
    return lines


def config(backbone: dict | None = None, **model) -> Config:
    return Config({'model': {'backbone': {'type': 'mmitpn.FastITPN', 'arch': SIZES, **(backbone or {})}, **model}})


def save(path, module, prefix='backbone.', **more):
    torch.save({'state_dict': {f'{prefix}{name}': v for name, v in module.state_dict().items()}, **more}, path)
    return str(path)


# --- the config ------------------------------------------------------------------------------------------------


def test_the_grid_of_the_checkpoint_is_set_and_said(tmp_path, logged):
    file = save(tmp_path / 'e.pth', FastITPN(SIZES, img_size=256), meta={'seed': 1})
    cfg = config()
    use_checkpoint_grid(cfg, file)
    assert cfg.model.backbone.img_size == 256
    assert logged == [f'model.backbone: img_size=256, as in {file} (16x16 positions)']
    assert FastITPN(**{key: value for key, value in cfg.model.backbone.items() if key != 'type'}).grid == (16, 16)


@pytest.mark.parametrize('kind', [FastITPN, 'FastITPN', 'mmitpn.FastITPN'])
def test_types_are_written_in_any_way(tmp_path, kind):
    cfg = Config({'model': {'backbone': {'arch': SIZES}}})
    cfg.model.backbone.type = kind
    use_checkpoint_grid(cfg, save(tmp_path / 'e.pth', FastITPN(SIZES, img_size=256)))
    assert cfg.model.backbone.img_size == 256


def test_what_the_config_sets_stays_and_no_file_is_read(logged):
    for cfg in (config({'img_size': 160}), Config({'model': {'backbone': {'type': 'mmdet.ResNet'}}})):
        before = cfg.to_dict()
        use_checkpoint_grid(cfg, 'not_there.pth')
        assert cfg.to_dict() == before
    use_checkpoint_grid(config(), None)
    use_checkpoint_grid(config(), 's3://bucket/epoch_1.pth')  # only mmengine reads it
    assert logged == []


def test_files_of_the_authors(tmp_path, authors_weights):
    torch.save({'module': authors_weights(grid=16)}, tmp_path / 'f.pt')
    cfg = config()
    use_checkpoint_grid(cfg, str(tmp_path / 'f.pt'))
    assert cfg.model.backbone.img_size == 256


def test_a_model_inside_of_another(tmp_path):
    cfg = Config({'model': {'type': 'SoftTeacher', 'detector': config().model}})
    use_checkpoint_grid(cfg, save(tmp_path / 'e.pth', FastITPN(SIZES, img_size=256), 'student.backbone.'))
    assert cfg.model.detector.backbone.img_size == 256


def test_a_folder_of_shards(tmp_path):
    state = {f'backbone.{name}': v for name, v in FastITPN(SIZES, img_size=256).state_dict().items()}
    dcp.save({'model': state}, checkpoint_id=str(tmp_path / 'iter_1.pth'), no_dist=True)
    cfg = config()
    use_checkpoint_grid(cfg, tmp_path / 'iter_1.pth')
    assert cfg.model.backbone.img_size == 256


def test_a_checkpoint_of_another_backbone_says_nothing(tmp_path, logged):
    torch.save({'state_dict': {'backbone.conv1.weight': torch.zeros(3)}}, tmp_path / 'e.pth')
    cfg = config()
    use_checkpoint_grid(cfg, tmp_path / 'e.pth')
    assert 'img_size' not in cfg.model.backbone
    assert logged == []


@pytest.mark.parametrize('kind', ['table', 'decomposed'])
@pytest.mark.parametrize('wanted', ['table', 'decomposed', None])
def test_the_window_of_relative_positions(tmp_path, kind, wanted):
    file = save(tmp_path / 'e.pth', ITPN(SIZES, img_size=256, relative_position=kind, relative_window=9))
    for window in (None, 5):
        backbone = {'type': 'mmitpn.ITPN', 'relative_position': wanted, 'relative_window': window}
        cfg = config(backbone)
        use_checkpoint_grid(cfg, file)
        assert cfg.model.backbone.img_size == 256
        assert cfg.model.backbone.relative_window == (9 if wanted == kind and window is None else window)


@pytest.mark.parametrize(
    ('content', 'error', 'message'),
    [
        (None, FileNotFoundError, r'e\.pth does not exist'),
        (b'', ValueError, r'e\.pth is empty'),
        (b'<html>log in</html>', ValueError, r'e\.pth is a web page'),
    ],
)
def test_checkpoints_that_cannot_be_read(tmp_path, content, error, message):
    if content is not None:
        (tmp_path / 'e.pth').write_bytes(content)
    with pytest.raises(error, match=message):
        use_checkpoint_grid(config(), tmp_path / 'e.pth')


@pytest.mark.parametrize('resume', [True, False])
def test_a_resumed_run_does_not_need_the_file_it_started_from(tmp_path, logged, resume):
    file = save(tmp_path / 'e.pth', FastITPN(SIZES))
    gone, there = ({'type': 'Pretrained', 'checkpoint': name} for name in (str(tmp_path / 'gone.pth'), file))
    cfg = config({'init_cfg': gone}, neck={'type': 'mmitpn.ITPNPyramid', 'init_cfg': there})
    cfg.resume = resume
    use_checkpoint_grid(cfg, file)
    assert cfg.model.backbone.init_cfg == (None if resume else gone)
    assert cfg.model.neck.init_cfg == there
    assert any('gone.pth, is not there and is left out' in line for line in logged) == resume


# --- whole runs ------------------------------------------------------------------------------------------------


class Images(torch.utils.data.Dataset):
    """Eight images of 64 pixels, one a batch."""

    metainfo = {}  # noqa: RUF012

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        return {'inputs': torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(index))}


class Network(BaseModel):
    """A backbone that learns to give zeros."""

    def __init__(self, backbone: dict) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)

    def forward(self, inputs: list[torch.Tensor], mode: str = 'tensor') -> dict:
        return {'loss': self.backbone(torch.stack(inputs))[2].square().mean()}


class Stop(Hook):
    """Breaks a run off after two iterations."""

    priority = 'LOWEST'

    def after_train_iter(self, runner, *_, **__) -> None:
        if runner.iter == 1:
            raise KeyboardInterrupt


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Train four iterations in a folder below ``run.folder``; gives the runner."""
    folder = tmp_path_factory.mktemp('position_grid')
    patch = pytest.MonkeyPatch()
    patch.setitem(DATASETS._module_dict, 'GridTestImages', Images)
    patch.setitem(MODELS._module_dict, 'GridTestNetwork', Network)
    setup_environment()
    count = iter(range(20))

    def train(name, backbone, *, stop=False, known=False, **cfg) -> Runner:
        cfg = Config(
            {
                'default_scope': 'mmengine',
                'work_dir': str(folder / name),
                'model': {
                    'type': 'GridTestNetwork',
                    'backbone': {'type': 'mmitpn.FastITPN', 'arch': SIZES, **backbone},
                },
                'train_dataloader': {
                    'batch_size': 1,
                    'num_workers': 0,
                    'sampler': {'type': 'DefaultSampler', 'shuffle': False},
                    'dataset': {'type': 'GridTestImages'},
                },
                'train_cfg': {'by_epoch': False, 'max_iters': 4},
                'optim_wrapper': {'optimizer': {'type': 'AdamW', 'lr': 1e-2}},
                'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 1, 'by_epoch': False}},
                'custom_hooks': [{'type': 'EMAHook', 'momentum': 0.2}],
                'log_level': 'ERROR',
                'experiment_name': f'position_grid_{next(count)}',
                **cfg,
            }
        )
        if known:
            use_checkpoint_grid(cfg, cfg.get('load_from'))
        runner = Runner.from_cfg(cfg)
        if stop:
            runner.register_hook(Stop())
        with contextlib.suppress(KeyboardInterrupt):
            runner.train()
        return runner

    train.folder = folder
    yield train
    patch.undo()


@pytest.fixture(scope='module')
def whole(run, authors_weights):
    """The end of an uninterrupted run from a file of 16x16 positions; another one, ``parts``, stopped half way."""
    torch.save(authors_weights((1, 1, 1), grid=16), run.folder / 'f.pth')
    torch.save(authors_weights((1, 1, 1), grid=7), run.folder / 'other.pth')
    backbone = {'init_cfg': {'type': 'Pretrained', 'checkpoint': str(run.folder / 'f.pth')}}
    runner = run('whole', backbone)
    assert runner.model.backbone.pos_embed.shape == (1, 256, 64)
    run('parts', backbone, stop=True)
    return ends(runner)


def ends(runner) -> list[torch.Tensor]:
    """Weights, averages and the state of the optimizer at the end."""
    (ema,) = (hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
    state = runner.optim_wrapper.optimizer.state_dict()['state']
    tensors = [*runner.model.state_dict().values(), *ema.ema_model.state_dict().values()]
    return tensors + [value for entry in state.values() for value in entry.values()]


@pytest.mark.parametrize(
    ('known', 'file'),
    # mmengine loads the file of init_cfg before it resumes, so one that is gone can be left out only beforehand.
    [(True, 'f.pth'), (True, 'gone.pth'), (True, 'other.pth'), (True, None), (False, 'other.pth'), (False, None)],
)
def test_a_run_resumes_with_the_grid_of_its_checkpoint(run, whole, known, file):
    init_cfg = None if file is None else {'type': 'Pretrained', 'checkpoint': str(run.folder / file)}
    checkpoint = str(run.folder / 'parts' / 'iter_2.pth')
    resumed = run(f'{known}_{file}', {'init_cfg': init_cfg}, known=known, resume=True, load_from=checkpoint)
    assert (resumed.iter, resumed.model.backbone.grid) == (4, (16, 16))
    for one, other in zip(ends(resumed), whole, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize('known', [True, False])
def test_load_from_takes_the_grid(run, tmp_path, known):
    source = FastITPN(SIZES, img_size=256)
    file = save(tmp_path / 'e.pth', source)
    runner = run('load', {}, known=known, load_from=file, optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.0}})
    assert runner.model.backbone.grid == (16, 16)
    assert all(torch.equal(v, source.state_dict()[name]) for name, v in runner.model.backbone.state_dict().items())


def test_a_model_that_is_evaluated_is_whole(tmp_path):
    file = save(tmp_path / 'e.pth', FastITPN(SIZES, img_size=256))
    cfg = config()
    use_checkpoint_grid(cfg, file)
    model = Network.__new__(Network)
    BaseModel.__init__(model)
    model.backbone = MODELS.build(cfg.model.backbone)
    WholeWeightsHook().after_load_checkpoint(type('Runner', (), {'model': model})(), torch.load(file))


def test_an_explicit_size_is_evaluated_with_resized_positions(tmp_path):
    trained = FastITPN(SIZES, img_size=256)
    file = save(tmp_path / 'e.pth', trained)
    model = Network.__new__(Network)
    BaseModel.__init__(model)
    model.backbone = FastITPN(SIZES, img_size=512)
    checkpoint = torch.load(file)
    WholeWeightsHook().after_load_checkpoint(type('Runner', (), {'model': model})(), checkpoint)
    model.load_state_dict(checkpoint['state_dict'])
    assert torch.equal(model.backbone.pos_embed, resample_abs_pos_embed(trained.pos_embed, (16, 16), (32, 32)))
    del checkpoint['state_dict']['backbone.pos_embed']
    with pytest.raises(
        ValueError, match=r'1 of \d+ parameters \(backbone.pos_embed, .* in the model, is not in the file'
    ):
        WholeWeightsHook().after_load_checkpoint(type('Runner', (), {'model': model})(), checkpoint)


# --- --pretrained ----------------------------------------------------------------------------------------------


def config_with(**model) -> Config:
    parts = {'backbone': {'type': 'mmitpn.FastITPN'}, 'neck': {'type': 'mmitpn.ITPNPyramid', 'in_channels': [1, 2, 4]}}
    return Config({'model': {**parts, **model}})


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file that is not read here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'weights.pt').touch()
    return 'weights.pt'


@pytest.mark.parametrize(
    ('missing', 'advice'),
    [
        ('out/epoch_12.pth', 'mmitpn weights list has the names'),
        ('fast-itpn-bb', 'weights by name: fast-itpn-b'),
    ],
)
def test_a_missing_file_is_reported_at_once(missing, advice):
    with pytest.raises(FileNotFoundError, match=f'--pretrained {missing}: there is no such file; {advice}'):
        use_pretrained(config_with(), missing)


def test_a_run_that_resumes_does_not_need_the_file():
    """A queue starts the same command again, when the file may be gone."""
    cfg = config_with()
    use_pretrained(cfg, 'gone.pth', resumes=True)
    assert cfg.model.backbone.init_cfg.checkpoint == 'gone.pth'


def test_one_file_for_backbone_and_neck(weights):
    cfg = config_with()
    use_pretrained(cfg, weights)
    expected = {'type': 'Pretrained', 'checkpoint': 'weights.pt'}
    assert cfg.model.backbone.init_cfg == expected
    assert cfg.model.neck.init_cfg == expected


def test_a_neck_of_the_framework_is_left_unchanged(weights):
    cfg = config_with(neck={'type': 'FPN'})
    use_pretrained(cfg, weights)
    assert 'init_cfg' not in cfg.model.neck


def test_nothing_to_load_into():
    with pytest.raises(ValueError, match=r"weights.pt.*\['ResNet', None\]"):
        use_pretrained(config_with(backbone={'type': 'ResNet'}, neck=None), 'weights.pt')


@pytest.mark.parametrize('loaded', [False, True])
def test_random_weights_are_reported(loaded, weights, monkeypatch):
    logged = []
    monkeypatch.setattr(pretrained, 'print_log', lambda text, *_, level: logged.append((text, level)))
    cfg = config_with()
    if loaded:
        use_pretrained(cfg, weights)
    warn_if_random(cfg)
    assert (
        logged == []
        if loaded
        else ('backbone and neck start from random' in logged[0][0] and logged[0][1] == logging.WARNING)
    )
