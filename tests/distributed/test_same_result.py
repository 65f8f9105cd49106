"""Two processes learn and measure what one does: the same loss curves, the same predictions, the same metrics."""

from __future__ import annotations

import json
import multiprocessing
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path

import pytest
from mmengine.fileio import load

from mmitpn.datasets import generate_shapes

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / 'configs/quickstart'
STEPS, BATCH, SIDE = 20, 4, 64
NUM_TEST = 7  # to test on: no number of processes here divides it
EARLY = 10  # steps in which nothing but fp32 rounding is there
PATIENCE = 500  # seconds that a process may take
pytestmark = pytest.mark.slow
# Where the training pipeline resizes.
RESIZE = {
    'dino_fast-itpn-nano_shapes': 5,
    'mask-dino_fast-itpn-nano_shapes-instance': 5,
    'upernet_fast-itpn-nano_shapes': 2,
}

# What every training run here changes: its length and its batch, given as BATCH over the processes.
SHORT = f"""
train_cfg = dict(max_iters={STEPS})
val_cfg = val_dataloader = val_evaluator = None
randomness = dict(seed=3)
custom_imports = dict(imports=['same_result_worker'])
custom_hooks = [dict(type='NoteLosses')]
default_hooks = dict(checkpoint=dict(interval={STEPS}))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Generated images; those that the detectors learn from are ordered, see :func:`order_images`."""
    folder = tmp_path_factory.mktemp('same')
    generate_shapes(folder / 'data/shapes', num_train=24, num_val=NUM_TEST, size=(SIDE, SIDE))
    order_images(folder / 'data/shapes/coco/annotations/instances_train2017.json')
    return folder


def order_images(file: Path) -> None:
    """Keep eight images: of each four, the first two have as many objects, the others fewer.

    A group of denoising queries is as long as the fullest image of the process's batch, and the positions left over are
    attended to, as in the published models: the fullest image has to be as full on both.
    """
    data = json.loads(file.read_text())
    counts = Counter(one['image_id'] for one in data['annotations'])
    having: dict[int, list[dict]] = {}
    for image in data['images']:
        having.setdefault(counts[image['id']], []).append(image)
    full = max(number for number, images in having.items() if len(images) >= 4)
    fullest, others = having[full], [having[number][0] for number in range(4)]
    data['images'] = [*fullest[:2], *others[:2], *fullest[2:4], *others[2:]]
    kept = {image['id'] for image in data['images']}
    data['annotations'] = [one for one in data['annotations'] if one['image_id'] in kept]
    file.write_text(json.dumps(data))


@pytest.fixture(scope='module')
def run(folder) -> Iterator[Callable[..., Path]]:
    """Run a tool on some processes in a work dir; they start from a process that has the libraries loaded."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(Path(__file__).parent))
    patch.setenv('OMP_NUM_THREADS', '1')
    from same_result_worker import run_tool

    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmitpn.engine.cli', 'mmdet.models', 'mmseg.models', 'mmitpn.models'])

    def start(work_dir: str, processes: int, tool: str, *arguments: str) -> Path:
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        shared = {'CUDA_VISIBLE_DEVICES': ''}
        if processes > 1:
            shared |= {'WORLD_SIZE': str(processes), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
        options = ['--work-dir', work_dir, *(['--launcher', 'pytorch'] if processes > 1 else [])]
        started, logs = [], []
        for rank in range(processes):
            logs.append(folder / f'{work_dir}.{rank}.log')
            variables = {**shared, 'RANK': str(rank), 'LOCAL_RANK': str(rank)}
            given = (ROOT, [tool, *arguments, *options], folder, variables, logs[-1])
            started.append(context.Process(target=run_tool, args=given))
            started[-1].start()
        running = {process.sentinel: process for process in started}
        while running:
            ended = [running.pop(one) for one in wait(list(running), PATIENCE)]
            if not ended or any(process.exitcode for process in ended):
                for process in running.values():
                    process.kill()  # it waits for one that has failed
        said = '\n'.join(log.read_text()[-3000:] for log in logs)
        assert [process.exitcode for process in started] == [0] * processes, said
        return folder / work_dir

    yield start
    patch.undo()


@pytest.fixture(scope='module')
def train(run, folder) -> Callable[[str, str, int], Path]:
    """Train a config on some processes, once."""
    done: dict[tuple[str, int], Path] = {}

    def once(base: str, changes: str, processes: int) -> Path:
        if (base, processes) not in done:
            config = folder / f'{base}.py'
            config.write_text(f"_base_ = '{QUICKSTART / base}.py'\n{SHORT}{changes}")
            options = [f'train_dataloader.batch_size={BATCH // processes}']
            if base in RESIZE:
                options.append(f'train_dataloader.dataset.pipeline.{RESIZE[base]}.scale=({SIDE},{SIDE})')
            arguments = ('tools/train.py', str(config), '--cfg-options', *options)
            done[base, processes] = run(f'{base}.{processes}', processes, *arguments)
        return done[base, processes]

    return once


def steps(work_dir: Path, processes: int) -> list[tuple[list[str], dict[str, float]]]:
    """Of each step the images of all processes, and the means of their losses."""
    ranks = [(work_dir / f'losses.{rank}').read_text().splitlines() for rank in range(processes)]
    found = []
    for lines in zip(*ranks, strict=True):
        noted = [json.loads(line) for line in lines]
        losses = {name: sum(one['losses'][name] for one in noted) / processes for name in noted[0]['losses']}
        found.append((sorted(name for one in noted for name in one['images']), losses))
    return found


def assert_the_same_curve(train: Callable[..., Path], base: str, changes: str) -> None:
    one, two = (steps(train(base, changes, processes), processes) for processes in (1, 2))
    assert len(one) == len(two) == STEPS
    assert [images for images, _ in one] == [images for images, _ in two]
    assert len({tuple(images) for images, _ in one}) > 1
    for step, ((_, ours), (_, theirs)) in enumerate(zip(one, two, strict=True)):
        if step < EARLY:
            assert theirs == pytest.approx(ours, rel=1e-5, abs=1e-6), step
        else:  # rounding decides between equals, such as a sample on the edge of a map, and the runs part slowly
            assert theirs['loss'] == pytest.approx(ours['loss'], rel=5e-2), step
    assert one[-1][1]['loss'] < one[0][1]['loss']


# What a process draws for its part of the batch has no noise: see order_images for the rest.
DINO = """
model = dict(dn_cfg=dict(
    label_noise_scale=1e-9, box_noise_scale=1e-9, group_cfg=dict(dynamic=False, num_groups=2, num_dn_queries=None)
))
train_dataloader = dict(num_workers=0, persistent_workers=False, sampler=dict(shuffle=False))
"""
# Masks are learned at points anywhere: which points are the most uncertain may hang on the last digit.
MASK_DINO = """
model = dict(
    panoptic_head=dict(denoising=dict(noise_scale=0.0)),
    train_cfg=dict(num_points=256, oversample_ratio=1.0, importance_sample_ratio=0.0),
)
train_dataloader = dict(num_workers=0, persistent_workers=False, sampler=dict(shuffle=False))
"""
# Without dropout. With weights of classes mmseg divides by the weights of a process's own pixels.
UPERNET = f"""
loss = dict(class_weight=None)
model = dict(
    data_preprocessor=dict(size=({SIDE}, {SIDE})),
    decode_head=dict(dropout_ratio=0.0, loss_decode=loss), auxiliary_head=dict(dropout_ratio=0.0, loss_decode=loss)
)
train_dataloader = dict(num_workers=0, persistent_workers=False)
"""
# Masks that the pipeline draws, which is seeded for every image.
PRETRAIN = f"""
data_root = 'data/shapes/coco/train2017/'
model = dict(masking='pipeline', backbone=dict(img_size={SIDE}))
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root, pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale={SIDE}, crop_ratio_range=(0.4, 1.0), interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='BEiTMaskGenerator', input_size={SIDE // 16}, num_masking_patches=6, min_num_patches=1),
    dict(type='PackInputs', algorithm_keys=['mask'], meta_keys=['img_path']),
]))
"""


def evaluate(run: Callable[..., Path], trained: Path, name: str, processes: int, *more: str) -> tuple[dict, list[dict]]:
    """Metrics and predictions of a trained model on some processes; ``name`` is that of the work dir."""
    settings = (
        'num_workers=0',
        'persistent_workers=False',
        'batch_size=2',
        f'dataset.pipeline.1.scale=({SIDE},{SIDE})',
    )
    options = [*(f'test_dataloader.{one}' for one in settings), *more]
    config, checkpoint = trained.with_suffix('.py'), trained / f'iter_{STEPS}.pth'
    arguments = (str(config), str(checkpoint), '--out', f'{name}.pkl', '--cfg-options', *options)
    work_dir = run(name, processes, 'tools/test.py', *arguments)
    metrics = json.loads((work_dir / 'test_metrics.json').read_text())['metrics']
    return metrics, load(work_dir.with_name(f'{name}.pkl'))


def assert_the_same_metrics(run: Callable[..., Path], trained: Path, *more: str) -> dict[str, float]:
    metrics, predictions = evaluate(run, trained, f'{trained.stem}.test1', 1, *more)
    names = [one['img_path'] for one in predictions]
    assert len(set(names)) == len(names) == NUM_TEST
    for processes in (2, 3):
        ours, found = evaluate(run, trained, f'{trained.stem}.test{processes}', processes, *more)
        assert [one['img_path'] for one in found] == names
        assert ours == metrics
    return metrics


def write_ground_truth(predictions: list[dict], like: Path, file: Path) -> None:
    """Objects near some of the predictions: after so few steps the model finds none of those that are there."""
    data = json.loads(like.read_text())
    data['annotations'] = []
    for image in predictions:
        found = image['pred_instances']
        for i in range(1, 15, 3):
            x0, y0, x1, y1 = found['bboxes'][i].tolist()
            mask = found['masks'][i]
            data['annotations'].append(
                {
                    'id': len(data['annotations']) + 1,
                    'image_id': image['img_id'],
                    'category_id': int(found['labels'][i]) + 1,
                    'bbox': [x0 + 1, y0 + 1, x1 - x0, y1 - y0],
                    'area': (x1 - x0) * (y1 - y0),
                    'iscrowd': 0,
                    'segmentation': {'size': mask['size'], 'counts': mask['counts'].decode()},
                }
            )
    file.write_text(json.dumps(data))


def test_dino(train):
    assert_the_same_curve(train, 'dino_fast-itpn-nano_shapes', DINO)


def test_mask_dino(train):
    assert_the_same_curve(train, 'mask-dino_fast-itpn-nano_shapes-instance', MASK_DINO)


@pytest.mark.thorough
def test_upernet(train):
    assert_the_same_curve(train, 'upernet_fast-itpn-nano_shapes', UPERNET)


def test_pre_training(train):
    assert_the_same_curve(train, 'pretrain_fast-itpn-nano_shapes-mfm', PRETRAIN)


@pytest.mark.parametrize(
    ('base', 'changes'),
    [
        pytest.param('dino_fast-itpn-nano_shapes', DINO, marks=pytest.mark.thorough),
        ('mask-dino_fast-itpn-nano_shapes-instance', MASK_DINO),
    ],
)
def test_static_graph_with_checkpointing(train, run, folder, base, changes):
    """The parameters that a step uses are the same in each: DDP may rely on the first one."""
    plain = steps(train(base, changes, 2), 2)
    config = folder / f'static_{base}.py'
    config.write_text(
        f"_base_ = '{base}.py'\nmodel = dict(backbone=dict(with_cp=True))\n"
        "model_wrapper_cfg = dict(type='MMDistributedDataParallel', static_graph=True)\n"
        f'train_cfg = dict(max_iters={EARLY})\n'
    )
    options = [f'train_dataloader.batch_size={BATCH // 2}']
    options.append(f'train_dataloader.dataset.pipeline.{RESIZE[base]}.scale=({SIDE},{SIDE})')
    work_dir = run(f'static_{base}', 2, 'tools/train.py', str(config), '--cfg-options', *options)
    for (_, ours), (_, theirs) in zip(plain[:EARLY], steps(work_dir, 2)[:EARLY], strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5, abs=1e-6)


def test_metrics_of_a_detector(train, run, folder):
    trained = train('mask-dino_fast-itpn-nano_shapes-instance', MASK_DINO, 1)
    like = folder / 'data/shapes/coco/annotations/instances_val2017.json'
    write_ground_truth(evaluate(run, trained, 'first', 1)[1], like, folder / 'ground_truth.json')
    metrics = assert_the_same_metrics(run, trained, f'test_evaluator.ann_file={folder / "ground_truth.json"}')

    assert 0 < metrics['coco/bbox_mAP'] < 1
    assert 0 < metrics['coco/segm_mAP'] < 1


@pytest.mark.thorough
def test_metrics_of_a_segmentor(train, run):
    metrics = assert_the_same_metrics(run, train('upernet_fast-itpn-nano_shapes', UPERNET, 1))
    assert 0 < metrics['mIoU'] < 100
