"""Resuming: the same samples again, batches that begin within an epoch, and checkpoints of another model refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmitpn.datasets import SeededDataset, SeededInfiniteSampler, SeededSampler, SkippingBatchSampler, seeded_dataset
from mmitpn.datasets.samplers import SeededIndex
from mmitpn.engine import enable_exact_resume, setup_environment
from mmitpn.engine import resume as resume_module
from mmitpn.engine.checkpointing import compare_weights, load_from_local
from mmitpn.engine.resume import check_training_state, compare_optimizer, wants_exact_resume

setup_environment()


@MODELS.register_module(name='ResumeToy', force=True)
class ResumeToy(BaseModel):
    """Linear layers."""

    def __init__(self, classes: int = 4, depth: int = 1, train_body: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Linear(3, 3) for _ in range(depth)))
        self.head = nn.Linear(3, classes)
        self.body.requires_grad_(train_body)

    def forward(self, inputs: Tensor, mode: str = 'loss', **_: Any) -> dict[str, Tensor]:
        assert mode == 'loss'
        return {'loss': self.head(self.body(torch.stack(list(inputs)))).square().mean()}


@DATASETS.register_module(name='ResumeSamples', force=True)
class ResumeSamples(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {'inputs': torch.full((3,), float(index))}


@HOOKS.register_module(name='CountSteps', force=True)
class CountSteps(Hook):
    """Counts the steps that are taken in a process."""

    taken = 0

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        CountSteps.taken += 1


def run(
    work_dir: Path,
    *,
    model: dict | None = None,
    optim: dict | None = None,
    ema: bool = False,
    epochs: int = 1,
    **settings: Any,
) -> Runner:
    """Train the toy, with the hook that the tools add."""
    hooks = [{'type': 'mmitpn.CheckResumeHook'}, {'type': 'CountSteps'}]
    hooks += [{'type': 'EMAHook', 'momentum': 0.5}] if ema else []
    cfg = Config(
        {
            'model': {'type': 'ResumeToy', **(model or {})},
            'work_dir': str(work_dir),
            'experiment_name': f'{work_dir.name}_{len(list(work_dir.glob("*")))}_{CountSteps.taken}',
            'train_dataloader': {
                'batch_size': 2,
                'num_workers': 0,
                'sampler': {'type': 'DefaultSampler', 'shuffle': False},
                'dataset': {'type': 'ResumeSamples'},
            },
            'train_cfg': {'by_epoch': True, 'max_epochs': epochs},
            'optim_wrapper': {'optimizer': {'type': 'AdamW', 'lr': 0.01, 'weight_decay': 0.01}, **(optim or {})},
            'custom_hooks': hooks,
            'randomness': {'seed': 0},
            'default_scope': 'mmengine',
            'log_level': 'ERROR',
            **settings,
        }
    )
    runner = Runner.from_cfg(cfg)
    CountSteps.taken = 0
    runner.train()
    return runner


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> dict[str, str]:
    """Checkpoints after one epoch: plain, and of a run with averaged weights."""
    folder = tmp_path_factory.mktemp('saved')
    for name in ('plain', 'ema'):
        run(folder / name, ema=name == 'ema')
    return {name: str(folder / name / 'epoch_1.pth') for name in ('plain', 'ema')}


def test_the_same_model_is_resumed(saved, tmp_path):
    runner = run(tmp_path, epochs=2, load_from=saved['plain'], resume=True)
    assert (runner.iter, CountSteps.taken) == (4, 2)
    assert runner.optim_wrapper.optimizer.state[runner.model.head.weight]['step'] == 4


@pytest.mark.parametrize('ema', [False, True])
def test_another_number_of_classes_is_refused(saved, tmp_path, ema):
    checkpoint = saved['ema' if ema else 'plain']
    with pytest.raises(ValueError, match='is of another model') as raised:
        run(tmp_path, model={'classes': 5}, ema=ema, epochs=2, load_from=checkpoint, resume=True)
    message = str(raised.value)
    assert '2 of the 4 weights do not fit' in message
    assert 'head.weight is (4, 3) in the file and (5, 3) in the model' in message
    assert 'head.bias is (4,) in the file and (5,) in the model' in message
    assert f'--cfg-options load_from={checkpoint} in place of --resume' in message
    assert CountSteps.taken == 0


def test_a_newest_checkpoint_of_another_model_is_refused(saved, tmp_path):
    """Found by mmengine itself, without a file in the config."""
    (tmp_path / 'epoch_1.pth').write_bytes(Path(saved['plain']).read_bytes())
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    with pytest.raises(ValueError, match=r'head.weight is \(4, 3\) in the file and \(6, 3\)'):
        run(tmp_path, model={'classes': 6}, epochs=2, resume=True)


def test_weights_that_are_not_in_the_file_are_named(saved, tmp_path):
    with pytest.raises(
        ValueError, match=r'2 of the 6 weights .*body.1.weight, \(3, 3\) in the model, is not in the file'
    ):
        run(tmp_path, model={'depth': 2}, epochs=2, load_from=saved['plain'], resume=True)


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        ({'optim': {'paramwise_cfg': {'bias_decay_mult': 0.0}}}, '1 parameter groups in the file, 4 in this run'),
        (
            {'optim': {'optimizer': {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9}}},
            'another optimizer than SGD, without its dampening, momentum, nesterov',
        ),
    ],
)
def test_an_optimizer_state_that_does_not_fit_is_refused(saved, tmp_path, settings, says):
    with pytest.raises(ValueError, match='the optimizer state in') as raised:
        run(tmp_path, epochs=2, load_from=saved['plain'], resume=True, **settings)
    assert says in str(raised.value)
    assert CountSteps.taken == 0


def test_load_from_takes_the_weights_that_fit(saved, tmp_path):
    runner = run(
        tmp_path, model={'classes': 5}, optim={'optimizer': {'type': 'SGD', 'lr': 0}}, load_from=saved['plain']
    )
    assert CountSteps.taken == 2
    stored = torch.load(saved['plain'], weights_only=True)['state_dict']
    assert torch.equal(runner.model.body[0].weight, stored['body.0.weight'])


def test_weights_without_a_training_state_are_not_resumed(saved, tmp_path):
    state = torch.load(saved['plain'], weights_only=True)['state_dict']
    safetensors.torch.save_file(state, tmp_path / 'weights.safetensors')
    torch.save({'state_dict': state, 'meta': {'epoch': 1}}, tmp_path / 'published.pth')
    for name, missing in (('weights.safetensors', 'meta, message_hub'), ('published.pth', 'message_hub, meta.iter')):
        with pytest.raises(ValueError, match=rf'no state of a training run \({missing} missing\).*load_from='):
            check_training_state(tmp_path / name)
        with pytest.raises(ValueError, match='no state of a training run'):
            run(tmp_path / 'run', epochs=2, load_from=str(tmp_path / name), resume=True)
    check_training_state(saved['plain'])


@pytest.mark.parametrize('wrapped', [True, False])
def test_weights_alone_start_a_run(saved, tmp_path, wrapped):
    """Also where the weights are averaged, of which mmengine looks for ``state_dict`` only."""
    state = torch.load(saved['plain'], weights_only=True)['state_dict']
    torch.save({'state_dict': state} if wrapped else state, tmp_path / 'weights.pth')
    still = {'optimizer': {'type': 'SGD', 'lr': 0.0}}
    runner = run(tmp_path / 'run', ema=True, optim=still, load_from=str(tmp_path / 'weights.pth'))
    assert torch.equal(runner.model.head.weight, state['head.weight'])


def test_states_are_compared_by_the_kind_of_the_optimizer():
    """Adafactor keeps a row and a column of a weight: no misfit; AdamW's of another weight is one."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    for optimizer in (torch.optim.Adafactor(model.parameters()), torch.optim.AdamW(model.parameters())):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        wrapper = type('Wrapper', (), {'optimizer': optimizer})()
        assert compare_optimizer(model, wrapper, optimizer.state_dict()) == []
    state = optimizer.state_dict()
    state['state'][0], state['state'][2] = state['state'][2], state['state'][0]
    assert (
        compare_optimizer(model, wrapper, state)[0] == '0.weight.exp_avg is (2, 5) in the file and (5, 3) in the model'
    )


def test_groups_of_other_sizes_are_a_misfit():
    model = nn.Linear(3, 5)
    frozen, whole = torch.optim.SGD([model.weight], lr=0.1), torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = type('Wrapper', (), {'optimizer': frozen})()
    problems = compare_optimizer(model, wrapper, whole.state_dict())
    assert problems == ['group 0 has 2 weights in the file, 1 in this run']


def test_several_optimizers_are_compared_by_name():
    model = nn.Linear(3, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = type('Wrappers', (), {'optim_wrappers': {'a': type('One', (), {'optimizer': optimizer})()}})()
    assert compare_optimizer(model, wrapper, {'a': optimizer.state_dict()}) == []
    assert compare_optimizer(model, wrapper, {'b': optimizer.state_dict()}) == [
        'a: there is no state of this optimizer (b)'
    ]


def test_distributed_names_are_the_models():
    state = {f'module.{name}': value for name, value in nn.Linear(2, 2).state_dict().items()}
    assert compare_weights(nn.Linear(2, 2), {'state_dict': state}) == ([], 2)
    assert [str(one) for one in compare_weights(nn.Linear(2, 3), state)[0]] == [
        'weight is (2, 2) in the file and (3, 2) in the model',
        'bias is (2,) in the file and (3,) in the model',
    ]


def test_objects_of_a_file_stay_inert(tmp_path):
    class Hostile:
        def __reduce__(self) -> tuple:
            return exec, (f'import pathlib; pathlib.Path({str(tmp_path / "was_here")!r}).touch()',)

    torch.save({'state_dict': {'a': torch.ones(1)}, 'extra': Hostile()}, tmp_path / 'hostile.pth')
    assert torch.equal(load_from_local(str(tmp_path / 'hostile.pth'))['state_dict']['a'], torch.ones(1))
    assert not (tmp_path / 'was_here').exists()


def test_a_start_from_no_weight_at_all_is_reported(tmp_path, monkeypatch):
    message = []
    monkeypatch.setattr(resume_module, 'print_log', lambda text, *_: message.append(text))
    torch.save({'model': {'body.0.weight': torch.zeros(3, 3)}}, tmp_path / 'wrapped.pth')
    run(tmp_path / 'run', load_from=str(tmp_path / 'wrapped.pth'))
    assert len(message) == 1
    assert message[0].startswith(f'load_from: none of the 4 weights of the model are in {tmp_path / "wrapped.pth"}')


# --- the config of an exactly resumable run ----------------------------------------------------------------------
@pytest.fixture
def logged(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(resume_module, 'print_log', lambda text, *_: lines.append(text))
    return lines


def training_config() -> Config:
    return Config(
        {
            'train_dataloader': {
                'batch_size': 2,
                'num_workers': 1,
                'drop_last': True,
                'sampler': {'type': 'DefaultSampler', 'shuffle': True},
                'dataset': {'type': 'ResumeSamples'},
            },
            'train_cfg': {'by_epoch': True, 'max_epochs': 1},
            'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
            'custom_hooks': [{'type': 'mmitpn.SeedStepHook'}],
        }
    )


def test_every_change_is_logged_with_the_old_and_the_new_value(logged):
    cfg = training_config()
    changes = enable_exact_resume(cfg)
    assert changes == [
        'default_hooks.checkpoint.type: CheckpointHook -> mmitpn.AtomicCheckpointHook',
        'custom_hooks: none -> mmitpn.StopOnInvalidLossHook',
        'custom_hooks: none -> mmitpn.StopOnSignalHook',
        'train_dataloader.sampler.type: DefaultSampler -> mmitpn.SeededSampler',
        'train_dataloader.dataset: ResumeSamples -> mmitpn.SeededDataset of ResumeSamples',
        'train_dataloader.worker_init_fn: none -> mmitpn.outlast_stop_signal',
        'train_cfg.type: EpochBasedTrainLoop -> mmitpn.ResumableEpochLoop',
        'train_dataloader.batch_sampler: none -> mmitpn.SkippingBatchSampler(drop_last=True)',
    ]
    resume_module.log_changes(changes)
    assert 'exact_resume=True' in logged[0]
    assert '--no-exact-resume' in logged[0]
    assert [line.strip() for line in logged[1:]] == changes
    # Nothing differs but what was logged.
    before, after = training_config().to_dict(), cfg.to_dict()
    assert {key for key in {*before, *after} if before.get(key) != after.get(key)} == {
        *('train_dataloader', 'train_cfg', 'default_hooks', 'custom_hooks', 'exact_resume')
    }
    assert after['train_dataloader'].pop('dataset')['dataset'] == before['train_dataloader'].pop('dataset')
    assert after['train_dataloader']['batch_size'] == 2


def test_a_dumped_config_is_marked_and_not_changed_again(tmp_path, logged):
    cfg = training_config()
    enable_exact_resume(cfg)
    cfg.dump(tmp_path / 'dumped.py')
    assert 'exact_resume = True' in (tmp_path / 'dumped.py').read_text()
    again = Config.fromfile(tmp_path / 'dumped.py')
    assert wants_exact_resume(again)
    assert enable_exact_resume(again) == []
    resume_module.log_changes([])
    assert logged == []
    assert again.to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    ('setting', 'option', 'wanted'),
    [
        ({}, None, True),
        ({}, False, False),
        ({'exact_resume': False}, None, False),
        ({'exact_resume': False}, True, True),
        ({'exact_resume': True}, False, False),
    ],
)
def test_the_command_line_and_the_config_decide(setting, option, wanted):
    assert wants_exact_resume(Config(setting), option) is wanted


def test_a_wrong_setting_of_exact_resume_is_refused():
    with pytest.raises(TypeError, match="exact_resume is 'no'; allowed: True, False"):
        wants_exact_resume(Config({'exact_resume': 'no'}))


class Numbers:
    """A dataset that draws, and some of whose samples are broken."""

    pipeline = 'first'

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 10

    def get_data_info(self, index: int) -> dict:
        return {'img_path': f'{index}.jpg'}

    def __getitem__(self, index: int) -> tuple:
        if index in self.broken:
            raise OSError('cut off')
        return index, float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002


def test_samplers_draw_as_the_hosts_and_say_the_pass():
    sampler = SeededSampler(range(5), seed=3)
    first = list(sampler)
    sampler.set_epoch(2)
    host = DefaultSampler(range(5), seed=3)
    host.set_epoch(2)
    assert sorted(first) == [0, 1, 2, 3, 4]
    assert {draw.epoch for draw in first} == {0}
    assert {draw.epoch for draw in sampler} == {2}
    assert list(sampler) == list(host)
    own, host = iter(SeededInfiniteSampler(range(5), seed=3)), iter(InfiniteSampler(range(5), seed=3))
    drawn = [next(own) for _ in range(12)]
    assert drawn == [next(host) for _ in range(12)]
    assert [draw.epoch for draw in drawn] == [0] * 5 + [1] * 5 + [2] * 2


def test_a_sample_is_seeded_by_its_number_and_pass():
    numbers = SeededDataset(Numbers())
    torch.rand(3)

    def sample(index: int = 3, **draw) -> tuple:
        return numbers[SeededIndex.of(index, **draw)]

    assert sample(epoch=1, seed=0) == sample(epoch=1, seed=0)
    drawn = [sample(epoch=1, seed=0), sample(epoch=2, seed=0), sample(epoch=1, seed=1), sample(4, epoch=1, seed=0)]
    assert len({values[1] for values in drawn}) == len({values[2] for values in drawn}) == 4


def test_it_stands_for_the_dataset():
    numbers = SeededDataset(Numbers())
    assert len(numbers) == 10
    assert numbers.get_data_info(2) == {'img_path': '2.jpg'}
    numbers.pipeline = 'second'  # as mmdet's hooks do
    assert numbers.dataset.pipeline == 'second'
    with pytest.raises(AttributeError, match='metainfo'):
        _ = numbers.metainfo


def drawn(numbers: SeededDataset, workers: int = 0) -> list[int]:
    loader = DataLoader(numbers, batch_size=5, num_workers=workers, collate_fn=list)
    return [sample[0] for batch in loader for sample in batch]


@pytest.mark.parametrize('workers', [0, 2])
def test_the_next_takes_the_place_of_a_broken_sample(workers, monkeypatch):
    logged = []
    monkeypatch.setattr(seeded_dataset, 'print_log', lambda text, *_: logged.append(text))
    numbers = SeededDataset(Numbers(broken=(2, 3, 7)), max_broken=3)
    for _ in range(2):  # a sample counts once, whoever meets it
        assert drawn(numbers, workers) == [0, 1, 4, 4, 4, 5, 6, 8, 8, 9]
    if not workers:
        assert len(logged) == 3
        assert logged[2].startswith(
            'sample 7 (7.jpg) cannot be loaded: OSError: cut off; the next takes its place (3 of'
        )


# The workers of a loader that has raised are waited for, 5 seconds each.
@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_more_broken_samples_than_allowed_stop_the_run(workers):
    with pytest.raises(RuntimeError, match=r'sample \d \(\d\.jpg\).* makes 3, and max_broken_samples is 2'):
        drawn(SeededDataset(Numbers(broken=(2, 3, 7)), max_broken=2), workers)
    with pytest.raises(RuntimeError, match='none of the 10 samples'):
        drawn(SeededDataset(Numbers(broken=tuple(range(10))), max_broken=10))


def test_a_limit_that_is_no_number():
    with pytest.raises(ValueError, match='max_broken is -1'):
        SeededDataset(Numbers(), max_broken=-1)
    with pytest.raises(ValueError, match='max_broken is True'):
        SeededDataset(Numbers(), max_broken=True)


def test_batches_begin_within_a_pass_once():
    sampler = SeededSampler(range(10), shuffle=False)
    batches = SkippingBatchSampler(sampler, 3)
    whole = list(batches)
    batches.skip(2)
    iter(batches)  # torch's loader makes one iterator too many
    assert list(batches) == whole[2:]
    assert list(batches) == whole
    batches.skip(4)
    assert list(batches) == []
    assert len(batches) == 4 == len(whole)
    assert len(SkippingBatchSampler(sampler, 3, drop_last=True)) == 3


def test_batches_of_another_batch_sampler():
    mmdet = pytest.importorskip('mmdet.datasets')
    assert mmdet
    widths = [80, 40] * 5

    class Images(Numbers):
        def get_data_info(self, index: int) -> dict:
            return {'width': widths[index], 'height': 60}

    sampler = SeededSampler(SeededDataset(Images()), shuffle=False)
    batches = SkippingBatchSampler(sampler, 2, {'type': 'mmdet.AspectRatioBatchSampler'})
    whole = list(batches)
    assert whole[:2] == [[0, 2], [1, 3]]
    batches.skip(1)
    assert list(batches) == whole[1:]
    assert len(batches) == len(whole) == 5
