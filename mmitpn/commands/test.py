"""Evaluate a checkpoint with the metrics of its config; the figures also go into WORK_DIR/test_metrics.json.

CONFIG is a file, the name of one of ours, or FRAMEWORK::NAME for one of an installed framework; CHECKPOINT a file, an
address, a folder (sharded), or a name (nano-shapes).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Collection
from copy import deepcopy
from pathlib import Path
from typing import Any

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.logging import print_log
from mmengine.runner.checkpoint import load_state_dict

from mmitpn.apis.model_loading import refuse_backbone
from mmitpn.apis.report import ReportHook, add_report_argument
from mmitpn.atomic import write_atomic
from mmitpn.checkpoint.sharded import read_sharded
from mmitpn.config_types import is_type, type_name
from mmitpn.engine.checkpointing import WholeWeightsHook, unwrap
from mmitpn.engine.cli import FirstStepHook, add_common_arguments, read_config, run_command
from mmitpn.engine.compile import add_compile_argument, compile_model
from mmitpn.engine.evaluation import (
    add_evaluation_arguments,
    build_test_runner,
    check_evaluation,
    load_complete_model,
    read_authors_file,
    read_classes,
)
from mmitpn.engine.gpu_settings import add_gpu_settings_argument, apply_gpu_settings, log_gpu_settings
from mmitpn.engine.pretrained import use_checkpoint_grid
from mmitpn.weights import resolve_weights
from mmitpn.weights.zoo import advise_on_missing

BOX_TTA = 'DetTTAModel'
# Keys of models that predict masks. In RTMDet-Ins the box head does, and only its test_cfg shows it.
MASK_KEYS = ('mask_head', 'panoptic_head', 'panoptic_fusion_head', 'mask_thr_binary')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file, its name, or FRAMEWORK::NAME')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint file, address or name')
    parser.add_argument('--out', metavar='FILE', help='save the predictions: .pkl (any model) or .json (detectors)')
    parser.add_argument('--show', action='store_true', help='show each prediction in a window')
    parser.add_argument('--show-dir', metavar='DIR', help='save drawings of the predictions into this folder')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that --show keeps a window (default: 2)')
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation: tta_model and tta_pipeline of the config'
    )
    parser.add_argument(
        '--allow-partial', action='store_true', help='evaluate although the checkpoint lacks some of the weights'
    )
    add_compile_argument(parser)
    add_report_argument(parser)
    add_evaluation_arguments(parser)
    add_gpu_settings_argument(parser)
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.out is not None and Path(args.out).suffix not in ('.pkl', '.pickle', '.json'):
        parser.error(f'--out {args.out}: allowed endings are .pkl, .pickle and .json')
    return args


def apply_visualization(cfg: Config, args: argparse.Namespace) -> None:
    """Let the framework's visualization hook draw; each has its own names for the same options."""
    scope = cfg.get('default_scope', 'mmengine')
    kinds = {
        'mmdet': ('DetVisualizationHook', 'DetLocalVisualizer'),
        'mmseg': ('SegVisualizationHook', 'SegLocalVisualizer'),
        'mmpretrain': ('VisualizationHook', 'UniversalVisualizer'),
    }
    own_hook, own_visualizer = kinds.get(scope, (None, None))
    cfg.setdefault('default_hooks', {})
    cfg.default_hooks.setdefault('visualization', {'type': own_hook})
    hook = cfg.default_hooks.visualization  # what setdefault returns is not what the config holds
    kind = type_name(hook)
    hooks = [name for name, _ in kinds.values()]
    if kind not in hooks:
        raise ValueError(
            f'--show and --show-dir need default_hooks.visualization of one of {", ".join(hooks)};'
            f' the config (default_scope={scope!r}) has {hook.get("type")!r}'
        )
    if cfg.get('visualizer') is None and own_visualizer is not None:
        print_log(f'--show, --show-dir: the config has no visualizer; drawing by {own_visualizer}', 'current')
        backends = [{'type': 'LocalVisBackend'}]
        cfg.visualizer = {'type': own_visualizer, 'vis_backends': backends, 'name': 'visualizer'}
    hook['enable' if kind == 'VisualizationHook' else 'draw'] = True
    hook['interval'] = 1
    if args.show:
        hook.update(show=True, wait_time=args.wait_time)
    if args.show_dir is not None:
        folder = str(Path(args.show_dir).resolve())  # a relative one would end up below the work dir's time stamp
        if kind == 'SegVisualizationHook':
            cfg.visualizer['save_dir'] = folder
        else:
            hook['test_out_dir' if kind == 'DetVisualizationHook' else 'out_dir'] = folder


def require_tta(cfg: Config) -> None:
    """Raise where a config has nothing to augment a test with, or masks that would not be merged.

    Detectors have a default, flip and NMS.
    """
    for name in ('tta_model', 'tta_pipeline'):
        if not cfg.get(name) and cfg.get('default_scope') != 'mmdet':
            raise ValueError(
                f'--tta needs {name} in the config, which has none; there is a default for mmdet models only'
            )
    merges_boxes = not cfg.get('tta_model') or is_type(cfg.tta_model, BOX_TTA)
    if merges_boxes and (head := find_key(cfg.model, MASK_KEYS)):
        raise ValueError(
            f"--tta merges boxes only (mmdet's {BOX_TTA}), and the model of the config predicts masks ({head}): leave"
            ' --tta out, or give a tta_model of yours that merges masks'
        )


def find_key(node: Any, names: Collection[str]) -> str | None:
    """The first of the names that is a key anywhere in a config and has a value."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in children:
        if key in names and value:
            return key
        if found := find_key(value, names):
            return found
    return None


def apply_tta(cfg: Config) -> None:
    """Wrap the model and replace the pipeline for test-time augmentation."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    if not cfg.get('tta_model'):
        print_log('--tta: the config has no tta_model; merging by NMS at IoU 0.5, 100 boxes per image', 'current')
        nms = {'type': 'nms', 'iou_threshold': 0.5}
        cfg.tta_model = {'type': BOX_TTA, 'tta_cfg': {'nms': nms, 'max_per_img': 100}}
    if not cfg.get('tta_pipeline'):
        print_log('--tta: the config has no tta_pipeline; testing each image as it is and flipped', 'current')
        flips = [{'type': 'RandomFlip', 'prob': 1.0}, {'type': 'RandomFlip', 'prob': 0.0}]
        keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
        pack = {'type': 'PackDetInputs', 'meta_keys': keys}
        pipeline = deepcopy(dataset.pipeline)
        pipeline[-1] = {'type': 'TestTimeAug', 'transforms': [flips, [pack]]}
        cfg.tta_pipeline = pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def to_json(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turn the predictions of a detector into plain numbers: boxes are x1, y1, x2, y2 in pixels of the image file."""
    plain = []
    for sample in predictions:
        if 'pred_instances' not in sample:
            raise ValueError('--out FILE.json is for detectors only; give a name that ends in .pkl for this model')
        found = sample['pred_instances']
        entry = {key: sample[key] for key in ('img_id', 'img_path', 'ori_shape') if key in sample}
        entry.update({key: found[key].tolist() for key in ('labels', 'scores', 'bboxes') if key in found})
        if 'masks' in found:  # COCO's run lengths, whose counts are bytes
            entry['masks'] = [{**mask, 'counts': mask['counts'].decode()} for mask in found['masks']]
        plain.append(entry)
    return plain


def test(args: argparse.Namespace, steps: list[FirstStepHook]) -> None:
    cfg = read_config(args)
    refuse_backbone(args.checkpoint, cfg)
    args.checkpoint = str(resolve_weights(args.checkpoint))
    sharded = Path(args.checkpoint).is_dir()
    if '://' not in args.checkpoint and not sharded and not Path(args.checkpoint).is_file():
        advice = advise_on_missing(args.checkpoint) or '; give the path of one that mmitpn train wrote'
        raise FileNotFoundError(f'no checkpoint {args.checkpoint!r}{advice}')
    if args.show or args.show_dir is not None:
        apply_visualization(cfg, args)
    if args.tta:
        require_tta(cfg)
    authors = None if sharded else read_authors_file(args.checkpoint)
    trained = (args.checkpoint, read_classes(args.checkpoint))
    check_evaluation(cfg, *trained, allow_other_classes=args.allow_other_classes)
    cfg.load_from, cfg.resume = args.checkpoint if authors is None and not sharded else None, False
    use_checkpoint_grid(cfg, args.checkpoint)
    for name in ('runner_type', 'strategy'):  # of training: a model that is evaluated is not sharded
        cfg.pop(name, None)
    if args.tta:
        apply_tta(cfg)
    settings = apply_gpu_settings(cfg, args.gpu_settings, training=False)
    runner, first_step = build_test_runner(cfg, *trained, allow_other_classes=args.allow_other_classes)
    log_gpu_settings(settings)
    if args.compile is not None:
        compile_model(unwrap(runner.model), mode=args.compile)
    steps.append(first_step)
    if sharded:
        weights = read_sharded(args.checkpoint)
        if not args.allow_partial:
            WholeWeightsHook().after_load_checkpoint(runner, weights)
        load_state_dict(runner.model, weights)
    elif authors is not None:
        load_complete_model(runner.model, authors, args.checkpoint, allow_partial=args.allow_partial)
    elif not args.allow_partial:
        runner.register_hook(WholeWeightsHook(), priority='LOWEST')
    report_hook = ReportHook(checkpoint=args.checkpoint)
    if args.report:
        runner.register_hook(report_hook)
    with tempfile.TemporaryDirectory() as folder:
        if args.out is not None:
            dump = str(Path(folder, 'predictions.pkl')) if args.out.endswith('.json') else args.out
            if cfg.get('default_scope') == 'mmdet':
                from mmdet.evaluation import DumpDetResults

                runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=dump))
            else:
                runner.test_evaluator.metrics.append(DumpResults(out_file_path=dump))
        metrics = runner.test()
        if args.out is not None and args.out.endswith('.json') and is_main_process():
            write_atomic(args.out, json.dumps(to_json(mmengine.load(dump))).encode())
    if is_main_process():
        report = {'config': args.config, 'checkpoint': args.checkpoint, 'tta': args.tta, 'metrics': metrics}
        path = Path(cfg.work_dir, 'test_metrics.json')
        write_atomic(path, json.dumps(report, indent=2, default=float).encode())
        print_log(f'metrics: {path}', 'current')
    if args.report:
        report_hook.write(runner, metrics)


def main(argv: list[str] | None = None) -> int:
    return run_command(test, parse_args(argv))
