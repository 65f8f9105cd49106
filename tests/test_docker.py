"""The images' files: what they name is there, and their entry starts the right tools."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / 'docker'
FILES = ['Dockerfile', 'Dockerfile.cpu']


@pytest.fixture(scope='module')
def reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location('dockerfile', DOCKER / 'dockerfile.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['dockerfile'] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    yield module
    del sys.modules['dockerfile']


@pytest.fixture(scope='module')
def context(reader) -> list[str]:
    return list(reader.files_of_context(ROOT, reader.read_ignored(ROOT / '.dockerignore')))


@pytest.fixture
def entry(tmp_path):
    """Runs the entry with a python that says what it was called with."""
    fake = tmp_path / 'python'
    fake.write_text('#!/bin/sh\necho "python $*"\n')
    fake.chmod(0o755)

    def run(*arguments: str, folder: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ['bash', str(DOCKER / 'entrypoint.sh'), *arguments],
            env={'PATH': f'{tmp_path}:{os.environ["PATH"]}', **environment},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


# --- the Dockerfiles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', FILES)
def test_every_file_named_is_there(reader, context, name):
    steps = reader.read_dockerfile(DOCKER / name)
    copies = [reader.copied(step.words, context) for step in steps if step.name == 'COPY']  # raises for what is not
    assert len(copies) == 3
    for step in steps:
        for script in re.findall(r'(?:tools|docker)/\S+\.sh', step.value):
            assert script.rstrip('"]') in context
    (entrypoint,) = [step.words for step in steps if step.name == 'ENTRYPOINT']
    assert (ROOT / Path(entrypoint[-1]).relative_to('/mmitpn')).is_file()


@pytest.mark.parametrize('name', FILES)
def test_the_last_user_is_not_root(reader, name):
    steps = reader.read_dockerfile(DOCKER / name)
    assert [step.value for step in steps if step.name == 'USER'] == ['${UID}:${GID}']
    defaults = dict(pair for step in steps if step.name == 'ARG' for pair in step.pairs)
    assert int(defaults['UID']) > 0


def test_both_files_do_the_same_after_the_base(reader):
    """The file for GPUs may compile mmcv; without its own build arguments it does what the other does."""
    own = {'BASE', 'PACKAGES', 'INSTALL', 'TORCH_CUDA_ARCH_LIST', 'FORCE_CUDA', 'MAX_JOBS'}
    steps = {}
    for name in FILES:
        read = [(step.name, step.value) for step in reader.read_dockerfile(DOCKER / name)]
        read = [(kind, value) for kind, value in read if kind != 'ARG' or value.split('=')[0] not in own]
        steps[name] = [(kind, re.sub(r' "?\$(PACKAGES|INSTALL)\b', '', value)) for kind, value in read]
    assert steps['Dockerfile'][0] == ('FROM', '${BASE}')
    assert re.fullmatch(r'debian:\S+', dict(steps['Dockerfile.cpu'][:1])['FROM'])
    assert steps['Dockerfile'][1:] == steps['Dockerfile.cpu'][1:]
    defaults = dict(
        pair for step in reader.read_dockerfile(DOCKER / 'Dockerfile') if step.name == 'ARG' for pair in step.pairs
    )
    assert (defaults['BASE'], defaults['PACKAGES'], defaults['INSTALL']) == (steps['Dockerfile.cpu'][0][1], '', '')


def test_the_base_to_compile_with_has_the_cuda_of_torch():
    torch = (ROOT / 'requirements/torch-cuda12.txt').read_text()
    assert '2.10.0' in torch
    assert re.search(r'BASE=nvidia/cuda:12\.\d+\.\d+-devel-ubuntu\d+\.\d+', (DOCKER / 'Dockerfile').read_text())


def test_nothing_names_a_package_index():
    files = [ROOT / 'tools/install.sh', ROOT / 'docs/docker.md', *(ROOT / 'requirements').glob('*.txt')]
    for path in [*files, *(path for path in DOCKER.iterdir() if path.is_file())]:
        assert 'http' not in path.read_text(), path


def test_the_context_is_the_project_without_what_lies_about(context):
    assert {'setup.py', 'tools/install.sh', 'configs/quickstart/fast-itpn-nano_shapes.pth', 'README.md'} <= set(context)
    assert not [name for name in context if name.startswith(('.git/', 'data/', 'work_dirs/', '.venv', 'mmitpn/.mim'))]
    assert not [name for name in context if '__pycache__' in name]


@pytest.mark.parametrize(
    ('name', 'out'),
    [
        ('data/coco/a.jpg', True),
        ('mmitpn/config_check/config.py', False),
        ('a/b/__pycache__/x.pyc', True),
        ('.venv-openmmlab/bin/python', True),
        ('checkpoints/big.pth', True),
        ('configs/quickstart/fast-itpn-nano_shapes.pth', False),
        ('docs/first_run.log', False),
    ],
)
def test_what_the_ignore_file_leaves_out(reader, name, out):
    assert reader.is_ignored(name, reader.read_ignored(ROOT / '.dockerignore')) is out


def test_a_step_that_the_reader_does_not_know_is_an_error(reader, tmp_path):
    file = tmp_path / 'Dockerfile'
    file.write_text('FROM debian\n# a word\nRUN a \\\n  # inside\n  && b\nADD x y\n')
    with pytest.raises(ValueError, match=r"Dockerfile:6: 'ADD x y'"):
        reader.read_dockerfile(file)
    file.write_text('FROM debian\n# a word\nRUN a \\\n  # inside\n  && b\n')
    assert [(step.line, step.value.split()) for step in reader.read_dockerfile(file)] == [
        (1, ['debian']),
        (3, ['a', '&&', 'b']),
    ]


def test_a_file_that_is_not_there_is_named(reader, context):
    with pytest.raises(FileNotFoundError, match='COPY data: not in the context'):
        reader.copied(['data', 'data'], context)


# --- the entry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'called'),
    [
        (['train', 'a.py', '--amp'], f'{ROOT}/tools/train.py a.py --amp'),
        (['test', 'a.py', 'b.pth', '--show-dir', 'c'], f'{ROOT}/tools/test.py a.py b.pth --show-dir c'),
        (['quickstart', '--task', 'seg'], f'{ROOT}/tools/quickstart.py --task seg'),
        (['doctor', '--config', 'a.py'], '-m mmitpn.doctor --config a.py'),
        (['python', 'tools/x.py'], 'tools/x.py'),
    ],
)
def test_commands(entry, arguments, called):
    done = entry(*arguments)
    assert (done.returncode, done.stdout) == (0, f'python {called}\n'), done.stderr


@pytest.mark.parametrize(
    ('arguments', 'tool'),
    [(['train', 'a.py', '2', '--amp'], 'train.py a.py'), (['test', 'a.py', 'b.pth', '2'], 'test.py a.py b.pth')],
)
def test_several_processes(entry, arguments, tool):
    done = entry(*arguments, NNODES='2', NODE_RANK='1', MASTER_ADDR='first', PORT='12345')
    assert done.returncode == 0, done.stderr
    for part in ('--nnodes=2 --node-rank=1 ', '--master-addr=first --master-port=12345', '--nproc-per-node=2', tool):
        assert part in done.stdout


def test_any_other_program_and_help(entry):
    assert entry('sh', '-c', 'echo $0 here', 'x').stdout == 'x here\n'
    for words in ([], ['help'], ['--help']):
        done = entry(*words)
        assert done.returncode == 0
        assert all(
            name in done.stdout for name in ('train CONFIG', 'test CONFIG', 'quickstart', 'doctor', 'MASTER_ADDR')
        )


@pytest.mark.parametrize(
    ('arguments', 'environment', 'says'),
    [
        (['train'], {}, 'train needs CONFIG'),
        (['train', '--amp'], {}, 'train needs CONFIG'),
        (['test', 'a.py'], {}, 'test needs CONFIG CHECKPOINT'),
        (['train', 'a.py'], {'NNODES': '2'}, 'NNODES=2 needs GPUS'),
        (['train', 'a.py', '0'], {}, 'GPUS is the number of processes'),
        (['trian', 'a.py'], {}, "no command 'trian'"),
    ],
)
def test_bad_usage(entry, arguments, environment, says):
    done = entry(*arguments, **environment)
    assert done.returncode == 2
    assert done.stdout == ''
    (line,) = done.stderr.splitlines()
    assert says in line


# --- two nodes ------------------------------------------------------------------------------------------------------


def test_two_ranks_meet_at_one_address(reader, entry):
    services = yaml.safe_load((DOCKER / 'compose.yaml').read_text())['services']
    for profile in ('gpu', 'cpu'):
        nodes = {name: one for name, one in services.items() if one['profiles'] == [profile]}
        assert [one['environment']['NODE_RANK'] for one in nodes.values()] == [0, 1]
        (address,) = {one['environment']['MASTER_ADDR'] for one in nodes.values()}
        first = next(iter(nodes))
        names = [first, *(nodes[first].get('networks') or {}).get('default', {}).get('aliases', [])]
        assert address in names
        for one in nodes.values():
            given = {'CONFIG': 'c.py', 'OPTIONS': '--amp --resume'}
            environment = {key: reader.expand(str(value), given) for key, value in one['environment'].items()}
            done = entry(*(word.replace('$$', '$') for word in one['command']), folder=ROOT, **environment)
            assert f'--node-rank={environment["NODE_RANK"]} ' in done.stdout
            assert done.stdout.endswith('tools/train.py c.py --launcher pytorch --amp --resume\n')
            assert one['shm_size']
            assert {volume.rsplit(':', 1)[1] for volume in one['volumes']} == {
                '/mmitpn',
                '/mmitpn/data',
                '/mmitpn/work_dirs',
            }
            assert (DOCKER / one['build']['context'] / one['build']['dockerfile']).is_file()
            assert ('deploy' in one) == (profile == 'gpu')
        assert (ROOT / reader.expand(nodes[first]['environment']['CONFIG'], {})).is_file()


def test_each_gpu_node_has_its_own_gpu(reader):
    services = yaml.safe_load((DOCKER / 'compose.yaml').read_text())['services']
    gpus = [
        device['device_ids']
        for one in services.values()
        if 'deploy' in one
        for device in one['deploy']['resources']['reservations']['devices']
    ]
    assert gpus == [['0'], ['1']]


def test_the_check_without_docker_names_what_it_cannot_do(tmp_path):
    file = tmp_path / 'Dockerfile'
    file.write_text('FROM alpine:3\n')
    command = [sys.executable, str(DOCKER / 'check_in_chroot.py'), str(tmp_path / 'image'), '--dockerfile', str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert 'needs root' in line or "starts from 'alpine:3'" in line
    assert not (tmp_path / 'image').exists()
