"""What users ask first has an answer that is at most two clicks from the README."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINK = re.compile(r'\]\((?!\w+:)([^)#\s]+)?(?:#[^)\s]+)?\)')
# Question -> the page that answers it, and words of the answer.
ANSWERS = {
    'install without a compiler': ('README.md', 'bash tools/install.sh'),
    'predict on an image, a folder, a video': ('docs/predict.md', 'street.mp4'),
    'use the predictions elsewhere': ('docs/predict.md', 'to_supervision'),
    'train on my own data': ('docs/own_data.md', '--data'),
    'train on COCO': ('docs/coco.md', 'dist_train.sh'),
    'evaluate ADE20K mIoU': ('docs/ade20k.md', 'mmitpn test'),
    'swap the backbone of my config': ('README.md', 'mmitpn.ITPNPyramid'),
    'get the released weights': ('docs/weights.md', 'mmitpn weights'),
    'what was loaded': ('docs/weights.md', '## What is loaded'),
    'features without a framework': ('README.md', 'FastITPN.from_pretrained'),
    'token gathering and migration': ('docs/token_reduction.md', 'keep_ratio'),
    'pre-train on my images': ('docs/pretraining.md', 'pretrained.pth'),
    'freeze the backbone': ('docs/recipes.md', '### Freeze'),
    'bf16': ('docs/recipes.md', '### fp16 and bf16'),
    'out of memory': ('docs/recipes.md', '### Out of memory'),
    'resume a run': ('docs/recipes.md', '### Resume'),
    'several GPUs, several machines, Slurm': ('docs/launchers.md', '## Slurm'),
    'export to ONNX': ('docs/export.md', 'mmitpn export'),
    'TensorRT': ('docs/tensorrt.md', 'trtexec'),
    "replace a tracker's fastitpn.py": ('docs/trackers.md', 'in_channels'),
    'what does this error mean': ('docs/errors.md', '## Configs'),
    'how fast is it on a GPU': ('docs/gpu.md', 'One NVIDIA H200'),
}


def clicks_from_readme() -> dict[str, int]:
    """Markdown file -> the smallest number of links that lead from the README to it."""
    found, queue = {'README.md': 0}, deque(['README.md'])
    while queue:
        page = queue.popleft()
        for link in LINK.findall((ROOT / page).read_text(encoding='utf-8')):
            target = (ROOT / page).parent / link
            target = target / 'README.md' if target.is_dir() else target
            name = target.resolve().relative_to(ROOT).as_posix() if link else page
            if target.suffix == '.md' and target.is_file() and name not in found:
                found[name] = found[page] + 1
                queue.append(name)
    return found


@pytest.mark.parametrize(('page', 'words'), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_near(page: str, words: str) -> None:
    assert words in (ROOT / page).read_text(encoding='utf-8')
    assert clicks_from_readme()[page] <= 2


def test_every_document_is_near() -> None:
    clicks = clicks_from_readme()
    far = {path.name: clicks.get(f'docs/{path.name}') for path in (ROOT / 'docs').glob('*.md')}
    assert {name: number for name, number in far.items() if number is None or number > 2} == {}
