"""What setup.py packs for mim, and what it declares: each extra alone in an interpreter that has nothing else."""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mmitpn

ROOT = Path(__file__).parents[1]
# The distributions of what is imported under another name; the fork and the official packages import alike.
DISTRIBUTIONS = {
    'PIL': ['pillow'],
    'cv2': ['onedl-mmcv', 'mmcv-lite'],  # which require it, in one of its four distributions
    'mmcv': ['onedl-mmcv', 'mmcv-lite'],
    'mmdet': ['onedl-mmdetection', 'mmdet'],
    'mmengine': ['onedl-mmengine', 'mmengine'],
    'mmpretrain': ['onedl-mmpretrain', 'mmpretrain'],
    'mmseg': ['onedl-mmsegmentation', 'mmsegmentation'],
    'triton': ['torch'],  # comes with it where there is a build; tried and reported elsewhere
    'yaml': ['pyyaml'],
}
# The same module by several distributions: whichever is installed serves.
ALIASES = {
    'mmcv-lite': ['mmcv'],
    'opencv-python': ['opencv-python-headless', 'opencv-contrib-python', 'opencv-contrib-python-headless'],
}


@pytest.fixture(scope='module')
def packing() -> ModuleType:
    spec = importlib.util.spec_from_file_location('mmitpn_setup', ROOT / 'setup.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / 'repository'
    (root / 'configs' / 'dino' / '__pycache__').mkdir(parents=True)
    (root / 'configs' / 'dino' / 'a.py').write_text('x = 1\n')
    (root / 'configs' / 'dino' / '__pycache__' / 'a.pyc').write_text('')
    (root / 'tools').mkdir()
    (root / 'tools' / 'train.py').write_text('print(1)\n')
    (root / 'model-index.yml').write_text('Import: []\n')
    return root


def test_an_editable_installation_follows_the_repository(packing: ModuleType, repository: Path) -> None:
    target = repository / 'mmitpn' / '.mim'
    for _ in range(2):  # a second installation finds the first one's links
        packing.pack_for_mim(repository, target, link=True)
    assert {path.name for path in target.iterdir()} == {'configs', 'tools', 'model-index.yml'}
    assert (target / 'configs').is_symlink()
    (repository / 'configs' / 'dino' / 'b.py').write_text('y = 2\n')
    assert (target / 'configs' / 'dino' / 'b.py').read_text() == 'y = 2\n'


def test_a_wheel_carries_copies(packing: ModuleType, repository: Path, tmp_path: Path) -> None:
    target = tmp_path / 'build' / 'mmitpn' / '.mim'
    packing.pack_for_mim(repository, target, link=False)
    (repository / 'configs' / 'dino' / 'a.py').unlink()
    packing.pack_for_mim(repository, target, link=False)
    assert not (target / 'configs').is_symlink()
    assert not (target / 'configs' / 'dino' / 'a.py').exists()
    assert not list(target.rglob('__pycache__'))
    assert (target / 'tools' / 'train.py').read_text() == 'print(1)\n'


def test_replacing_links_by_copies_leaves_the_repository_alone(packing: ModuleType, repository: Path) -> None:
    target = repository / 'mmitpn' / '.mim'
    packing.pack_for_mim(repository, target, link=True)
    packing.pack_for_mim(repository, target, link=False)
    assert not (target / 'configs').is_symlink()
    assert (repository / 'configs' / 'dino' / 'a.py').read_text() == 'x = 1\n'


def test_copies_where_links_are_refused(packing: ModuleType, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError('no links here')

    monkeypatch.setattr(Path, 'symlink_to', refuse)
    target = repository / 'mmitpn' / '.mim'
    made = packing.pack_for_mim(repository, target, link=True)
    assert len(made) == 3
    assert not (target / 'configs').is_symlink()
    assert (target / 'configs' / 'dino' / 'a.py').read_text() == 'x = 1\n'


def test_what_is_absent_is_left_out(packing: ModuleType, repository: Path) -> None:
    (repository / 'model-index.yml').unlink()
    made = packing.pack_for_mim(repository, repository / 'mmitpn' / '.mim', link=True)
    assert [path.name for path in made] == ['configs', 'tools']


def test_the_version_is_the_package_s(packing: ModuleType) -> None:
    assert packing.read_version() == mmitpn.__version__


def test_only_setuptools_is_imported() -> None:
    code = (ROOT / 'setup.py').read_text()
    imported = set(re.findall(r'^(?:from|import) (\w+)', code, flags=re.MULTILINE))
    assert imported - set(sys.stdlib_module_names) == {'setuptools'}


def test_the_index_names_files_that_are_there() -> None:
    named = re.findall(r'^\s*- (\S+)$', (ROOT / 'model-index.yml').read_text(), flags=re.MULTILINE)
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.slow
def test_a_built_wheel_has_configs_and_types(tmp_path: Path) -> None:
    code = 'import sys; from setuptools import build_meta as b; print(b.build_wheel(sys.argv[1]))'
    clone = tmp_path / 'clone'
    clone.mkdir()
    for name in (
        'setup.py',
        'pyproject.toml',
        'LICENSE',
        'MANIFEST.in',
        'model-index.yml',
        'mmitpn',
        'configs',
        'requirements',
        'tools',
    ):
        source = ROOT / name
        copy = ['cp', '-R', '--', str(source), str(clone / name)]
        subprocess.run(copy, check=True)
    subprocess.run(['rm', '-rf', str(clone / 'mmitpn' / '.mim')], check=True)
    done = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path)], cwd=clone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    from zipfile import ZipFile

    (wheel,) = tmp_path.glob('*.whl')
    names = ZipFile(wheel).namelist()
    assert 'mmitpn/py.typed' in names
    assert 'mmitpn/.mim/model-index.yml' in names
    assert any(name.startswith('mmitpn/.mim/configs/') and name.endswith('.py') for name in names)
    assert 'mmitpn/.mim/tools/train.py' in names
    assert 'mmitpn/.mim/requirements/onedl.txt' in names  # the pins that the doctor names
    assert not any(name.startswith(('tests/', 'tools/', 'configs/')) for name in names)


def declared() -> dict[str, list[Requirement]]:
    """The requirements of setup.py by extra, '' for those of every installation."""
    arguments = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, 'setup', arguments.update)
        patch.chdir(ROOT)
        runpy.run_path(str(ROOT / 'setup.py'), run_name='__main__')
    lists = {'': arguments['install_requires'], **arguments['extras_require']}
    return {extra: [Requirement(text) for text in texts] for extra, texts in lists.items()}


def names(requirements: Iterable[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def imported(folder: Path) -> dict[str, set[str]]:
    """The modules from outside of the standard library that the files of a folder import, with these files."""
    found: dict[str, set[str]] = {}
    for path in folder.rglob('*.py'):
        if '.mim' in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for module in modules:
                top = module.split('.')[0]
                if top != 'mmitpn' and top not in sys.stdlib_module_names:
                    found.setdefault(top, set()).add(path.relative_to(ROOT).as_posix())
    return found


def undeclared(modules: dict[str, set[str]], lists: dict[str, list[Requirement]]) -> dict[str, list[str]]:
    """What is imported but in no list: neither of every installation, nor of an extra."""
    known = names(requirement for extra, one in lists.items() if extra not in ('tests', 'docs') for requirement in one)
    missing = {}
    for module, files in modules.items():
        wanted = DISTRIBUTIONS.get(module, [canonicalize_name(module)])
        if not known & set(wanted):
            missing[module] = sorted(files)
    return missing


@pytest.mark.parametrize('folder', ['mmitpn', 'tools'])
def test_every_import_is_declared(folder: str) -> None:
    modules = imported(ROOT / folder)
    assert 'torch' in modules  # the files were read
    sources = {module: files for module, files in modules.items() if not _is_beside(module, files)}
    lists = declared()
    assert undeclared(sources, lists) == {}
    del lists['']
    assert {'torch', 'numpy'} <= undeclared(sources, lists).keys()  # it can fail


def _is_beside(module: str, files: set[str]) -> bool:
    """Whether a module is a file of the folder that imports it: tools import each other."""
    return all((ROOT / file).with_name(f'{module}.py').is_file() for file in files)


@pytest.mark.parametrize('task', ['det', 'seg', 'pretrain'])
def test_the_two_stacks_declare_the_same(task: str) -> None:
    """The official packages do not declare all that they import: their extras may have more than those of the fork."""
    lists = declared()
    fork, official = (names(lists[extra]) for extra in (task, f'openmmlab-{task}'))
    ours = {name for name in fork if not name.startswith('onedl-')}
    assert ours <= official
    assert {name.removeprefix('onedl-') for name in fork if name.startswith('onedl-')} <= {
        {'mmdet': 'mmdetection', 'mmcv-lite': 'mmcv'}.get(name, name) for name in official
    }


def test_install_sh_pins_what_is_declared() -> None:
    """tools/install.sh installs from lists without looking at requirements: nothing declared may be absent there."""
    lists = declared()
    pinned = {
        path.stem: {
            canonicalize_name(found)
            for found in re.findall(r'^([\w.-]+)==', path.read_text(encoding='utf-8'), flags=re.MULTILINE)
        }
        for path in (ROOT / 'requirements').glob('*.txt')
    }
    for stack, prefix in (('onedl', ''), ('openmmlab', 'openmmlab-')):
        files = ('build', 'torch', f'mmcv-{stack}', 'common', stack, 'tests', 'docs')
        installed = set().union(*(pinned[file] for file in files))
        for extra in ('', 'tests', 'docs', *(prefix + task for task in FRAMEWORK)):
            assert names(lists[extra]) - installed == set(), (stack, extra)


def test_the_site_changes_no_version() -> None:
    """What builds the documents is installed beside each stack: it pins nothing that another list pins."""
    lists = {path.stem: path.read_text(encoding='utf-8') for path in (ROOT / 'requirements').glob('*.txt')}
    pinned = {
        name: {canonicalize_name(found) for found in re.findall(r'^([\w.-]+)==', text, flags=re.MULTILINE)}
        for name, text in lists.items()
    }
    site = pinned.pop('docs')
    assert 'mkdocs-material' in site
    assert {name: site & others for name, others in pinned.items() if site & others} == {}


# --- each extra alone ------------------------------------------------------------------------------------------------
def find(name: str):
    """The installed distribution of a name or of one of its aliases, None where there is none."""
    for one in [name, *ALIASES.get(name, [])]:
        try:
            return distribution(one)
        except PackageNotFoundError:
            continue
    return None


def closure(requirements: Iterable[Requirement]) -> tuple[dict[str, object], set[str]]:
    """The installed distributions that requirements bring with them, by name; and the names of those not installed."""
    found: dict[str, object] = {}
    absent = set()
    todo = [(requirement, frozenset(requirement.extras)) for requirement in requirements]
    done = set()
    while todo:
        requirement, extras = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, extras) in done:
            continue
        done.add((name, extras))
        one = find(name)
        if one is None:
            absent.add(name)
            continue
        found[name] = one
        for text in one.requires or []:
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({'extra': extra}) for extra in ('', *extras)):
                todo.append((inner, frozenset(inner.extras)))
    return found, absent


def link(found: dict[str, object], folder: Path) -> Path:
    """A site-packages of links to the files of some distributions, and to this project's package."""
    folder.mkdir()
    for one in found.values():
        for top in {file.parts[0] for file in one.files or []} - {'..', '__pycache__'}:
            source, place = Path(one.locate_file(top)), folder / top
            if source.exists() and source.suffix != '.pth' and not place.exists():
                place.symlink_to(source, target_is_directory=source.is_dir())
    (folder / 'mmitpn').symlink_to(ROOT / 'mmitpn', target_is_directory=True)
    return folder


EXPORTED = """
import {runtime}

sys.modules.update(dict.fromkeys(('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')))
import mmitpn
from mmitpn.__main__ import main
from mmitpn.apis.results import import_supervision

import_supervision()
try:
    mmitpn.Predictor('missing.{suffix}')
except FileNotFoundError:
    sys.exit(main(['predict', f'{{root}}/demo', '--model', 'missing.{suffix}']) != 2)
raise SystemExit(1)
"""
# What an extra promises. Each is run with the folder of the links, this project and a folder for files.
START = """
import runpy, sys
site, root, out = sys.argv[1:]
sys.path.append(site)
import logging, warnings
from pathlib import Path

def run(tool, *arguments):
    status = runpy.run_path(f'{root}/tools/data/{tool}')['main'](list(arguments))
    assert status == 0, status

def config(name, **changes):
    from mmengine.config import Config
    cfg = Config.fromfile(f'{root}/configs/{name}')
    cfg.merge_from_dict(changes)
    return cfg

def backbone():
    import torch
    from mmitpn import FastITPN, ITPN, ITPNPyramid
    maps = ITPNPyramid(in_channels=(48, 96, 192), out_channels=32)(FastITPN('nano')(torch.rand(1, 3, 64, 64)))
    assert [level.shape[-1] for level in maps[:4]] == [16, 8, 4, 2], [level.shape for level in maps]
"""

PROMISES = {
    '': """
import mmitpn
from mmitpn import doctor, installation
print(mmitpn.__version__)
""",
    'light': """
import torch, torchvision, time
start = time.process_time()
import mmitpn
from mmitpn import FastITPN, ITPN, ITPNPyramid
from mmitpn.checkpoint import load_pretrained
assert time.process_time() - start < 3
backbone()
file = f'{root}/configs/quickstart/fast-itpn-nano_shapes.pth'
network, pyramid = FastITPN.from_pretrained(file), ITPNPyramid.from_pretrained(file)
other = FastITPN('nano', init_cfg=dict(type='Pretrained', checkpoint=file))
other.init_weights()
assert load_pretrained(FastITPN('nano'), file).loaded
image = torch.rand(1, 3, 130, 97)
assert all(map(torch.equal, network(image), other.eval()(image)))
assert [tuple(level.shape) for level in pyramid(network(image))][0] == (1, 128, 33, 25)
tracker = FastITPN.from_pretrained(file, in_channels=6)
assert [tuple(x.shape) for x in tracker.forward_tokens([image.repeat(1, 2, 1, 1)] * 2)] == [(1, 192, 9, 7)] * 2
assert next(ITPN('base', img_size=32).parameters()).requires_grad
try:
    FastITPN('nano', init_cfg=dict(type='Constant', val=0.0)).init_weights()
except ImportError as error:
    assert 'applied by mmengine, which is not installed' in str(error)
else:
    raise SystemExit('an entry of mmengine was passed over')
assert not {'mmengine', 'mmcv'} & set(sys.modules)
""",
    'det': """
backbone()
import torch
from mmengine.registry import init_default_scope
from mmitpn.datasets import generate_shapes
from mmitpn.evaluation import PanopticMetric
init_default_scope('mmdet')
import mmdet.models
from mmdet.registry import MODELS
for name in ('dino_fast-itpn-nano_shapes', 'mask-dino_fast-itpn-nano_shapes-panoptic'):
    model = MODELS.build(config(f'quickstart/{name}.py').model)
    print(type(model).__module__, type(model).__name__)
coco = generate_shapes(out, num_train=2, num_val=2, size=(64, 96)) / 'coco'
run('check_coco.py', f'{coco}/annotations/instances_train2017.json', '--images', f'{coco}/train2017')
""",
    'seg': """
backbone()
from mmengine.registry import init_default_scope
from mmitpn.datasets import generate_shapes
init_default_scope('mmseg')
import mmseg.models
from mmseg.registry import MODELS
cfg = config('quickstart/upernet_fast-itpn-nano_shapes.py')
model = MODELS.build(cfg.model)
print(type(model).__name__, type(model.decode_head).__name__)
ade = generate_shapes(out, num_train=2, num_val=2, size=(64, 96)) / 'ade' / 'ADEChallengeData2016'
options = [f'{split}_dataloader.dataset.data_root={ade}' for split in ('train', 'val')]
run('check_semantic.py', f'{root}/configs/quickstart/upernet_fast-itpn-nano_shapes.py', '--cfg-options', *options)
""",
    'pretrain': """
backbone()
from mmengine.registry import init_default_scope
init_default_scope('mmpretrain')
import mmpretrain.models
from mmpretrain.registry import MODELS
from mmitpn import ITPNPretrain, MeanPoolClsHead
model = MODELS.build(config('quickstart/pretrain_fast-itpn-nano_shapes-mfm.py').model)
assert type(model) is ITPNPretrain
changes = {'model.backbone.arch': 'nano', 'model.head.in_channels': 192}
model = MODELS.build(config('_base_/models/classifier_fast-itpn.py', **changes).model)
assert type(model.head) is MeanPoolClsHead
""",
    'onnx': EXPORTED.format(runtime='onnxruntime', suffix='onnx'),
    'openvino': EXPORTED.format(runtime='openvino', suffix='xml'),
}

FRAMEWORK = {'det': 'mmdetection', 'seg': 'mmsegmentation', 'pretrain': 'mmpretrain'}


def extras() -> list:
    """The lists to try: those of the installed stack."""
    cases = [pytest.param('', id='base')]
    for prefix in ('', 'openmmlab-'):
        for task, framework in FRAMEWORK.items():
            name = f'onedl-{framework}' if not prefix else {'mmdetection': 'mmdet'}.get(framework, framework)
            absent = find(name) is None
            marks = pytest.mark.skipif(absent, reason=f'{name} is not installed')
            cases.append(pytest.param(prefix + task, id=prefix + task, marks=marks))
    for runtime, name in (('onnx', 'onnxruntime'), ('openvino', 'openvino')):
        marks = pytest.mark.skipif(find(name) is None, reason=f'{name} is not installed')
        cases.append(pytest.param(runtime, id=runtime, marks=marks))
    return cases


def promise(extra: str, folder: Path, requirements: list[Requirement]) -> subprocess.CompletedProcess:
    """Run what an extra promises with the closure of some requirements."""
    found, absent = closure(requirements)
    site = link(found, folder / 'site')
    code = START + PROMISES[extra.removeprefix('openmmlab-')]
    command = [sys.executable, '-I', '-S', '-c', code, str(site), str(ROOT), str(folder / 'out')]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=folder)
    done.stderr += f'\nof {len(found)} distributions; required, but not installed: {sorted(absent)}'
    return done


@pytest.mark.slow
@pytest.mark.parametrize('extra', extras())
def test_an_extra_alone_gives_what_it_promises(extra: str, tmp_path: Path) -> None:
    lists = declared()
    done = promise(extra, tmp_path, lists[''] + (lists[extra] if extra else []))
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_backbone_pyramid_and_weights_need_torch_and_torchvision_only(tmp_path: Path) -> None:
    done = promise('light', tmp_path, [Requirement('torch'), Requirement('torchvision')])
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_a_forgotten_requirement_is_found(tmp_path: Path) -> None:
    """The interpreter of these tests has what is declared and nothing else."""
    lists = declared()
    without = [requirement for requirement in lists[''] if requirement.name != 'psutil']
    extra = 'det' if find('onedl-mmdetection') else 'openmmlab-det'
    if find('onedl-mmdetection') is None and find('mmdet') is None:
        pytest.skip('no mmdet is installed')
    done = promise(extra, tmp_path, without + lists[extra])
    assert done.returncode == 1
    assert "No module named 'psutil'" in done.stderr
