"""The comparison of formats: which models, accuracy by the frameworks' metrics, ties, table, plot, and bad input."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from rich.console import Console

from mmitpn.apis.results import Result
from mmitpn.benchmark import format_worker, formats
from mmitpn.benchmark.accuracy import TestData, evaluate_predictor, find_headline
from mmitpn.benchmark.format_report import describe, make_table, plot_comparison, write_json
from mmitpn.benchmark.format_worker import FormatWorker
from mmitpn.benchmark.formats import FormatComparison, ModelMeasurement, ModelSource, parse_models
from mmitpn.benchmark.processor import Instructions, name_instructions
from mmitpn.commands import benchmark as command
from mmitpn.datasets import generate_shapes
from mmitpn.deploy.metadata import KEY, ExportInfo
from mmitpn.utils import rgb2id

NAMES = ('circle', 'square', 'triangle', 'star', 'ring')
STUFF = ('gradient', 'noise', 'stripes', 'checker')


# --- processor --------------------------------------------------------------------------------------------------------


def test_instructions_have_the_names_that_people_use():
    amd = name_instructions(['fpu', 'avx2', 'fma'], machine='x86_64')
    assert str(amd) == 'AVX2; not AVX-512, VNNI, AMX, bf16'
    xeon = name_instructions(['avx2', 'avx512f', 'avx512_vnni', 'amx_tile', 'amx_bf16'], machine='x86_64')
    assert str(xeon) == 'AVX2, AVX-512, VNNI, AMX, bf16'
    arm = name_instructions(['asimd', 'asimddp', 'bf16'], machine='aarch64')
    assert arm.present == ('NEON', 'dot product', 'bf16')
    assert str(name_instructions([], machine='x86_64')) == 'instructions unknown'


# --- which models -----------------------------------------------------------------------------------------------------


def test_models_are_files_names_or_configs_with_checkpoints(tmp_path):
    file, checkpoint = tmp_path / 'a.onnx', tmp_path / 'run=1' / 'a.pth'
    checkpoint.parent.mkdir()
    file.touch()
    checkpoint.touch()
    parse = ModelSource.parse
    assert parse(str(file)) == ModelSource('a.onnx', file=str(file))
    assert parse('nano-shapes') == ModelSource('nano-shapes', config='nano-shapes')
    assert parse('some/config.py=b.pth') == ModelSource('b.pth', config='some/config.py', weights='b.pth')
    assert parse(str(checkpoint), data='cfg') == ModelSource('a.pth', config='cfg', weights=str(checkpoint))


def test_models_of_one_file_name_are_called_by_their_paths(tmp_path):
    paths = [str(tmp_path / folder / 'model.onnx') for folder in 'ab']
    for path in paths:
        Path(path).parent.mkdir()
        Path(path).touch()
    assert [source.name for source in parse_models([*paths, 'nano-shapes'])] == [*paths, 'nano-shapes']
    with pytest.raises(ValueError, match=r'nano-shapes is given twice'):
        parse_models(['nano-shapes', 'nano-shapes'])


@pytest.mark.parametrize(
    ('text', 'error', 'message'),
    [
        ('gone.onnx', FileNotFoundError, r'no file gone\.onnx .*mmitpn export'),
        ('nano-shape', ValueError, r"no model 'nano-shape' .*\.onnx, \.xml.*CONFIG=CHECKPOINT.*nano-shapes"),
        ('fast-itpn-t', ValueError, r"no model 'fast-itpn-t'"),  # weights of a backbone
        (__file__, ValueError, r'no model .*test_formats\.py'),
        ('a.pt2', ValueError, r'a\.pt2 is a \.pt2 file, which is not benchmarked; export with --format onnx'),
    ],
)
def test_what_is_no_model(text, error, message):
    with pytest.raises(error, match=message):
        ModelSource.parse(text, data='config')


def test_a_checkpoint_needs_a_config(tmp_path):
    path = tmp_path / 'a.pth'
    path.touch()
    with pytest.raises(ValueError, match=r'is a checkpoint, whose config is not known: write CONFIG=.*a\.pth, or add'):
        ModelSource.parse(str(path))


# --- speed, memory, table, plot ---------------------------------------------------------------------------------------


def measurement(name: str, milliseconds: list[list[float]], **values: object) -> ModelMeasurement:
    """A model with runs at batch 1 of some milliseconds, and at batch 8 of eight times that."""
    seconds = {batch: [[batch * one / 1e3 for one in turn] for turn in milliseconds] for batch in (1, 8)}
    facts = {
        'is_eager': False,
        'runtime': 'ONNX Runtime 1',
        'precision': 'fp32',
        'outputs': ('boxes',),
        'file_bytes': 2_000_000,
        'imports_bytes': 100_000_000,
        'load_seconds': 0.1,
        'peak_bytes': {1: 150_000_000, 8: 300_000_000},
        'seconds': seconds,
    }
    return ModelMeasurement(name, **{**facts, **values})


def comparison(*models: ModelMeasurement, **values: object) -> FormatComparison:
    machine = {'processor': 'Test CPU', 'cores': 2, 'load_average': [0.1, 0.1, 0.1], 'python': '3'}
    facts = {'size': (96, 128), 'batch': 8, 'threads': 2, 'data': None, 'images': None, 'machine': machine}
    return FormatComparison(list(models), **{**facts, 'instructions': Instructions(('AVX2',), ('AMX',)), **values})


@pytest.fixture
def measured() -> FormatComparison:
    """An eager model, one twice as fast in each round, and two that are equal though the load changes."""
    metrics = {'coco/bbox_mAP': 0.711, 'coco/bbox_mAP_50': 0.9}
    return comparison(
        measurement('fast.xml', [[5, 5], [10, 10], [15, 60]], metrics={'coco/bbox_mAP': 0.7}, runtime='OpenVINO 1'),
        measurement('eager', [[10, 10], [20, 20], [30, 30]], metrics=metrics, is_eager=True, runtime='PyTorch 2'),
        measurement('same.onnx', [[10.2, 10.2], [20.4, 20.4], [30.9, 30.9]], metrics=metrics),
        data='shapes',
        images=100,
    )


def test_speeds_are_medians_over_rounds(measured):
    fast, eager, same = measured.models
    assert fast.by_round(1) == pytest.approx([0.005, 0.010, 0.0375])
    assert fast.median_seconds(1) == pytest.approx(0.010)
    assert fast.p95_seconds(1) == pytest.approx(0.04875)  # of all six runs
    assert fast.memory_bytes(8) == 200_000_000
    assert measured.reference is eager
    assert measured.speedup(fast, eager, 1) == pytest.approx(2)  # one loaded round of three changes nothing
    assert measured.speedup(same, eager, 8) == pytest.approx(1 / 1.02)
    assert fast.headline == ('box AP', pytest.approx(70.0))


def test_speeds_less_than_five_percent_apart_are_equal(measured):
    assert measured.ties(1) == measured.ties(8) == [('eager', 'same.onnx')]
    two = comparison(measurement('a', [[10.0]]), measurement('b', [[10.6]]))
    assert two.ties(1) == []


def test_a_file_of_one_batch_size_has_no_figure_for_the_other():
    fixed = measurement('fixed.onnx', [[10.0]])
    del fixed.seconds[8]
    both = comparison(fixed, measurement('any.onnx', [[20.0]]))
    assert both.ties(8) == []
    assert both.speedup(fixed, both.models[1], 8) is None
    assert both.to_dict()['models'][0]['by_batch'].keys() == {'1'}
    assert '-' in [str(cell) for cell in make_table(both).columns[5].cells]


def test_the_table(measured):
    console = Console(width=160, file=io.StringIO(), color_system=None)
    console.print(make_table(measured))
    lines = console.file.getvalue().splitlines()
    assert lines[0].strip() == '96x128, 100 images of shapes'
    table = [[one.strip() for one in line.strip('│').split('│')] for line in lines if line.startswith('│')]
    assert table[0] == ['fast.xml', 'OpenVINO 1', 'fp32', '70.0', '10.0 [48.7]', '2.00', '100.00', '2.0', '50 / 200']
    assert table[1] == ['eager', 'PyTorch 2', 'fp32', '71.1', '~20.0 [30.0]', '1.00', '~50.00', '2.0', '50 / 200']
    assert table[2][4:7] == ['~20.4 [30.9]', '0.98', '~49.02']
    text = '\n'.join(describe(measured))
    assert 'processor: Test CPU, 2 cores (AVX2; not AMX); 2 threads' in text
    assert '~ less than 5% apart, so equal, at batch 1: eager and same.onnx' in text
    assert 'busy' not in text
    measured.machine['load_average'][0] = 1.5
    assert describe(measured)[-1] == 'the machine was busy: load 1.5 on 2 cores before the measurement'


def test_json_has_every_run(measured, tmp_path):
    content = json.loads(write_json(measured, tmp_path / 'new' / 'benchmark.json').read_text())
    first = content['models'][0]
    assert first['seconds']['1'] == [[0.005, 0.005], [0.01, 0.01], [0.015, 0.06]]
    assert first['by_batch']['8']['images_per_second'] == pytest.approx(100)
    assert content['ties'] == {'1': [['eager', 'same.onnx']], '8': [['eager', 'same.onnx']]}
    assert content['machine']['present'] == ['AVX2']


def test_the_plot_shows_accuracy_over_latency(measured):
    axes = plot_comparison(measured).axes[0]
    points = [line.get_xydata().tolist()[0] for line in axes.lines if len(line.get_xydata()) == 1]
    assert points == [[pytest.approx(x), pytest.approx(y)] for x, y in ((10, 70.0), (20, 71.1), (20.4, 71.1))]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0] == 'fast.xml\nfp32, OpenVINO 1: 70.0, 10.0 ms'
    for one in measured.models:
        one.metrics = None
    bars = plot_comparison(measured).axes[0]
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([10, 20, 20.4])
    assert bars.get_yticklabels()[0].get_text() == 'fast.xml (fp32, OpenVINO 1)'


def test_the_metric_that_is_shown():
    assert find_headline({'coco/bbox_mAP': 0.5, 'coco/segm_mAP': 0.4}) == ('mask AP', 40.0)
    assert find_headline({'aAcc': 90.0, 'mIoU': 55.5}) == ('mIoU', 55.5)
    assert find_headline({'coco_panoptic/PQ': 33.0, 'coco_panoptic/PQ_th': 1.0}) == ('PQ', 33.0)
    assert find_headline({'accuracy/top1': 80.0}) == ('top-1', 80.0)
    assert find_headline({'mine/recall': 0.25}) == ('recall', 0.25)
    with pytest.raises(ValueError, match='test_evaluator of the config gives no metric'):
        find_headline({})


# --- accuracy ---------------------------------------------------------------------------------------------------------


class Oracle:
    """Predicts the ground truth of the generated images, or with ``shift`` that of the classes beside it."""

    def __init__(self, root: Path, kind: str, *, shift: int = 0) -> None:
        self.kind, self.shift = kind, shift
        self.names = NAMES + (STUFF if kind in ('panoptic', 'semantic') else ())
        self.root = root
        self.content = json.loads((root / 'coco/annotations/instances_val2017.json').read_text())
        self.calls: list[str] = []

    def predict(self, source: str, *, score: float) -> Iterator[Result]:
        assert score == 0
        self.calls.append(Path(source).stem)
        yield Result(np.asarray(Image.open(source)), Path(source).name, self.names, *self.read(Path(source)))

    def read(self, path: Path) -> tuple[dict[str, np.ndarray], None, None, None, list]:
        stem, segments, values = path.stem, [], {}
        if self.kind == 'semantic':
            labels = np.asarray(Image.open(self.root / f'ade/ADEChallengeData2016/annotations/validation/{stem}.png'))
            values = {'semantic': (labels.astype(np.int64) - 1 + self.shift) % len(self.names)}
        elif self.kind == 'panoptic':
            folder = self.root / 'coco/annotations'
            content = json.loads((folder / 'panoptic_val2017.json').read_text())
            (one,) = (one for one in content['annotations'] if Path(one['file_name']).stem == stem)
            order = {entry['id']: index for index, entry in enumerate(content['categories'])}
            ids = rgb2id(np.asarray(Image.open(folder / 'panoptic_val2017' / one['file_name'])))
            values = {'panoptic': ids}
            segments = [{'id': info['id'], 'label': order[info['category_id']]} for info in one['segments_info']]
        else:
            (image,) = (image for image in self.content['images'] if Path(image['file_name']).stem == stem)
            found = [one for one in self.content['annotations'] if one['image_id'] == image['id']]
            order = {entry['id']: index for index, entry in enumerate(self.content['categories'])}
            boxes = np.array([one['bbox'] for one in found], dtype=np.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            labels = [(order[one['category_id']] + self.shift) % len(self.names) for one in found]
            values = {'boxes': boxes, 'scores': np.ones(len(found), np.float32), 'labels': np.array(labels, np.int64)}
            if self.kind == 'masks':
                api = COCO()
                api.imgs = {image['id']: image}
                masks = [api.annToMask(one) for one in found]
                values['masks'] = np.array(masks, dtype=bool).reshape(-1, image['height'], image['width'])
        return values, None, None, None, segments


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp('shapes'), num_train=2, num_val=5, seed=2)


def read_data(shapes: Path, config: str) -> TestData:
    kind = 'semantic' if 'upernet' in config else 'panoptic' if 'panoptic' in config else 'instances'
    root = shapes / ('ade/ADEChallengeData2016' if kind == 'semantic' else 'coco')
    options = [f'test_dataloader.dataset.data_root={root}/']
    if kind == 'instances':
        options.append(f'test_evaluator.ann_file={root}/annotations/instances_val2017.json')
    return TestData.read(config, options)


@pytest.mark.parametrize(
    ('config', 'kind', 'metric', 'best'),
    [
        ('dino_fast-itpn-nano_shapes', 'boxes', 'coco/bbox_mAP', 1.0),
        ('mask-dino_fast-itpn-nano_shapes-instance', 'masks', 'coco/segm_mAP', 1.0),
        ('mask-dino_fast-itpn-nano_shapes-panoptic', 'panoptic', 'coco_panoptic/PQ', 100.0),
        ('upernet_fast-itpn-nano_shapes', 'semantic', 'mIoU', 100.0),
    ],
)
def test_the_ground_truth_has_the_best_score(shapes, config, kind, metric, best):
    pytest.importorskip('mmseg' if kind == 'semantic' else 'mmdet')
    data = read_data(shapes, config)
    seen: list[tuple[int, int]] = []
    oracle = Oracle(shapes, kind)
    data.check_classes(oracle.names, 'oracle')
    metrics = evaluate_predictor(oracle, data, progress=lambda *steps: seen.append(steps))
    assert metrics[metric] == pytest.approx(best)
    assert seen == [(index, 5) for index in range(1, 6)]
    if kind != 'panoptic':
        assert evaluate_predictor(Oracle(shapes, kind, shift=1), data)[metric] < 0.2 * best


def test_the_first_images_alone_count(shapes):
    """COCO's metric would count the objects of the others as missed."""
    pytest.importorskip('mmdet')
    data, oracle = read_data(shapes, 'dino_fast-itpn-nano_shapes'), Oracle(shapes, 'boxes')
    assert evaluate_predictor(oracle, data, images=2)['coco/bbox_mAP'] == pytest.approx(1.0)
    assert len(oracle.calls) == 2


def test_classes_of_a_classifier(tmp_path):
    pytest.importorskip('mmpretrain')
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (tmp_path / 'val' / name).mkdir(parents=True)
        for index in range(2):
            Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(
                tmp_path / f'val/{name}/{index}.png'
            )
    config = tmp_path / 'config.py'
    config.write_text(
        "default_scope = 'mmpretrain'\n"
        'model = dict()\n'
        'data_preprocessor = dict(mean=[127.0] * 3, std=[64.0] * 3)\n'
        f'test_dataloader = dict(dataset=dict(type="CustomDataset", data_root={str(tmp_path / "val")!r}, pipeline=[\n'
        '    dict(type="LoadImageFromFile"), dict(type="CenterCrop", crop_size=32), dict(type="PackInputs")]))\n'
        "test_evaluator = dict(type='Accuracy', topk=(1,))\n"
    )
    data = TestData.read(str(config))
    assert data.classes == ('cat', 'dog')
    assert data.input_size() == (32, 32)

    def predict(source: str, *, score: float) -> Iterator[Result]:  # right but for one of the four
        label = int('dog' in source) if not source.endswith('dog/1.png') else 0
        values = {'probabilities': np.eye(2, dtype=np.float32)[label]}
        yield Result(np.zeros((4, 4, 3), np.uint8), 'a', data.classes, values)

    metrics = evaluate_predictor(SimpleNamespace(predict=predict, names=data.classes), data)
    assert metrics == {'accuracy/top1': pytest.approx(75.0)}
    with pytest.raises(ValueError, match=r'a\.onnx.*another order'):
        data.check_classes(('dog', 'cat'), 'a.onnx')


# --- processes --------------------------------------------------------------------------------------------------------


def answers_to(*requests: dict[str, object]) -> list[dict[str, object]]:
    answers = io.StringIO()
    format_worker.serve(io.StringIO(''.join(json.dumps(one) + '\n' for one in requests)), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_a_worker_answers_each_request(monkeypatch):
    class FakeWorker:
        def time_network(self, batch: int, seconds: float) -> list[float]:
            return [seconds / batch]

        def load_file(self, path: str) -> None:
            raise KeyError(f'no {path}')

        def prepare(self) -> None:
            raise RuntimeError('shape\nmismatch')

        def evaluate(self, progress) -> dict[str, float]:
            progress(1, 2)
            return {'mIoU': 1.0}

    monkeypatch.setattr(format_worker, 'FormatWorker', FakeWorker)
    assert answers_to(
        {'do': 'time_network', 'batch': 2, 'seconds': 3},
        {'do': 'load_file', 'path': 'x'},
        {'do': 'prepare'},
        {'do': 'evaluate'},
    ) == [
        {'ok': [1.5]},
        {'error': 'no x', 'user': True},
        {'error': 'RuntimeError: shape mismatch', 'user': False},
        {'progress': [1, 2]},
        {'ok': {'mIoU': 1.0}},
    ]


def test_a_short_first_run_is_not_counted_and_a_long_one_not_repeated(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(format_worker.time, 'perf_counter', lambda: clock[0])
    lengths = iter([0.4, 0.2, 0.2, 0.3])

    def run() -> None:
        clock[0] += next(lengths)

    assert format_worker._repeat(run, 0.7) == pytest.approx([0.2, 0.2])
    lengths = iter([2.0])
    assert format_worker._repeat(run, 0.7) == pytest.approx([2.0])


@pytest.mark.parametrize(
    ('suffix', 'library', 'runtime'),
    [
        ('.onnx', 'onnxruntime', 'ONNX Runtime 1.'),
        pytest.param('.xml', 'openvino', 'OpenVINO 20', marks=pytest.mark.thorough),  # tests/deploy/test_openvino.py
    ],
)
def test_a_file_is_timed_by_its_session(tmp_path, suffix, library, runtime):
    onnx, library = pytest.importorskip('onnx'), pytest.importorskip(library)
    make = onnx.helper.make_node
    shapes = {'images': [None, 3, None, None], 'probabilities': [None, 3]}
    ends = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()]
    nodes = [make('GlobalAveragePool', ['images'], ['pooled']), make('Flatten', ['pooled'], ['flat'])]
    nodes.append(make('Softmax', ['flat'], ['probabilities']))
    graph = onnx.helper.make_graph(nodes, 'mean', ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 18)], ir_version=10)
    info = ExportInfo(
        'classification', ('probabilities',), ('red', 'green', 'blue'), (0.0,) * 3, (255.0,) * 3, True, (), None, None,
        1, 32, {}, precision='fp16',
    )  # fmt: skip
    model.metadata_props.add(key=KEY, value=info.to_json())
    path = tmp_path / 'mean.onnx'
    onnx.save(model, path)
    size = path.stat().st_size
    path.with_suffix('.bin').write_bytes(b'of a model in OpenVINO')
    if suffix == '.xml':
        network, path = library.convert_model(path), path.with_suffix(suffix)
        network.set_rt_info(info.to_json(), [KEY])
        library.save_model(network, path)
        size = path.stat().st_size + path.with_suffix('.bin').stat().st_size

    worker = FormatWorker()
    facts = worker.load_file(str(path), threads=1)
    assert facts['runtime'].startswith(runtime)
    assert (facts['precision'], facts['outputs'], facts['classes']) == ('fp16', ['probabilities'], list(info.classes))
    assert facts['file_bytes'] == size
    peaks = worker.prepare([64, 96], [1, 8], None)['peak_bytes']
    assert facts['imports_bytes'] <= peaks[1] <= peaks[8]
    assert all(0 < one < 1 for one in worker.time_network(8, 0.01) + worker.time_predictor(0.01))


class FakeProcess:
    """Stands for the process of a model; ``facts`` by name, and an order of what was asked."""

    facts: ClassVar[dict[str, dict[str, object]]] = {}
    asked: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, name: str, log: Path) -> None:
        del log
        self.name = name

    def ask(self, do: str, *, on_progress=None, **arguments: object) -> object:
        self.asked.append((self.name, do if do != 'time_network' else f'batch {arguments["batch"]}'))
        if do.startswith('load'):
            base = {'runtime': 'R 1', 'precision': 'fp32', 'outputs': ['boxes'], 'classes': list(NAMES), 'size': None}
            base |= {'least': 1, 'batch': None, 'file_bytes': 1, 'imports_bytes': 1, 'load_seconds': 1.0}
            return base | self.facts.get(self.name, {})
        if do == 'prepare':
            return {'peak_bytes': {str(batch): 2 for batch in arguments['batches']}}
        return [1.0]

    def close(self) -> None:
        self.asked.append((self.name, 'close'))


@pytest.fixture
def compare(monkeypatch):
    """``compare_formats`` with processes that answer at once."""
    monkeypatch.setattr(formats, 'ModelProcess', FakeProcess)
    monkeypatch.setattr(formats, 'PAUSE', 0)
    monkeypatch.setattr(FakeProcess, 'asked', [])

    def run(facts: dict[str, dict[str, object]], **settings: object) -> FormatComparison:
        monkeypatch.setattr(FakeProcess, 'facts', facts)
        return formats.compare_formats([ModelSource(name, file=name) for name in facts], **{'rounds': 2, **settings})

    return run


def test_models_take_turns(compare):
    found = compare({'a.onnx': {}, 'b.onnx': {}}, batch=4)
    turn = [(name, what) for what in ('batch 1', 'batch 4', 'time_predictor') for name in ('a.onnx', 'b.onnx')]
    assert FakeProcess.asked[4:-2] == turn * 2
    assert {what for _, what in FakeProcess.asked[-2:]} == {'close'}
    assert found.size == (512, 512)
    assert len(found.models[0].seconds[4]) == 2


def test_files_of_fixed_size_and_batch(compare):
    found = compare({'a.onnx': {'size': [96, 128], 'batch': 1}, 'b.onnx': {}})
    assert found.size == (96, 128)
    assert [sorted(one.seconds) for one in found.models] == [[1], [1, 8]]


@pytest.mark.parametrize(
    ('facts', 'settings', 'message'),
    [
        ({'a': {'size': [96, 96]}, 'b': {'size': [64, 64]}}, {}, r'a is 96x96, but b takes 64x64 only'),
        ({'a': {'size': [96, 96]}}, {'size': (64, 64)}, r'--size is 64x64, but a takes 96x96 only'),
        ({'a': {'least': 128}}, {'size': (96, 160)}, r'--size is 96x160, but a file takes sides from 128 pixels only'),
        ({'a': {'batch': 4}}, {}, r'a takes batches of 4 images only; write --batch 4'),
        ({'a': {'outputs': ['features']}, 'b': {}}, {}, r'a gives features and b boxes; .*--features'),
        (
            {'a': {'outputs': ['features']}},
            {'data': True},
            r'a gives features, which have no accuracy; leave --data out',
        ),
        ({'a': {}, 'b': {'outputs': ['semantic']}}, {'data': True}, r'a predicts boxes, but b semantic; .*one task'),
        ({'a': {}, 'b': {'classes': ['cat']}}, {'data': True}, r'b was trained on .*cat'),
    ],
)
def test_models_that_do_not_belong_together(compare, shapes, monkeypatch, facts, settings, message):
    if 'data' in settings:
        pytest.importorskip('mmdet')
        data = read_data(shapes, 'dino_fast-itpn-nano_shapes')
        monkeypatch.setattr(TestData, 'read', lambda *_: data)
        settings = {'data': 'dino_fast-itpn-nano_shapes'}
    with pytest.raises(ValueError, match=message):
        compare(facts, **settings)
    assert ('a', 'close') in FakeProcess.asked


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone.xml'], 'error: no file gone.xml'),
        (['nano-shapes', '--data', 'no-such-config'], 'no-such-config'),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message, capsys, tmp_path):
    assert command.main([*arguments, '--out', str(tmp_path / 'out')]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--images', '3'], '--images and --cfg-options belong to --data CONFIG'),
        (['--batch', '0'], "'0' is not an integer of at least 1"),
        (['--seconds', 'x'], "'x' seconds; give a number above 0"),
        (['--data', 'a', '--cfg-options', 'b'], "--cfg-options 'b' must be KEY=VALUE"),
    ],
)
def test_options_that_are_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command.parse_args(['nano-shapes', *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_an_eager_model_from_start_to_end(shapes, tmp_path, capsys):
    pytest.importorskip('mmdet')
    broken = tmp_path / 'broken.onnx'
    broken.write_bytes(b'no network')
    assert command.main([str(broken), 'nano-shapes', '--out', str(tmp_path / 'out')]) == 2
    assert 'broken.onnx' in capsys.readouterr().err.splitlines()[-1]

    config = 'dino_fast-itpn-nano_shapes'
    options = [f'test_dataloader.dataset.data_root={shapes}/coco/']
    options.append(f'test_evaluator.ann_file={shapes}/coco/annotations/instances_val2017.json')
    short = ['--rounds', '2', '--seconds', '0.05', '--images', '3', '--batch', '2']
    arguments = ['nano-shapes', '--data', config, '--cfg-options', *options, *short, '--out', str(tmp_path / 'out')]
    assert command.main(arguments) == 0
    content = json.loads((tmp_path / 'out/benchmark.json').read_text())
    (model,) = content['models']
    assert content['size'] == [128, 128]
    assert model['metrics']['coco/bbox_mAP'] > 0.4
    assert model['by_batch']['1']['median_ms'] > 0
    assert 10e6 < model['by_batch']['1']['memory_bytes'] <= model['by_batch']['2']['memory_bytes']
    assert model['predictor_median_ms'] > 0
    with Image.open(tmp_path / 'out/benchmark.png') as image:
        assert len(np.unique(np.asarray(image.convert('L')))) > 50
    assert 'box AP' in capsys.readouterr().out
