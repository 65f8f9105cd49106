"""What the processes of test_simulated_device.py run: every model takes a step on the CPU and on another device.

    python tests/testing/device_worker.py OUT.json sim|cuda CASE...

A process of its own, because the simulated device renames a backend of torch for all of it.
"""

from __future__ import annotations

import json
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.structures import BaseDataElement, InstanceData
from simulated_checks import CHECKS  # this folder is the process's first path
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mmitpn.models.backbones import ITPN, FastITPN
from mmitpn.models.necks import ITPNPyramid
from mmitpn.testing.demo_inputs import build_from_config, make_samples, model_kind, quiet_logger, set_training_progress
from mmitpn.testing.host_waits import Counts, DeviceCounters, count, counted_device
from mmitpn.testing.simulation import simulated_device

CONFIGS = Path(__file__).parents[2] / 'configs'
NANO = {'depths': (1, 1, 4), 'embed_dim': 64, 'num_heads': 2}
WINDOWS = {'window_size': 3, 'num_tokens': 4}
SIZE, SIDE = (64, 96), 64  # pixels; pre-training has square images
SMALLER = (48, 80)  # of the last image of a batch, for detectors
OBJECTS = (3, 0)  # of each image
TOLERANCE = 1e-3  # of scores and boxes of the same detection, relative to their range
BATCHES = ((4,), (1, 0, 5))  # objects of each image, for counting

# --- models --------------------------------------------------------------------------------------------------------


class Maps(BaseModel):
    """A backbone and its pyramid, which learn to give zeros."""

    def __init__(self, backbone: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        del data_samples
        maps = self.neck(self.backbone(inputs))
        return {'loss': sum(one.square().mean() for one in maps)} if mode == 'loss' else maps


def maps(backbone: type[nn.Module] = FastITPN, kind: str = 'fast', **settings: Any) -> nn.Module:
    """A small backbone with its pyramid."""
    return Maps(backbone(NANO, drop_path_rate=0.1, **settings), ITPNPyramid((16, 32, 64), out_channels=32, kind=kind))


def quick_start(name: str, *, depth: int | None = None) -> nn.Module:
    """A model of the quick start; ``depth`` is the number of decoder layers of a detector."""
    overrides: dict[str, Any] = {}
    if depth is not None:
        head = 'model.decoder' if name.startswith('dino') else 'model.panoptic_head.decoder'
        overrides = {f'{head}.num_layers': depth}
    return build_from_config(CONFIGS / 'quickstart' / f'{name}.py', overrides=overrides)


def small(config: str, **overrides: Any) -> nn.Module:
    """The model of another config, on the nano backbone; ``__`` stands for a dot."""
    changes = {'model.backbone.arch': 'nano', 'model.backbone.img_size': 64}
    changes |= {f'model.{name.replace("__", ".")}': value for name, value in overrides.items()}
    return build_from_config(CONFIGS / config, overrides=changes)


def pre_training(form: str, **settings: Any) -> nn.Module:
    """A small model of a recipe."""
    from mmitpn.models.selfsup import ITPNPretrain

    fast = form not in {'clip', 'pixel'}
    positions = {'relative_position': 'table'} if form == 'clip' else {}
    backbone = FastITPN(NANO, img_size=SIDE) if fast else ITPN(NANO, img_size=SIDE, **positions)
    neck = ITPNPyramid((16, 32, 64), out_channels=32, num_outs=3, kind='fast' if fast else 'linear')
    if form in {'fast', 'clip'}:
        settings.setdefault('teacher', 'random')
    if form == 'pixel':
        settings.setdefault('head', {'width': 64, 'depth': 1, 'heads': 2})
    return ITPNPretrain(backbone, neck, form=form, **settings)


def network_teacher() -> nn.Module:
    """Pre-training by the feature map of a network that wants its images normalized in another way."""
    teacher = nn.Conv2d(3, 8, 16, stride=16)
    own = {'mean': (127.5,) * 3, 'std': (127.5,) * 3}
    return pre_training('fast', teacher={'type': 'mmitpn.FeatureTeacher', 'model': teacher, **own})


CASES: Mapping[str, Callable[[], nn.Module]] = {
    'dino': partial(quick_start, 'dino_fast-itpn-nano_shapes'),
    'dino-deep': partial(quick_start, 'dino_fast-itpn-nano_shapes', depth=4),
    'mask-dino-instance': partial(quick_start, 'mask-dino_fast-itpn-nano_shapes-instance'),
    'mask-dino-deep': partial(quick_start, 'mask-dino_fast-itpn-nano_shapes-instance', depth=4),
    'mask-dino-panoptic': partial(quick_start, 'mask-dino_fast-itpn-nano_shapes-panoptic'),
    'mask-dino-semantic': partial(quick_start, 'mask-dino_fast-itpn-nano_shapes-semantic'),
    'decode-head': partial(
        small,
        'mask_dino/mask-dino_fast-itpn-t_8xb2-160k_ade20k-512x512.py',
        neck__in_channels=(48, 96, 192),
        decode_head__pixel_decoder__num_layers=1,
        decode_head__decoder__num_layers=2,
    ),
    'upernet': partial(quick_start, 'upernet_fast-itpn-nano_shapes'),
    'mask-rcnn': partial(
        small,
        'mask_rcnn/mask-rcnn_fast-itpn-t_8xb8-12e_coco.py',
        neck__in_channels=(48, 96, 192),
        roi_head__bbox_head__norm_cfg={'type': 'GN', 'num_groups': 8},
        train_cfg__rpn_proposal__max_per_img=50,
        test_cfg__rpn__max_per_img=50,
        test_cfg__rcnn__score_thr=0.0,
        test_cfg__rcnn__max_per_img=10,
        train_cfg__rcnn__sampler__num=16,
    ),
    'classifier': partial(
        small, 'classification/fast-itpn-t_16xb64-100e_in1k-224.py', head__in_channels=192, head__num_classes=7
    ),
    'fast-itpn': maps,
    'fast-itpn-deep': partial(maps, out_indices=(0, 1, 2), with_cp=True),
    'itpn': partial(maps, ITPN, 'linear', relative_position='table'),
    'gathering': partial(maps, token_gathering=WINDOWS),
    'gathering-learned': partial(maps, token_gathering={**WINDOWS, 'learned': True, 'global_blocks': (-1,)}),
    'migration': partial(maps, token_migration={}),
    'both': partial(maps, token_gathering=WINDOWS, token_migration={}),
    'pre-training-fast': partial(pre_training, 'fast'),
    'pre-training-clip': partial(pre_training, 'clip'),
    'pre-training-pixel': partial(pre_training, 'pixel'),
    'pre-training-mfm': partial(pre_training, 'mfm'),
    'pre-training-hog': partial(pre_training, 'hog'),
    'pre-training-network': network_teacher,
    'pre-training-pipeline': partial(pre_training, 'pixel', masking='pipeline'),
}


def build(name: str) -> nn.Module:
    """A model of ``CASES`` with weights that are the same each time."""
    seed()
    with quiet_logger():
        model = CASES[name]()
    for key, weight in model.named_parameters():
        if key.endswith('sampling_offsets.bias'):
            # Untrained, deformable attention samples at the centers of pixels, where its derivative has two values.
            weight.data.add_(0.3)
    set_training_progress()
    return model


# --- steps ---------------------------------------------------------------------------------------------------------


class CPURandomNumbers(TorchDispatchMode):
    """Draw the random numbers of a GPU on the CPU, so that both devices get the same."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = next((one.device for one in args if isinstance(one, Tensor)), kwargs.get('device'))
        attention = 'attention' in func.name()
        if (
            torch.Tag.nondeterministic_seeded not in func.tags
            or attention
            or torch.device(found or 'cpu').type == 'cpu'
        ):
            return func(*args, **kwargs)
        moved = tree_map_only(Tensor, Tensor.cpu, (args, kwargs))
        if moved[1].get('device') is not None:
            moved[1]['device'] = torch.device('cpu')
        out = func(*moved[0], **moved[1])
        if func._schema.is_mutable:
            return args[0].copy_(out)
        return tree_map_only(Tensor, lambda one: one.to(found), out)


def seed() -> None:
    """Seed every generator that a model draws from."""
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - mmdet draws from the global generator
    random.seed(1)


def optimizer_of(model: nn.Module) -> Any:
    """AdamW with layer-wise decay of the learning rate and clipping, as in the project's recipes."""
    return build_optim_wrapper(
        model,
        {
            'constructor': 'mmitpn.LayerDecayOptimWrapperConstructor',
            # With this eps the step hardly depends on the sign of a gradient that is nearly 0.
            'optimizer': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.05, 'eps': 1e-3},
            'clip_grad': {'max_norm': 1.0},
            'paramwise_cfg': {'decay_rate': 0.8},
        },
    )


def samples_of(model: nn.Module, objects: Sequence[int], device: torch.device) -> list | None:
    """Ground truth on a device, the same for every device."""
    seed()
    if isinstance(model, Maps):
        return None
    samples = [
        one for number in objects for one in make_samples(model, size_of(model), batch=1, objects=number, device=device)
    ]
    if model_kind(model) == 'detector':
        samples[-1].set_metainfo({'img_shape': SMALLER})  # the rest is padding
    if model_kind(model) == 'classifier':  # as Mixup and CutMix of the data preprocessor give them
        for sample in samples:
            sample.set_gt_score(torch.full((model.head.num_classes,), 1 / model.head.num_classes, device=device))
    return samples


def size_of(model: nn.Module) -> tuple[int, int]:
    return (SIDE, SIDE) if type(model).__name__ == 'ITPNPretrain' else SIZE


def predict_mode(model: nn.Module) -> str:
    return 'tensor' if type(model).__name__ in {'Maps', 'ITPNPretrain'} else 'predict'


class Instances(NamedTuple):
    """Detections of an image: their order depends on the last digits of scores.

    Attributes:
        rows: Score, label and box of each, ``(N, 6)``, each from 0 to about 1.
        masks: ``(N, H, W)``, or ``(N, 0)`` where there are none.
    """

    rows: Tensor
    masks: Tensor

    def difference(self, other: Instances) -> float:
        """Fraction of the detections that the other has not, plus that of the pixels of masks."""
        if not len(self.rows) or not len(other.rows):
            return float(len(self.rows) != len(other.rows))
        distances, nearest = torch.cdist(self.rows, other.rows, p=float('inf')).min(1)
        wrong = self.masks[distances < TOLERANCE] != other.masks[nearest][distances < TOLERANCE]
        return float((distances > TOLERANCE).float().mean()) + float(wrong.float().mean() if wrong.numel() else 0)


def tensors_in(value: Any) -> Iterator[Tensor | Instances]:
    """The tensors of results, in their order."""
    if isinstance(value, InstanceData):
        masks = value.get('masks', torch.zeros(len(value), 0))
        boxes = value.bboxes.cpu() / max(SIZE)
        rows = torch.cat((value.scores.cpu()[:, None], value.labels.cpu()[:, None], boxes), 1)
        yield Instances(rows, torch.as_tensor(masks).cpu())
        return
    if isinstance(value, BaseDataElement):
        value = [one for key, one in sorted(value.items()) if 'pred' in key or 'logits' in key]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Tensor):
        yield value.detach().cpu()
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_in(one)


def turn_dropout_off(model: nn.Module) -> None:
    """Without dropout and drop path, whose random numbers depend on the device's kernels."""
    for module in model.modules():
        for name in ('p', 'drop_prob', 'dropout'):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def step(name: str, device_name: str, *, dropout: bool) -> tuple[dict[str, list[Tensor | Instances]], dict[str, Any]]:
    """A training step with optimizer and average, then a prediction.

    Args:
        name: One of ``CASES``.
        device_name: See :func:`~mmitpn.testing.host_waits.counted_device`.
        dropout: False turns it off.

    Returns:
        Losses, results, weights and averaged weights on the CPU, and counts of waits, unless the device is the CPU.
    """
    model = build(name)
    if not dropout:
        turn_dropout_off(model)
    inputs = torch.randn(len(OBJECTS), 3, *size_of(model))
    with counted_device(device_name) as counters:
        same_numbers: Callable[[], AbstractContextManager] = CPURandomNumbers if device_name == 'cuda' else nullcontext
        model, inputs = model.to(counters.device).train(), inputs.to(counters.device)
        samples = samples_of(model, OBJECTS, counters.device)
        with quiet_logger():
            wrapper, average = optimizer_of(model), ExponentialMovingAverage(model, momentum=0.1)
        average.update_parameters(model)
        seed()
        with same_numbers(), torch.autocast(counters.device.type, dtype=torch.bfloat16):
            narrow, _ = model.parse_losses(model(inputs, samples, mode='loss'))
        seed()
        with same_numbers():
            losses = model(inputs, samples, mode='loss')
            total, _ = model.parse_losses(losses)
        updating, _ = count(counters, lambda: wrapper.update_params(total))
        average.update_parameters(model)
        model.eval()
        seed()
        with torch.no_grad(), same_numbers():
            results = model(inputs, samples, mode=predict_mode(model))
        found = {'losses': losses, 'results': results, 'weights': model.state_dict(), 'average': average.state_dict()}
        found = {what: list(tensors_in(value)) for what, value in found.items()}
        counts = {'bf16': narrow.item() / total.item()}
        if device_name != 'cpu':
            counts |= {'updating': [described(updating)], **count_passes(model, counters)}
    return found, counts


def count_passes(model: nn.Module, counters: DeviceCounters) -> dict[str, list[dict[str, Any]]]:
    """Counts of passes over batches of several sizes with several numbers of objects, which are to be the same."""
    counts: dict[str, list[dict[str, Any]]] = {'loss': [], 'prediction': []}
    for objects in BATCHES:
        inputs = torch.randn(len(objects), 3, *size_of(model)).to(counters.device)
        samples = samples_of(model, objects, counters.device)
        model.train()
        found, _ = count(counters, lambda: model(inputs, samples, mode='loss'))  # noqa: B023 - called at once
        counts['loss'].append(described(found))
        model.eval()
        with torch.no_grad():
            mode = predict_mode(model)
            found, _ = count(counters, lambda: model(inputs, samples, mode=mode))  # noqa: B023
        counts['prediction'].append(described(found))
    return counts


def described(counts: Counts) -> dict[str, Any]:
    """Counts for JSON."""
    return {'total': counts.total, 'operators': counts.num_operators, 'where': dict(counts.where)}


def difference(ours: Sequence[Tensor | Instances], theirs: Sequence[Tensor | Instances]) -> float:
    """Largest difference of two lists of results.

    Of numbers it is relative to the largest of each tensor and at least to 1; of label maps the fraction of pixels.
    """
    if len(ours) != len(theirs):
        raise ValueError(f'{len(ours)} results on the device, {len(theirs)} on the CPU')
    found = [0.0]
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one, Instances):
            found.append(one.difference(other))
        elif one.shape != other.shape:
            raise ValueError(f'a result of shape {tuple(one.shape)} on the device, {tuple(other.shape)} on the CPU')
        elif one.numel() and one.is_floating_point():
            scale = max(float(other.abs().max()), 1.0)
            found.append(float((one - other).abs().max()) / scale)
        elif one.numel():
            found.append(float((one != other).float().mean()))
    return max(found)


def compare(name: str, device: str) -> dict[str, Any]:
    """Differences between a device and the CPU, and the counts of waits on it."""
    ours, counts = step(name, device, dropout=device == 'sim')
    theirs, _ = step(name, 'cpu', dropout=device == 'sim')
    return {'difference': {what: difference(ours[what], theirs[what]) for what in theirs}, **counts}


def main(out: str, device: str, *names: str) -> None:
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    found = {}
    for name in names:
        try:
            if name in CHECKS:
                with simulated_device() as sim:
                    CHECKS[name](sim)
                found[name] = {}
            else:
                found[name] = compare(name, device)
        except BaseException:  # noqa: BLE001 - reported by the test of this case
            found[name] = {'error': traceback.format_exc()}
    Path(out).write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
    main(*sys.argv[1:])
