"""Sharded training on two processes (gloo): the losses of DDP, and checkpoints that are read everywhere."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmitpn.checkpoint import read_checkpoint
from mmitpn.checkpoint.sharded import read_sharded
from mmitpn.datasets import generate_shapes
from mmitpn.engine.checkpointing import load_from_local

pytest.importorskip('mmdet')
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
CONFIG = """
_base_ = [{base!r}{fsdp}]
data_root = {data!r}
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
val_dataloader = None
val_cfg = None
val_evaluator = None
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
test_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
model = dict(backbone=dict(init_cfg=None, with_cp=True), neck=dict(init_cfg=None))
train_cfg = dict(max_iters=4, val_interval=100)
optim_wrapper = dict({optim}optimizer=dict(fused=False))
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2, max_keep_ckpts=-1), logger=dict(interval=1))
randomness = dict(seed=0)
load_from = {start!r}  # the runners draw weights in another order on one of the stacks
{more}
"""


@pytest.fixture(scope='module')
def train(tmp_path_factory) -> Iterator[Callable[..., list[dict]]]:
    """Run tools/train.py or test.py on some processes; ``train(name, ...)`` gives what the main one logged."""
    folder = tmp_path_factory.mktemp('fsdp')
    generate_shapes(folder / 'shapes', 8, 4)
    start = folder / 'start.pth'
    config = Config.fromfile(ROOT / 'configs/quickstart/dino_fast-itpn-nano_shapes.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save({'state_dict': MODELS.build(config.model).state_dict()}, start)
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(ROOT / 'tests/tools/fault_toy'))
    from fault_start import start_training

    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmitpn.config_check', 'mmitpn.engine.cli'])

    def run(
        name: str,
        *options: str,
        fsdp: bool = False,
        more: str = '',
        processes: int = 2,
        tool: str = 'train.py',
        status: int = 0,
    ):
        base = str(ROOT / 'configs/quickstart/dino_fast-itpn-nano_shapes.py')
        base_fsdp = f', {str(ROOT / "configs/_base_/fsdp.py")!r}' if fsdp else ''
        optim = "type='OptimWrapper', " if fsdp else ''
        text = CONFIG.format(
            base=base, fsdp=base_fsdp, data=f'{folder}/shapes/coco/', optim=optim, more=more, start=str(start)
        )
        (folder / f'{name}.py').write_text(text)
        with socket.socket() as one:
            one.bind(('127.0.0.1', 0))
            port = one.getsockname()[1]
        arguments = [f'{name}.py', *options, '--work-dir', str(folder / name)]
        arguments += ['--launcher', 'pytorch'] if processes > 1 else []
        started = []
        for rank in range(processes):
            where = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': processes, 'MASTER_PORT': port}
            variables = {**{key: str(value) for key, value in where.items()}, 'MASTER_ADDR': '127.0.0.1'}
            variables |= {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
            log = folder / f'{name}.{rank}.log'
            started.append(context.Process(target=start_training, args=(ROOT, arguments, folder, variables, log, tool)))
            started[-1].start()
        for process in started:
            process.join(180)
        said = ''.join(path.read_text()[-3000:] for path in folder.glob(f'{name}.*.log'))
        assert [process.exitcode for process in started] == [status] * processes, said
        if status:
            return said
        logs = sorted((folder / name).glob('*/vis_data/scalars.json'))
        return [json.loads(line) for line in logs[-1].read_text().splitlines()] if logs else []

    run.folder = folder
    yield run
    patch.undo()


@pytest.fixture(scope='module')
def runs(train) -> dict[str, list[float]]:
    """Losses of four steps by DDP, and sharded with either kind of checkpoint."""
    found = {'ddp': train('ddp')}
    for kind in ('full', 'sharded'):
        found[kind] = train(kind, fsdp=True, more=f'strategy = dict(checkpoints={kind!r})')
    return {name: [line['loss'] for line in lines if 'loss' in line] for name, lines in found.items()}


@pytest.mark.parametrize('kind', ['full', 'sharded'])
def test_losses_are_those_of_ddp(runs, kind):
    assert len(runs['ddp']) == 4
    assert runs[kind][:3] == pytest.approx(runs['ddp'][:3], rel=1e-5)
    # Sums in another order may, after some steps, select another of two queries with nearly equal scores.
    assert runs[kind] == pytest.approx(runs['ddp'], rel=2e-3)


def test_weights_of_all_kinds_of_checkpoints_are_the_same(runs, train):
    assert runs
    ddp, full = (
        torch.load(train.folder / name / 'iter_4.pth', weights_only=False)['state_dict'] for name in ('ddp', 'full')
    )
    sharded = read_sharded(train.folder / 'sharded' / 'iter_4.pth')
    assert ddp.keys() == full.keys() == sharded.keys()
    for name, value in full.items():
        assert torch.equal(value, sharded[name]), name
        torch.testing.assert_close(value, ddp[name], rtol=1e-2, atol=2e-4)  # AdamW's first steps are signs


def test_both_kinds_have_the_same_scores(runs, train):
    assert runs
    for kind in ('full', 'sharded'):
        checkpoint = str(train.folder / kind / 'iter_4.pth')
        train(kind, checkpoint, fsdp=True, processes=1, tool='test.py')
    reports = [json.loads((train.folder / kind / 'test_metrics.json').read_text()) for kind in ('full', 'sharded')]
    assert reports[0]['metrics'] == reports[1]['metrics']


@pytest.mark.parametrize('kind', [pytest.param('full', marks=pytest.mark.thorough), 'sharded'])
def test_a_sharded_run_resumes(runs, train, kind):
    checkpoint = str(train.folder / kind / 'iter_2.pth')
    more = f'strategy = dict(checkpoints={kind!r})'
    lines = train(f'{kind}_resumed', '--resume', checkpoint, fsdp=True, more=more)
    assert [line['loss'] for line in lines if 'loss' in line] == pytest.approx(runs[kind][2:], rel=1e-5)


WIDER = "model['decoder'] = dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=96)))"


@pytest.mark.parametrize('kind', ['full', 'sharded'])
def test_another_model_is_not_resumed(runs, train, kind):
    assert runs
    checkpoint = str(train.folder / kind / 'iter_2.pth')
    more = f'strategy = dict(checkpoints={kind!r})\n{WIDER}'
    said = train(f'{kind}_other', '--resume', checkpoint, fsdp=True, more=more, status=2)
    assert f'{checkpoint} is of another model' in said
    assert 'decoder.layers.0.ffn.layers.0.0.weight is (' in said
    assert f'load_from={checkpoint} in place of --resume' in said


def test_a_sharded_checkpoint_starts_another_model(runs, train):
    assert runs
    checkpoint = str(train.folder / 'sharded' / 'iter_2.pth')
    more = f"strategy = dict(checkpoints='sharded')\n{WIDER}"
    more += f'\nload_from = {checkpoint!r}\ntrain_cfg = dict(max_iters=1, val_interval=100)'
    lines = train('sharded_started', fsdp=True, more=more)
    assert [line['loss'] > 0 for line in lines if 'loss' in line] == [True]
    old, new = (read_sharded(train.folder / name) for name in ('sharded/iter_2.pth', 'sharded_started/iter_1.pth'))
    # One step of AdamW is as long as its learning rate.
    torch.testing.assert_close(new['backbone.pos_embed'], old['backbone.pos_embed'], rtol=0, atol=2e-3)


def test_a_sharded_checkpoint_without_fsdp_is_weights(runs, train):
    assert runs
    checkpoint = str(train.folder / 'sharded' / 'iter_2.pth')
    said = train('one_resumed', '--resume', checkpoint, processes=1, status=2)
    assert 'holds the shards of a training run with FSDPStrategy, and the config has none' in said
    state = load_from_local(checkpoint)['state_dict']
    assert torch.equal(state['backbone.pos_embed'], read_sharded(checkpoint)['backbone.pos_embed'])


def test_a_damaged_sharded_checkpoint_is_reported(runs, train, tmp_path):
    assert runs
    folder = tmp_path / 'damaged'
    shutil.copytree(train.folder / 'sharded' / 'iter_2.pth', folder)
    part = next(folder.glob('*.distcp'))
    part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r'cannot be read: a part is missing, cut off or damaged'):
        read_sharded(folder)
    (folder / '.metadata').write_bytes((folder / '.metadata').read_bytes()[:1000])
    with pytest.raises(ValueError, match=r'cannot be read as the index of a checkpoint in shards: it is cut off'):
        read_checkpoint(folder)
