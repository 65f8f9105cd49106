"""The files of docker/: what they name exists, both Dockerfiles agree, and the entrypoint starts the right tools."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / 'docker'
FILES = ['Dockerfile', 'Dockerfile.cpu']
# What only the file for GPUs has, which may compile mmcv.
GPU_ARGUMENTS = {'BASE', 'PACKAGES', 'INSTALL', 'TORCH_CUDA_ARCH_LIST', 'FORCE_CUDA', 'MAX_JOBS'}


def read_steps(name: str) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile with their values, without comments, continued lines joined."""
    lines = [line for line in (DOCKER / name).read_text().splitlines() if not line.lstrip().startswith('#')]
    text = re.sub(r'\\\n\s*', '', '\n'.join(lines))
    return [tuple(line.split(' ', 1)) for line in text.splitlines() if line]


def values(name: str, kind: str) -> list[str]:
    """Values of all instructions of a kind."""
    return [value for step, value in read_steps(name) if step == kind]


def defaults(name: str) -> dict[str, str]:
    """Names and default values of the build arguments."""
    return {key: value.strip('"') for key, _, value in (arg.partition('=') for arg in values(name, 'ARG'))}


def expand(text: str, environment: dict[str, str]) -> str:
    """``${NAME:-default}`` of a compose file."""
    return re.sub(r'\$\{(\w+):-([^}]*)\}', lambda found: environment.get(found[1]) or found[2], text)


@pytest.fixture
def entry(tmp_path):
    """Run the entrypoint with a python that prints its arguments."""
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
def test_every_file_named_exists(name):
    copies = [value.split() for value in values(name, 'COPY')]
    assert copies == [['requirements', 'requirements'], ['tools/install.sh', 'tools/venv.sh', 'tools/'], ['.', '.']]
    scripts = {script for value in values(name, 'RUN') for script in re.findall(r'(?:tools|docker)/[\w/]+\.sh', value)}
    assert scripts == {'tools/install.sh', 'tools/venv.sh'}
    (entrypoint,) = map(json.loads, values(name, 'ENTRYPOINT'))
    for path in ('requirements', *scripts, Path(entrypoint[-1]).relative_to('/mmitpn')):
        assert (ROOT / path).exists()


@pytest.mark.parametrize('name', FILES)
def test_the_last_user_is_not_root(name):
    assert values(name, 'USER') == ['${UID}:${GID}']
    assert int(defaults(name)['UID']) > 0


def test_both_files_do_the_same_after_the_base():
    """Without its own build arguments the file for GPUs does what the other does."""
    gpu, cpu = map(read_steps, FILES)
    gpu = [(kind, re.sub(r' "?\$(PACKAGES|INSTALL)\b', '', value)) for kind, value in gpu]
    gpu = [(kind, value) for kind, value in gpu if kind != 'ARG' or value.split('=')[0] not in GPU_ARGUMENTS]
    assert gpu[0] == ('FROM', '${BASE}')
    assert cpu[0][0] == 'FROM'
    assert re.fullmatch(r'debian:\S+', cpu[0][1])
    assert gpu[1:] == cpu[1:]
    given = defaults('Dockerfile')
    assert (given['BASE'], given['PACKAGES'], given['INSTALL']) == (cpu[0][1], '', '')


def test_the_base_to_compile_with_has_the_cuda_of_torch():
    torch = (ROOT / 'requirements/torch-cuda12.txt').read_text()
    assert '2.10.0' in torch
    assert re.search(r'BASE=nvidia/cuda:12\.\d+\.\d+-devel-ubuntu\d+\.\d+', (DOCKER / 'Dockerfile').read_text())


def test_nothing_names_a_package_index():
    files = [ROOT / 'tools/install.sh', ROOT / 'docs/docker.md', *(ROOT / 'requirements').glob('*.txt')]
    for path in [*files, *(path for path in DOCKER.iterdir() if path.is_file())]:
        assert 'http' not in path.read_text(), path


def test_the_ignore_file_leaves_out_data_and_results():
    lines = [line for line in (ROOT / '.dockerignore').read_text().splitlines() if line and not line.startswith('#')]
    assert {'.git', '.venv', '.venv-*', 'data', 'work_dirs', 'mmitpn/.mim', '**/__pycache__', '**/*.pth'} <= set(lines)
    # The last line that matches decides: the quick start's weights stay in.
    assert lines.index('!configs/quickstart/*.pth') > lines.index('**/*.pth')
    assert list((ROOT / 'configs/quickstart').glob('*.pth'))
    kept = ('setup.py', 'README.md', 'mmitpn', 'configs', 'tools', 'requirements', 'docker', '*.py', '*.md')
    assert not set(kept) & set(lines)


# --- the entrypoint -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'called'),
    [
        (['train', 'a.py', '--amp'], f'{ROOT}/tools/train.py a.py --amp'),
        (['test', 'a.py', 'b.pth', '--show-dir', 'c'], f'{ROOT}/tools/test.py a.py b.pth --show-dir c'),
        (['quickstart', '--task', 'seg'], f'{ROOT}/tools/quickstart.py --task seg'),
        (['doctor', '--config', 'a.py'], '-m mmitpn.doctor --config a.py'),
        (['predict', 'a.jpg', '--model', 'b'], '-m mmitpn predict a.jpg --model b'),
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
    ('arguments', 'environment', 'message'),
    [
        (['train'], {}, 'train needs CONFIG'),
        (['train', '--amp'], {}, 'train needs CONFIG'),
        (['test', 'a.py'], {}, 'test needs CONFIG CHECKPOINT'),
        (['train', 'a.py'], {'NNODES': '2'}, 'NNODES=2 needs GPUS'),
        (['train', 'a.py', '0'], {}, 'GPUS is the number of processes'),
        (['trian', 'a.py'], {}, "no command 'trian'"),
    ],
)
def test_bad_usage(entry, arguments, environment, message):
    done = entry(*arguments, **environment)
    assert done.returncode == 2
    assert done.stdout == ''
    (line,) = done.stderr.splitlines()
    assert message in line


# --- two nodes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def services() -> dict:
    return yaml.safe_load((DOCKER / 'compose.yaml').read_text())['services']


@pytest.mark.parametrize('profile', ['gpu', 'cpu'])
def test_two_ranks_meet_at_one_address(services, entry, profile):
    nodes = {name: one for name, one in services.items() if one['profiles'] == [profile]}
    assert [one['environment']['NODE_RANK'] for one in nodes.values()] == [0, 1]
    (address,) = {one['environment']['MASTER_ADDR'] for one in nodes.values()}
    first = next(iter(nodes))
    assert address in [first, *(nodes[first].get('networks') or {}).get('default', {}).get('aliases', [])]
    for one in nodes.values():
        given = {'CONFIG': 'c.py', 'OPTIONS': '--amp --resume'}
        environment = {key: expand(str(value), given) for key, value in one['environment'].items()}
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
    assert (ROOT / expand(nodes[first]['environment']['CONFIG'], {})).is_file()


def test_each_gpu_node_has_its_own_gpu(services):
    gpus = [
        device['device_ids']
        for one in services.values()
        if 'deploy' in one
        for device in one['deploy']['resources']['reservations']['devices']
    ]
    assert gpus == [['0'], ['1']]
