"""Packs mmitpn. Imports nothing but setuptools, so that building needs none of the libraries the package uses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.develop import develop
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
# What `mim` looks for inside an installed package, under <package>/.mim, and the pins that the doctor names.
MIM_CONTENT = ('configs', 'tools', 'requirements', 'model-index.yml')
# What every framework of the maintained fork, and of the official packages, is built on.
FORK = ('onedl-mmcv>=2.3.6', 'onedl-mmengine>=0.10.12')
OFFICIAL = ('mmcv-lite>=2.1.0,<2.2.0', 'mmengine>=0.10.7')
# What predicting and datasets in YOLO's and VOC's layout need beside a framework.
TOOLS = ('supervision>=0.31',)
# What predicting with an exported file needs beside its runtime.
RUNNING = ('opencv-python-headless', *TOOLS, 'scipy')


def pack_for_mim(root: Path, target: Path, *, link: bool) -> list[Path]:
    """Put configs, tools and the model index where mim finds them.

    Args:
        root: The repository.
        target: The `.mim` folder to fill; what an earlier call put there is replaced.
        link: True links to the repository, so that an editable installation follows later edits (it copies where the
            file system has no symbolic links); False copies, for a wheel.

    Returns:
        The paths made, in the order of `MIM_CONTENT`. A name the repository lacks is left out.
    """
    target.mkdir(parents=True, exist_ok=True)
    made = []
    for name in MIM_CONTENT:
        source, place = root / name, target / name
        if place.is_symlink() or place.is_file():
            place.unlink()
        elif place.is_dir():
            shutil.rmtree(place)
        if not source.exists():
            continue
        if not (link and _linked(source, place)):
            if source.is_dir():
                shutil.copytree(source, place, ignore=shutil.ignore_patterns('__pycache__', '*.pyc'))
            else:
                shutil.copy2(source, place)
        made.append(place)
    return made


def _linked(source: Path, place: Path) -> bool:
    """Link `place` to `source`; False where the file system refuses."""
    try:
        place.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:
        return False
    return True


class BuildPy(build_py):
    """A wheel carries copies in the build folder; the repository is left as it is."""

    def run(self) -> None:
        super().run()
        # An editable build has no copy of the package to put them in: the two commands below see to it.
        if not self.editable_mode:
            pack_for_mim(ROOT, Path(self.build_lib) / 'mmitpn' / '.mim', link=False)


class EditableWheel(editable_wheel):
    """`pip install -e` (PEP 660). It never runs `develop`, and `sys.argv` does not say that it is editable."""

    def run(self) -> None:
        pack_for_mim(ROOT, ROOT / 'mmitpn' / '.mim', link=True)
        super().run()


class Develop(develop):
    """`setup.py develop`, which older tools still call."""

    def run(self) -> None:
        pack_for_mim(ROOT, ROOT / 'mmitpn' / '.mim', link=True)
        super().run()


def read_version() -> str:
    """The version, read as text: importing the package would need its dependencies."""
    text = (ROOT / 'mmitpn' / 'version.py').read_text(encoding='utf-8')
    found = re.search(r"^__version__ = '([^']+)'$", text, flags=re.MULTILINE)
    if found is None:
        raise ValueError("mmitpn/version.py has no line __version__ = '...'")
    return found.group(1)


if __name__ == '__main__':
    readme = ROOT / 'README.md'
    setup(
        name='mmitpn',
        version=read_version(),
        description='Fast-iTPN, an integrally pre-trained transformer pyramid, for OpenMMLab detectors and segmentors',
        long_description=readme.read_text(encoding='utf-8') if readme.is_file() else '',
        long_description_content_type='text/markdown',
        author='The mmitpn authors',
        license='Apache-2.0',
        python_requires='>=3.10,<3.14',
        packages=find_packages(include=['mmitpn', 'mmitpn.*']),
        package_data={'mmitpn': ['py.typed']},
        include_package_data=False,
        zip_safe=False,
        # No OpenMMLab library here: the maintained fork and the official packages differ by name and import alike, and
        # requiring one would install it over the other. `python -m mmitpn.doctor` says what is missing.
        install_requires=[
            'filelock',
            'gdown>=6.5',
            'matplotlib',
            'numpy',
            'pillow',
            'psutil',
            'pycocotools',
            'requests',
            'rich',
            'safetensors',
            'torch>=2.7',
            'torchvision>=0.22',
            'typing-extensions>=4.10',
        ],
        extras_require={
            'det': ['onedl-mmdetection>=3.5.1', *FORK, *TOOLS, 'scipy'],
            'seg': ['onedl-mmsegmentation>=1.4.2', *FORK, *TOOLS],
            'pretrain': ['onedl-mmpretrain>=1.3.6', *FORK, *TOOLS],
            'openmmlab-det': ['mmdet>=3.3.0', *OFFICIAL, *TOOLS, 'scipy'],
            # mmsegmentation 1.2.2 imports ftfy and regex, and does not declare them.
            'openmmlab-seg': ['mmsegmentation>=1.2.2', *OFFICIAL, *TOOLS, 'ftfy', 'regex'],
            'openmmlab-pretrain': ['mmpretrain>=1.2.0', *OFFICIAL, *TOOLS],
            'tests': [
                *('ipykernel', 'nbclient', 'nbformat'),  # demo/notebooks
                *('packaging', 'pytest', 'pytest-timeout', 'pytest-xdist', 'pyyaml', 'ruff'),
            ],
            # The documentation site: mkdocs.yml. ruff formats the signatures of its API reference.
            'docs': ['mkdocs-material>=9.7', 'mkdocs>=1.6', 'mkdocstrings-python>=2', 'pymdown-extensions', 'ruff'],
            # To write exported files; and to predict with one, which needs no framework.
            'export': ['nncf>=3.0', 'onnx>=1.18', 'onnxruntime>=1.22', 'onnxscript>=0.5', 'openvino>=2025.3'],
            'onnx': ['onnxruntime>=1.22', *RUNNING],
            'openvino': ['openvino>=2025.3', *RUNNING],
            # The page of demo/app.py, beside an extra that predicts.
            'demo': ['gradio>=6.31', *TOOLS],
            # Networks that pre-training learns from; each is asked for by the teacher that needs it.
            'teachers': ['timm', 'transformers'],
        },
        entry_points={'console_scripts': ['mmitpn = mmitpn.__main__:main']},
        cmdclass={'build_py': BuildPy, 'editable_wheel': EditableWheel, 'develop': Develop},
        classifiers=[
            'Development Status :: 3 - Alpha',
            'Programming Language :: Python :: 3.10',
            'Programming Language :: Python :: 3.11',
            'Programming Language :: Python :: 3.12',
            'Programming Language :: Python :: 3.13',
            'Topic :: Scientific/Engineering :: Image Recognition',
        ],
    )
