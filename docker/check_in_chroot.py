"""Run the steps of a Dockerfile in a clean Debian without Docker, then try what the image is for.

    python docker/check_in_chroot.py /tmp/image
    python docker/check_in_chroot.py /tmp/image --keep        # leave the folder
    python docker/check_in_chroot.py /tmp/image --from 35     # go on there with the step in line 35 of the Dockerfile

Needs root, debootstrap, 10 GB and Python 3.10, nothing else. The steps are read from the Dockerfile: RUN, COPY, ENV,
ARG, WORKDIR and USER act as there, files are copied as the ignore file allows, and the commands at the end go through
its ENTRYPOINT as its USER. What a builder adds is not checked: layers, the base image (debootstrap's minimal Debian
stands for debian:*-slim), limits and isolation.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from dockerfile import Instruction, copied, expand, files_of_context, read_dockerfile, read_ignored

ROOT = Path(__file__).resolve().parents[1]
PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
SHORT = (
    'train_cfg.max_iters=4 train_cfg.val_interval=4 default_hooks.logger.interval=1'
    ' default_hooks.checkpoint.interval=4 train_dataloader.batch_size=2'
)
# Run in the image at the end, each through its entry.
TRIES = (
    'sh -c "id; test $(id -u) != 0 && ! touch /opt/venv/x 2>/dev/null && touch data/x work_dirs/x && rm */x"',
    'doctor',
    f'quickstart --num-train 8 --num-val 4 --work-dir work_dirs/quickstart --cfg-options {SHORT}',
    'doctor --config configs/quickstart/dino_fast-itpn-nano_shapes.py',
    f'train configs/quickstart/dino_fast-itpn-nano_shapes.py --work-dir work_dirs/one --cfg-options {SHORT}',
    f'train configs/quickstart/dino_fast-itpn-nano_shapes.py 2 --work-dir work_dirs/two --cfg-options {SHORT}',
    'test configs/quickstart/dino_fast-itpn-nano_shapes.py work_dirs/quickstart/dino_fast-itpn-nano_shapes.pth',
)
SERVICES = 'import json, yaml; print(json.dumps(yaml.safe_load(open("docker/compose.yaml"))["services"]))'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='new folder that becomes the image')
    parser.add_argument('--dockerfile', type=Path, default=ROOT / 'docker/Dockerfile.cpu', help='default: the CPU one')
    parser.add_argument('--mirror', help="Debian mirror (default: debootstrap's)")
    parser.add_argument('--build-arg', action='append', default=[], metavar='NAME=VALUE', help='as of docker build')
    parser.add_argument(
        '--env', action='append', default=[], metavar='NAME=VALUE', help='set in every step, not in the commands after'
    )
    parser.add_argument(
        '--bind', action='append', default=[], metavar='PATH[:TARGET]', help='mount read-only while the steps run'
    )
    parser.add_argument('--try', action='append', dest='tries', metavar='COMMAND', help='instead of the usual commands')
    parser.add_argument(
        '--from', type=int, default=0, dest='start', metavar='LINE', help='the folder holds the steps of earlier lines'
    )
    parser.add_argument('--keep', action='store_true', help='leave the folder there, as --from always does')
    parser.add_argument('--inside', action='store_true', help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def pairs(items: list[str], option: str) -> dict[str, str]:
    """Turn NAME=VALUE into a dict."""
    wrong = [item for item in items if '=' not in item]
    if wrong:
        raise ValueError(f'{option} {wrong[0]!r}: must be NAME=VALUE')
    return dict(item.split('=', maxsplit=1) for item in items)


class Image:
    """A folder that becomes what the Dockerfile describes.

    Args:
        folder: The folder, with a Debian in it.
        build_args: Values of ``ARG``, as given on the command line.
        extra: Environment of every step, beyond what the Dockerfile says.
    """

    def __init__(self, folder: Path, build_args: dict[str, str], extra: dict[str, str]) -> None:
        self.folder = folder
        self.build_args = build_args
        self.extra = extra
        self.args: dict[str, str] = {}
        self.env = {'PATH': PATH}
        self.workdir, self.user = '/', '0:0'
        self.entrypoint: list[str] = []

    def command(self, words: list[str], env: dict[str, str]) -> list[str]:
        """The command that runs words inside, as the image's user in its working folder."""
        user, _, group = self.user.partition(':')
        home = next(
            line.split(':')[5] for line in self.inside('etc/passwd').read_text().splitlines() if f':x:{user}:' in line
        )
        settings = [f'{name}={value}' for name, value in {'HOME': home, **env}.items()]
        userspec = ['--groups=', f'--userspec={user}:{group or user}']
        return ['chroot', *userspec, str(self.folder), '/usr/bin/env', '-i', '-C', self.workdir, *settings, *words]

    def inside(self, path: str) -> Path:
        """A path of the image as one of this machine."""
        return self.folder / path.lstrip('/')

    def step(self, step: Instruction, *, run: bool) -> None:
        """Do one instruction; without ``run`` only what it sets."""
        known = {**self.args, **self.env}
        if step.name == 'ARG':
            for name, default in step.pairs:
                value = self.build_args.get(name, None if default is None else expand(default, known))
                if value is not None:
                    self.args[name] = value
        elif step.name == 'ENV':
            self.env |= {name: expand(value or '', known) for name, value in step.pairs}
        elif step.name == 'USER':
            self.user = expand(step.value, known)
        elif step.name == 'WORKDIR':
            self.workdir = os.path.normpath(f'{self.workdir}/{expand(step.value, known)}')
            self.inside(self.workdir).mkdir(parents=True, exist_ok=True)
        elif step.name == 'ENTRYPOINT':
            self.entrypoint = step.words
        elif step.name == 'COPY' and run:
            files = files_of_context(ROOT, read_ignored(ROOT / '.dockerignore'))
            for source, target in copied(step.words, list(files)):
                place = self.inside(target if target.startswith('/') else f'{self.workdir}/{target}')
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / source, place, follow_symlinks=False)
        elif step.name == 'RUN' and run:
            env = {**self.args, **self.env, **self.extra}
            subprocess.run(self.command(['/bin/sh', '-c', step.value], env), check=True)


def mount(folder: Path, binds: list[str]) -> None:
    """Mount what a container has; this process is in a mount namespace of its own, and with it the mounts go."""
    for source in ('/dev', '/sys'):
        subprocess.run(['mount', '--rbind', source, folder / source[1:]], check=True)
    subprocess.run(['mount', '-t', 'proc', 'proc', folder / 'proc'], check=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'mode=1777', 'tmpfs', folder / 'dev/shm'], check=True)
    for bind in ('/etc/resolv.conf', *binds):
        source, _, target = bind.partition(':')
        place = folder / (target or source).lstrip('/')
        if Path(source).is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        subprocess.run(['mount', '--bind', Path(source).resolve(), place], check=True)
        subprocess.run(['mount', '-o', 'remount,bind,ro', place], check=True)
    # Docker writes this file; all nodes are this machine here.
    (folder / 'etc/hosts').write_text(f'127.0.0.1 localhost node0 {socket.gethostname()}\n', encoding='utf-8')


def build(args: argparse.Namespace) -> None:
    """Do the steps, then the commands."""
    image = Image(args.folder, pairs(args.build_arg, '--build-arg'), pairs(args.env, '--env'))
    mount(args.folder, args.bind)
    for step in read_dockerfile(args.dockerfile):
        run = step.name in ('RUN', 'COPY') and step.line >= args.start
        start = time.perf_counter()
        if run:
            print(f'[chroot] line {step.line}: {step.name} {step.value[:100]}', flush=True)
        image.step(step, run=run)
        if run:
            print(f'[chroot] line {step.line}: done in {time.perf_counter() - start:.0f} s', flush=True)
    for text in args.tries or TRIES:
        print(f'[chroot] {text}', flush=True)
        start = time.perf_counter()
        subprocess.run(image.command([*image.entrypoint, *shlex.split(text)], image.env), check=True)
        print(f'[chroot] done in {time.perf_counter() - start:.0f} s', flush=True)
    if not args.tries:
        run_compose(image)


def run_compose(image: Image) -> None:
    """Run the services of the compose file's profile without GPUs, all at once."""
    done = subprocess.run(
        image.command(['python', '-c', SERVICES], image.env), check=True, stdout=subprocess.PIPE, text=True
    )
    started = []
    for name, service in json.loads(done.stdout).items():
        if service['profiles'] == ['cpu']:
            given = {'OPTIONS': f'--work-dir work_dirs/compose --cfg-options {SHORT}'}
            environment = {key: expand(str(value), given) for key, value in service['environment'].items()}
            words = [word.replace('$$', '$') for word in service['command']]
            print(f'[chroot] {name}, {environment}: {shlex.join(words)}', flush=True)
            command = image.command([*image.entrypoint, *words], {**image.env, **environment})
            started.append(subprocess.Popen(command))
    codes = [process.wait() for process in started]
    if len(codes) != 2 or any(codes):
        raise ValueError(f'the two services ended with {codes}')
    print('[chroot] both services are done', flush=True)


def make_base(args: argparse.Namespace) -> None:
    """Put the Debian that the Dockerfile starts from into the folder, which is there and empty."""
    base = next(step.value for step in read_dockerfile(args.dockerfile) if step.name == 'FROM')
    name, _, tag = base.partition(':')
    if name != 'debian' or not tag:
        raise ValueError(f'{args.dockerfile} starts from {base!r}; only debian:SUITE can be made here')
    command = ['debootstrap', '--variant=minbase', tag.removesuffix('-slim'), str(args.folder)]
    print(f'[chroot] {" ".join(command)}', flush=True)
    command += [args.mirror] if args.mirror else []
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f'debootstrap failed: {done.stdout[-500:]}')


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    args.folder = args.folder.resolve()
    made_here = False
    try:
        if args.inside:
            build(args)
            return 0
        missing = [name for name in ('debootstrap', 'unshare', 'chroot') if shutil.which(name) is None]
        if os.geteuid() != 0 or missing:
            raise ValueError(f'needs root and debootstrap, unshare, chroot (missing: {", ".join(missing) or "root"})')
        pairs(args.build_arg, '--build-arg')
        pairs(args.env, '--env')
        if not args.start:
            if args.folder.exists():
                raise ValueError(
                    f'{args.folder} exists; name a new folder, or --from LINE to go on with what lies there'
                )
            args.folder.mkdir(parents=True)
            made_here = True
            make_base(args)
        given = sys.argv[1:] if argv is None else argv
        # The mounts live and die with a namespace of their own: what removes the folder never meets them.
        inside = ['unshare', '--mount', '--pid', '--fork', '--kill-child', sys.executable, __file__, '--inside', *given]
        return subprocess.run(inside, check=False).returncode
    except (ValueError, OSError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f'error: {shlex.join(map(str, error.cmd[-3:]))} ended with {error.returncode}\n')
        return 1
    finally:
        if made_here and not args.keep:
            shutil.rmtree(args.folder)


if __name__ == '__main__':
    sys.exit(main())
