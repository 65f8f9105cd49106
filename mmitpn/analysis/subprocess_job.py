"""Runs a job of :mod:`mmitpn.analysis.worker` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .cases import Case


def run_job(
    task: str,
    cases: Sequence[Case],
    *,
    module: str = 'mmitpn.analysis.worker',
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Measure in a fresh process.

    Args:
        task: ``'memory'`` or ``'training'`` (one case each), or ``'speed'``.
        cases: What to measure.
        module: What the process runs; another one calls the worker's ``main`` with tasks of its own.
        environment: More environment variables of the process.
        **settings: ``threads``, ``seconds`` and ``min_rounds`` of the job.

    Returns:
        The worker's result.

    Raises:
        RuntimeError: If the process failed; the message ends with its last lines.
    """
    job = {'task': task, 'cases': [asdict(case) for case in cases], **settings}
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / 'job.json', Path(folder) / 'result.json'
        question.write_text(json.dumps(job), encoding='utf-8')
        # The package may not be installed where this is run from a clone.
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))
        done = subprocess.run(
            [sys.executable, '-m', module, str(question), str(answer)],
            env={**os.environ, 'PYTHONPATH': path, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not answer.is_file():
            said = '\n'.join((done.stderr or done.stdout).strip().splitlines()[-15:])
            killed = ' (killed: out of memory?)' if done.returncode == -9 else ''
            raise RuntimeError(
                f'measuring the {task} of {", ".join(case.name for case in cases)} failed with exit status'
                f' {done.returncode}{killed}:\n{said}'
            )
        return json.loads(answer.read_text(encoding='utf-8'))
