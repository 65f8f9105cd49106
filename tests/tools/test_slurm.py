"""tools/slurm_train.sh, slurm_test.sh and slurm_job.sbatch on a Slurm of one node, which is started here."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CONF = """
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=toy Nodes=ALL Default=YES State=UP
"""
DAEMONS = ('munged', 'slurmctld', 'slurmd')

pytestmark = pytest.mark.slow


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(('127.0.0.1', 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope='module')
def slurm(end_processes) -> Iterator[dict[str, str]]:
    """The variables that lead to a Slurm with one node and one partition, toy."""
    path = os.pathsep.join([os.environ['PATH'], '/usr/sbin', '/sbin'])
    absent = [name for name in (*DAEMONS, 'srun', 'sbatch') if shutil.which(name, path=path) is None]
    if absent:
        pytest.skip(f'needs {", ".join(absent)} (apt-get install slurm-wlm munge)')
    if os.geteuid() != 0:
        pytest.skip('slurmd starts tasks as root only')
    # Short, for the names of sockets; munged wants nobody else to be able to write to it.
    folder = Path(tempfile.mkdtemp(prefix='slurm'))
    folder.chmod(0o755)
    (folder / 'state').mkdir()
    (folder / 'spool').mkdir()
    (folder / 'key').write_bytes(os.urandom(128))
    (folder / 'key').chmod(0o600)
    conf = folder / 'slurm.conf'
    host = socket.gethostname().split('.')[0]
    conf.write_text(CONF.format(host=host, ports=free_ports(2), folder=folder))
    for number in range(2):  # Slurm counts any file as a GPU
        (folder / f'gpu{number}').touch()
    (folder / 'gres.conf').write_text(f'Name=gpu File={folder}/gpu[0-1]\n')
    files = [f'--{name}-file={folder}/{name}' for name in ('key', 'pid', 'log', 'seed')]
    options = {
        'munged': ['--foreground', '--force', f'--socket={folder}/munge.socket', *files],
        'slurmctld': ['-D', '-f', str(conf)],
        'slurmd': ['-D', '-f', str(conf)],
    }
    variables = {'SLURM_CONF': str(conf), 'PATH': path}
    running: list[subprocess.Popen] = []

    def start(name: str) -> None:
        with (folder / f'{name}.out').open('w') as output:
            running.append(
                subprocess.Popen(
                    [shutil.which(name, path=path), *options[name]],
                    env={**os.environ, **variables}, cwd=folder, stdout=output, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip

    try:
        start('munged')
        wait_for((folder / 'munge.socket').exists, folder, running)
        start('slurmctld')
        start('slurmd')
        wait_for(lambda: 'idle' in call(variables, 'sinfo', '--noheader', '--format=%T'), folder, running)
        yield variables
    finally:
        call(variables, 'scancel', '--user=root')
        limit = time.monotonic() + 30
        while call(variables, 'squeue', '--noheader').strip() and time.monotonic() < limit:
            time.sleep(0.2)
        for process in reversed(running):
            process.terminate()
        for process in running:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        left = end_processes('SLURM_CONF', str(conf))
        shutil.rmtree(folder)
    assert left == []


def call(variables: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    return done.stdout


def wait_for(ready, folder: Path, running: list[subprocess.Popen]) -> None:
    limit = time.monotonic() + 120
    while not ready():
        said = ''.join(path.read_text()[-1500:] for path in folder.glob('*.out'))
        assert all(process.poll() is None for process in running), said
        assert time.monotonic() < limit, said
        time.sleep(0.2)


@pytest.fixture(scope='module')
def trained(launch_toy, slurm) -> tuple[Path, str]:
    """Work dir and output of a training run that srun started from outside of a job."""
    work_dir = launch_toy.folder / 'trained'
    status, printed = launch_toy.run(
        'bash', launch_toy.script('slurm_train.sh'), 'toy', 'training', launch_toy.config, work_dir,
        GPUS='0', NTASKS='2', CPUS_PER_TASK='1', **slurm,
    )  # fmt: skip
    assert status == 0, printed[-4000:]
    return work_dir, printed


def test_two_tasks_train(trained, steps):
    work_dir, printed = trained
    assert (work_dir / 'iter_6.pth').is_file()
    assert steps(work_dir, 0) == steps(work_dir, 1) == list(range(6))
    assert 'Iter(train) [6/6]' in printed
    assert 'rank 1 of 2' in (work_dir / 'ranks' / 'rank1.log').read_text()


def test_two_tasks_evaluate(launch_toy, slurm, trained):
    work_dir = launch_toy.folder / 'evaluated'
    status, printed = launch_toy.run(
        'bash', launch_toy.script('slurm_test.sh'), 'toy', 'evaluation', launch_toy.config, trained[0] / 'iter_6.pth',
        '--work-dir', work_dir, GPUS='0', NTASKS='2', CPUS_PER_TASK='1', **slurm,
    )  # fmt: skip
    assert status == 0, printed[-4000:]
    assert json.loads((work_dir / 'test_metrics.json').read_text())['metrics']['numbers'] == 8


@pytest.fixture
def program(launch_toy, slurm):
    """Runs lines of Python as the processes of a launch."""

    def run(lines: str, **variables: str) -> tuple[int, str]:
        setup = f'source {launch_toy.script("launch.sh")}; log_dir=logs; find_command x'
        instead = 'command=("${command[@]:0:4}" "$@")'
        return launch_toy.run(
            'bash', '-c', f'{setup}; {instead}; with_srun toy job', 'x', sys.executable, '-c', lines,
            CPUS_PER_TASK='1', **variables, **slurm,
        )  # fmt: skip

    return run


def test_a_failing_task_fails_srun_and_is_shown(program):
    lines = "import os, time; os.environ['SLURM_PROCID'] == '1' and exit('out of luck'); time.sleep(60)"
    status, printed = program(lines, GPUS='0', NTASKS='2')
    assert status != 0
    assert 'error: rank 1 on' in printed
    assert '  | out of luck' in printed


@pytest.mark.parametrize(
    ('variables', 'gpus'), [({'GPUS': '2'}, '2'), ({'GPUS': '1'}, '1'), ({'GPUS': '0', 'NTASKS': '1'}, 'none')]
)
def test_gpus_are_asked_for_only_when_wanted(program, variables, gpus):
    lines = (
        "import os; print('tasks', os.environ['SLURM_NTASKS'], 'gpus', os.environ.get('SLURM_GPUS_ON_NODE', 'none'))"
    )
    status, printed = program(lines, **variables)
    assert status == 0, printed
    assert f'tasks {variables.get("NTASKS", gpus)} gpus {gpus}' in printed


def test_a_batch_job_resumes_from_the_last_checkpoint(launch_toy, slurm, trained, steps):
    work_dir = launch_toy.folder / 'batch'
    shutil.copytree(trained[0], work_dir)
    output = launch_toy.folder / 'job.out'
    status, printed = launch_toy.run(
        'sbatch', '--partition=toy', '--gres=none', '--ntasks-per-node=2', '--cpus-per-task=1', f'--output={output}',
        'tools/slurm_job.sbatch', launch_toy.config, work_dir, '--cfg-options', 'train_cfg.max_iters=8',
        cwd=launch_toy.root, **slurm,
    )  # fmt: skip
    assert status == 0, printed
    job = printed.split()[-1]
    limit = time.monotonic() + 500
    while call(slurm, 'squeue', '--noheader', f'--jobs={job}', '--states=PENDING,RUNNING,COMPLETING').strip():
        assert time.monotonic() < limit, output.read_text()[-4000:]
        time.sleep(0.3)
    said = output.read_text()
    assert (work_dir / 'iter_8.pth').is_file(), said[-4000:]
    assert steps(work_dir, 0) == steps(work_dir, 1) == list(range(8))
    assert 'resumed epoch: 0, iter: 6' in said
    assert 'JobState=COMPLETED' in call(slurm, 'scontrol', 'show', 'job', job)
