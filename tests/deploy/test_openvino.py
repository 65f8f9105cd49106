"""The tests that run OpenVINO, in a process of their own.

In a process that ran OpenVINO 2026.4 and PyTorch, a later fork of a child crashed with a segmentation fault.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = (
    'tests/benchmark/test_formats.py::test_a_file_is_timed_by_its_session[.xml-openvino-OpenVINO 20]',
    'tests/deploy/test_quantize.py::test_openvino_in_int8_keeps_modules_in_float',
    'tests/deploy/test_quantize.py::test_products_with_sizes_are_found',
    'tests/apis/test_export.py::test_label_maps_in_openvino',
)


@pytest.mark.slow
def test_in_a_process_of_their_own():
    pytest.importorskip('openvino')
    pytest.importorskip('nncf')
    pytest.importorskip('mmseg')
    command = [sys.executable, '-m', 'pytest', '-q', '--thorough', '-p', 'no:xdist', '-p', 'no:cacheprovider', *TESTS]
    variables = {name: value for name, value in os.environ.items() if not name.startswith(('PYTEST', 'COV_'))}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=560)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert f'{len(TESTS)} passed' in done.stdout
