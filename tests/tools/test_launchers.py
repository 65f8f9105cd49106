"""tools/dist_*.sh on one and two hosts, and tools/slurm_* on a Slurm of one node that is started here."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPTS = (
    'launch.sh',
    'rank.sh',
    'dist_train.sh',
    'dist_test.sh',
    'slurm_train.sh',
    'slurm_test.sh',
    'slurm_job.sbatch',
)
TORCHRUN = 'dist_train.sh', 'toy.py', 2
SRUN = 'slurm_train.sh', 'partition', 'job', 'toy.py', 'work'
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


@pytest.fixture
def asked(launch_toy, tmp_path) -> Callable[..., tuple[int, list[str]]]:
    """Runs a launcher with stand-ins for Python and srun, which print their arguments, one a line."""
    for name in ('fake_python', 'srun'):
        (tmp_path / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho "MASTER_PORT=$MASTER_PORT"\n')
        (tmp_path / name).chmod(0o755)

    def run(name: str, *options: object, **variables: str) -> tuple[int, list[str]]:
        path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
        script = launch_toy.script(name)
        status, printed = launch_toy.run(
            'bash', script, *options, PATH=path, PYTHON=str(tmp_path / 'fake_python'), **variables
        )
        return status, printed.splitlines()

    return run


@pytest.mark.parametrize('name', SCRIPTS)
def test_scripts_pass_shellcheck(launch_toy, name):
    if shutil.which('shellcheck') is None:
        pytest.skip('needs shellcheck (apt-get install shellcheck)')
    script = launch_toy.script(name)
    done = subprocess.run(
        ['shellcheck', '-x', f'tools/{name}'], cwd=script.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ('command', 'variables', 'wanted'),
    [
        (TORCHRUN, {}, ['--rdzv-endpoint=127.0.0.1:0', '--max-restarts=0', '--nproc-per-node=2']),
        (TORCHRUN, {'PORT': '1234', 'LOG_DIR': 'logs'}, ['--rdzv-endpoint=127.0.0.1:1234', 'logs']),
        (TORCHRUN, {'NNODES': '2', 'NODE_RANK': '1', 'MASTER_ADDR': 'first'},
         ['--nnodes=2', '--node-rank=1', '--master-addr=first', '--master-port=29500']),
        (TORCHRUN, {'NNODES': '2', 'MASTER_ADDR': 'first', 'MAX_RESTARTS': '3', 'PORT': '1234'},
         ['--rdzv-endpoint=first:1234', '--rdzv-conf=is_host=1', '--local-addr=first', '--max-restarts=3', '--resume']),
        ((*TORCHRUN, '--work-dir=mine'), {}, ['mine/ranks']),
        (TORCHRUN, {}, ['work_dirs/toy/ranks']),
        (('dist_test.sh', 'mmdet::a/b', 'x.pth', 2), {}, ['work_dirs/b/ranks', 'x.pth']),
        (SRUN, {}, ['--partition=partition', '--gres=gpu:8', '--ntasks=8', '--ntasks-per-node=8', '--cpus-per-task=5']),
        (SRUN, {'GPUS': '16', 'SRUN_ARGS': '--time=1 --quiet'}, ['--gres=gpu:8', '--ntasks=16', '--time=1', '--quiet']),
        (SRUN, {'GPUS': '2', 'PORT': '1234'}, ['--gres=gpu:2', '--ntasks=2', 'MASTER_PORT=1234', 'work/ranks']),
        (SRUN, {'GPUS': '0', 'NTASKS': '4', 'NTASKS_PER_NODE': '2'}, ['--ntasks=4', '--ntasks-per-node=2']),
        (SRUN, {'SLURM_JOB_ID': '7', 'SLURM_CPUS_PER_TASK': '3'}, ['--job-name=job', '--cpus-per-task=3']),
        (SRUN, {'SLURM_JOB_ID': '7', 'NTASKS': '1'}, ['--ntasks=1']),
    ],
)  # fmt: skip
def test_variables_become_options(asked, command, variables, wanted):
    status, arguments = asked(*command, **variables)
    assert status == 0
    assert [part for part in wanted if part not in arguments] == []
    no_gpus = variables.get('GPUS') == '0' or 'SLURM_JOB_ID' in variables
    assert any(part.startswith('--gres') for part in arguments) == ('slurm_train.sh' in command and not no_gpus)
    assert ('--partition=partition' in arguments) == ('slurm_train.sh' in command and 'SLURM_JOB_ID' not in variables)
    assert ('--resume' in arguments) == ('MAX_RESTARTS' in variables)


@pytest.mark.parametrize(
    ('command', 'variables', 'says'),
    [
        (TORCHRUN, {'NNODES': 'two'}, 'NNODES=two'),
        (TORCHRUN, {'NNODES': '2'}, 'NNODES=2 needs MASTER_ADDR'),
        (TORCHRUN, {'NNODES': '2', 'NODE_RANK': '2', 'MASTER_ADDR': 'first'}, 'NODE_RANK=2'),
        (TORCHRUN, {'MAX_RESTARTS': '-1'}, 'MAX_RESTARTS=-1'),
        ((*TORCHRUN, '--resume', 'x.pth'), {'MAX_RESTARTS': '1'}, '--resume x.pth'),
        (SRUN, {'GPUS': '0'}, 'NTASKS'),
        (SRUN, {'GPUS': '4', 'NTASKS': '2'}, 'NTASKS=2'),
        (SRUN, {'GPUS': 'all'}, 'GPUS=all'),
        (SRUN, {'GPUS': '4', 'SLURM_JOB_ID': '7'}, 'inside a job'),
    ],
)
def test_settings_that_cannot_work_are_one_line(asked, command, variables, says):
    status, printed = asked(*command, **variables)
    assert status == 2
    assert len(printed) == 1
    assert printed[0].startswith('error: ')
    assert says in printed[0]


SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), print('saved'), sys.exit(0)))
print('ready')
time.sleep(60)
"""


def wait_for_line(file: Path, line: str) -> None:
    limit = time.monotonic() + 120
    while not file.exists() or line not in file.read_text():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_signal_reaches_the_process_which_may_still_save(launch_toy, tmp_path):
    variables = {'TORCHELASTIC_RUN_ID': 'x', 'TORCHELASTIC_RESTART_COUNT': '0', 'RANK': '0', 'WORLD_SIZE': '1'}
    rank = launch_toy.start(
        'setsid', 'bash', launch_toy.script('rank.sh'), tmp_path, 'x', sys.executable, '-c', SAVES, **variables
    )
    wait_for_line(tmp_path / 'rank0.log', 'ready')
    os.killpg(rank.pid, signal.SIGTERM)
    status, printed = launch_toy.finish(rank)
    assert status == 0
    assert 'saved' in printed
    assert (tmp_path / 'rank0.log').read_text().endswith('saved\n')


@pytest.fixture(scope='module')
def restarted(launch_toy) -> tuple[Path, str]:
    """Work dir and output of a training run of two processes, of which one is killed at step 3 of the first attempt."""
    work_dir = launch_toy.folder / 'restarted'
    status, printed = launch_toy.run(
        'bash', launch_toy.script('dist_train.sh'), launch_toy.config, 2, '--work-dir', work_dir,
        MAX_RESTARTS='1', TOY_DIE=f'1:3:{work_dir}.died',
    )  # fmt: skip
    assert status == 0, printed[-4000:]
    return work_dir, printed


@pytest.mark.slow
def test_a_restart_resumes_from_the_last_checkpoint(restarted, steps):
    work_dir, printed = restarted
    assert (work_dir / 'last_checkpoint').read_text().endswith('iter_6.pth')
    assert (work_dir / 'iter_6.pth').is_file()
    assert steps(work_dir, 0) == steps(work_dir, 1) == [0, 1, 2, 3, 2, 3, 4, 5]
    assert 'resumed epoch: 0, iter: 2' in printed


@pytest.mark.slow
def test_the_output_of_each_rank_is_kept_and_that_of_rank_0_shown(restarted):
    work_dir, printed = restarted
    first, second = ((work_dir / 'ranks' / f'rank{rank}.log').read_text() for rank in (0, 1))
    assert 'Iter(train) [6/6]' in first
    assert 'Iter(train) [6/6]' in printed
    for log, rank in ((first, 0), (second, 1)):
        assert re.findall(r'^=== .* rank (\d of \d) on .* attempt (\d)$', log, flags=re.MULTILINE) == [
            (f'{rank} of 2', '0'),
            (f'{rank} of 2', '1'),
        ]
    assert 'toy: rank 1 dies at step 3' in second
    assert 'error: rank 1 on' in printed
    assert '  | toy: rank 1 dies at step 3' in printed
    assert len(list((work_dir / 'ranks').glob('failed_*_0.txt'))) == 1
    assert printed.count('error: rank') == 1


@pytest.mark.slow
def test_two_processes_evaluate_all_of_the_data(launch_toy, restarted):
    work_dir = launch_toy.folder / 'evaluated'
    status, printed = launch_toy.run(
        'bash', launch_toy.script('dist_test.sh'), launch_toy.config, restarted[0] / 'iter_6.pth', 2,
        '--work-dir', work_dir,
    )  # fmt: skip
    assert status == 0, printed[-4000:]
    assert json.loads((work_dir / 'test_metrics.json').read_text())['metrics']['numbers'] == 8
    assert {path.name for path in (work_dir / 'ranks').iterdir()} == {'rank0.log', 'rank1.log'}


@pytest.fixture
def program(launch_toy, tmp_path):
    """Starts lines of Python as two processes of torchrun, their output in the test's folder."""

    def start(lines: str) -> subprocess.Popen:
        setup = f'source {launch_toy.script("launch.sh")}; log_dir={tmp_path}; find_command x'
        instead = 'command=("${command[@]:0:4}" "$@")'
        return launch_toy.start('bash', '-c', f'{setup}; {instead}; with_torchrun 2', 'x', sys.executable, '-c', lines)

    return start


@pytest.mark.slow
def test_a_failure_of_one_rank_fails_the_launcher_and_is_shown(launch_toy, program):
    lines = "import os, time; os.environ['RANK'] == '1' and exit('out of luck'); time.sleep(60)"
    status, printed = launch_toy.finish(program(lines))
    assert status == 1
    assert 'error: rank 1 on' in printed
    assert '  | out of luck' in printed
    assert printed.count('error: rank') == 1


@pytest.mark.slow
def test_a_launcher_that_is_stopped_lets_its_processes_save(launch_toy, program, tmp_path):
    launcher = program(SAVES)
    for rank in (0, 1):
        wait_for_line(tmp_path / f'rank{rank}.log', 'ready')
    launcher.send_signal(signal.SIGTERM)
    assert launch_toy.finish(launcher)[0] != 0
    assert all((tmp_path / f'rank{rank}.log').read_text().endswith('saved\n') for rank in (0, 1))


@pytest.fixture(scope='module')
def hosts() -> Iterator[list[list[str]]]:
    """What to put before a command to run it on one of two hosts: network namespaces, 10.77.0.1 and 10.77.0.2."""
    if shutil.which('ip') is None:
        pytest.skip('two hosts need ip (apt-get install iproute2)')
    names = [f'mm{os.getpid()}{letter}' for letter in 'ab']

    def ip(*options: str) -> None:
        done = subprocess.run(['ip', *options], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f'no network namespaces here: ip {" ".join(options)}: {done.stderr.strip()}')

    try:
        for name in names:
            ip('netns', 'add', name)
            ip('netns', 'exec', name, 'true')
            ip('-n', name, 'link', 'set', 'lo', 'up')
        ip('link', 'add', names[0], 'netns', names[0], 'type', 'veth', 'peer', 'name', names[1], 'netns', names[1])
        for number, name in enumerate(names, 1):
            ip('-n', name, 'addr', 'add', f'10.77.0.{number}/24', 'dev', name)
            ip('-n', name, 'link', 'set', name, 'up')
        yield [['ip', 'netns', 'exec', name] for name in names]
    finally:
        for name in names:
            subprocess.run(['ip', 'netns', 'del', name], capture_output=True, check=False)


def on_both(launch_toy, hosts, *command: object, **variables: str) -> list[str]:
    """Run a launcher on both hosts; returns what each printed."""
    common = {'NNODES': '2', 'MASTER_ADDR': '10.77.0.1', **variables}
    started = [
        launch_toy.start(*host, 'bash', *command, NODE_RANK=str(rank), **common) for rank, host in enumerate(hosts)
    ]
    results = [launch_toy.finish(process) for process in started]
    assert [status for status, _ in results] == [0, 0], [printed[-4000:] for _, printed in results]
    return [printed for _, printed in results]


@pytest.mark.slow
def test_two_hosts_restart_together(launch_toy, hosts, steps):
    work_dir = launch_toy.folder / 'hosts'
    script = launch_toy.script('dist_train.sh')
    first, second = on_both(
        launch_toy, hosts, script, launch_toy.config, 1, '--work-dir', work_dir,
        MAX_RESTARTS='1', TOY_DIE=f'1:3:{work_dir}.died',
    )  # fmt: skip
    assert steps(work_dir, 0) == steps(work_dir, 1) == [0, 1, 2, 3, 2, 3, 4, 5]
    assert (work_dir / 'iter_6.pth').is_file()
    assert 'Iter(train) [6/6]' in first
    assert 'toy: rank 1 dies at step 3' in second


@pytest.mark.slow
@pytest.mark.thorough
def test_two_hosts_evaluate(launch_toy, hosts, restarted):
    work_dir = launch_toy.folder / 'hosts_evaluated'
    on_both(
        launch_toy, hosts, launch_toy.script('dist_test.sh'), launch_toy.config, restarted[0] / 'iter_6.pth', 1,
        '--work-dir', work_dir, PORT='29555',
    )  # fmt: skip
    assert json.loads((work_dir / 'test_metrics.json').read_text())['metrics']['numbers'] == 8
    assert {path.name for path in (work_dir / 'ranks').iterdir()} == {'rank0.log', 'rank1.log'}


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


@pytest.mark.slow
def test_two_tasks_train(trained, steps):
    work_dir, printed = trained
    assert (work_dir / 'iter_6.pth').is_file()
    assert steps(work_dir, 0) == steps(work_dir, 1) == list(range(6))
    assert 'Iter(train) [6/6]' in printed
    assert 'rank 1 of 2' in (work_dir / 'ranks' / 'rank1.log').read_text()


@pytest.mark.slow
def test_two_tasks_evaluate(launch_toy, slurm, trained):
    work_dir = launch_toy.folder / 'evaluated'
    status, printed = launch_toy.run(
        'bash', launch_toy.script('slurm_test.sh'), 'toy', 'evaluation', launch_toy.config, trained[0] / 'iter_6.pth',
        '--work-dir', work_dir, GPUS='0', NTASKS='2', CPUS_PER_TASK='1', **slurm,
    )  # fmt: skip
    assert status == 0, printed[-4000:]
    assert json.loads((work_dir / 'test_metrics.json').read_text())['metrics']['numbers'] == 8


@pytest.fixture
def slurm_program(launch_toy, slurm):
    """Runs lines of Python as the processes of a launch."""

    def run(lines: str, **variables: str) -> tuple[int, str]:
        setup = f'source {launch_toy.script("launch.sh")}; log_dir=logs; find_command x'
        instead = 'command=("${command[@]:0:4}" "$@")'
        return launch_toy.run(
            'bash', '-c', f'{setup}; {instead}; with_srun toy job', 'x', sys.executable, '-c', lines,
            CPUS_PER_TASK='1', **variables, **slurm,
        )  # fmt: skip

    return run


@pytest.mark.slow
def test_a_failing_task_fails_srun_and_is_shown(slurm_program):
    lines = "import os, time; os.environ['SLURM_PROCID'] == '1' and exit('out of luck'); time.sleep(60)"
    status, printed = slurm_program(lines, GPUS='0', NTASKS='2')
    assert status != 0
    assert 'error: rank 1 on' in printed
    assert '  | out of luck' in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ('variables', 'gpus'), [({'GPUS': '2'}, '2'), ({'GPUS': '1'}, '1'), ({'GPUS': '0', 'NTASKS': '1'}, 'none')]
)
def test_gpus_are_asked_for_only_when_wanted(slurm_program, variables, gpus):
    lines = (
        "import os; print('tasks', os.environ['SLURM_NTASKS'], 'gpus', os.environ.get('SLURM_GPUS_ON_NODE', 'none'))"
    )
    status, printed = slurm_program(lines, **variables)
    assert status == 0, printed
    assert f'tasks {variables.get("NTASKS", gpus)} gpus {gpus}' in printed


@pytest.mark.slow
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
