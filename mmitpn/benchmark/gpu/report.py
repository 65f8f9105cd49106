"""The report on a GPU: rows that are measured in order, kept in a file after each, and not measured twice."""

from __future__ import annotations

import json
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mmitpn.benchmark.gpu.aims import aims_table
from mmitpn.benchmark.speed import describe_machine

SECTIONS = ('peak', 'operators', 'models', 'attention', 'waits', 'detectors', 'kernels', 'tokens', 'sizes', 'settings')
Row = dict[str, Any]


class RowSkippedError(Exception):
    """A row cannot be measured here; the text is the reason that the report shows."""


class _TimeUp(BaseException):
    """The report's time is over; torch's handlers of ``Exception`` let it through."""


@dataclass(frozen=True)
class PlannedRow:
    """A row that is to be measured.

    Attributes:
        section: One of ``SECTIONS``.
        name: Its name, once in its section.
        call: Measures it.
        seconds: What it takes on an H200, from its start to the next row. Where less time is left it is not started.
    """

    section: str
    name: str
    call: Callable[[], Row]
    seconds: float

    @property
    def key(self) -> str:
        """Its name in the report."""
        return f'{self.section}: {self.name}'


class GpuReport:
    """``report.json``, ``report.md`` and ``errors.log`` in a folder, with the rows of earlier runs on the same card.

    Args:
        out: The folder; made if it is not there.
        device: What is measured.
        console: Shows each row when it is done.
        deadline: Time (``time.time``) at which the report ends; a row in progress is stopped then. None: no limit.

    Raises:
        ValueError: If the folder has a report of another card, another torch, or a file that is none.
    """

    def __init__(self, out: Path, device: torch.device, console: Console, *, deadline: float | None = None) -> None:
        self.out, self.device, self.console, self.deadline = out, device, console, deadline
        self.file = out / 'report.json'
        self.platform = {'device': device.type, 'torch': torch.__version__}
        if device.type == 'cuda':
            self.platform |= {'card': torch.cuda.get_device_name(device), 'cuda': torch.version.cuda}
        self.rows: dict[str, Row] = {}
        if self.file.is_file():
            self.rows = self._read()
        out.mkdir(parents=True, exist_ok=True)

    def _read(self) -> dict[str, Row]:
        try:
            found = json.loads(self.file.read_text(encoding='utf-8'))
            platform, rows = found['platform'], found['rows']
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{self.file} is not a report of this tool; remove it or give another folder') from error
        if platform != self.platform:
            raise ValueError(f'{self.file} is of {platform}, and this is {self.platform}; give another folder')
        return rows

    @property
    def failed(self) -> list[str]:
        """The rows that failed."""
        return [key for key, row in self.rows.items() if 'failed' in row]

    def peak(self, dtype: str) -> float | None:
        """The largest rate of matrix products that was measured here, in TFLOP/s; None without its row."""
        return self.rows.get(f'peak: GEMM {dtype}', {}).get('TFLOP/s')

    def run(self, planned: Sequence[PlannedRow]) -> None:
        """Measure rows that are missing, failed, or were skipped."""
        for row in planned:
            earlier = self.rows.get(row.key)
            if earlier is None or 'failed' in earlier or 'skipped' in earlier:
                self._add(row)
        self._write()

    def _add(self, planned: PlannedRow) -> None:
        start = time.time()
        left = None if self.deadline is None else self.deadline - start
        if left is not None and left < planned.seconds:
            row: Row = {'skipped': f'takes about {planned.seconds:g} s, and {max(left, 0):.0f} s were left'}
        else:
            row = self._measure(planned, left)
            row['took_s'] = time.time() - start
        self.rows[planned.key] = {'section': planned.section, 'name': planned.name, **row}
        text = ', '.join(f'{key} {_shown(value)}' for key, value in row.items() if key != 'took_s')
        taken = f'[{row.get("took_s", 0.0):5.1f} s]'
        self.console.print(f'{taken} {planned.key}: {text}', markup=False, highlight=False, soft_wrap=True)
        self._write()
        torch._dynamo.reset()
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()

    def _measure(self, planned: PlannedRow, left: float | None) -> Row:
        """The row's figures; what prevents them becomes the row's text, and the report measures the next one."""
        try:
            with _time_limit(left):
                return planned.call()
        except _TimeUp:
            return {'skipped': f'stopped after {left:.0f} s, the time that was left'}
        except RowSkippedError as reason:
            return {'skipped': str(reason)}
        except ModuleNotFoundError as error:
            return {'skipped': f'{error.name} is not installed'}
        except Exception as error:  # noqa: BLE001 (a report names what fails and measures the rest)
            with (self.out / 'errors.log').open('a', encoding='utf-8') as log:
                log.write(f'{planned.key}\n{traceback.format_exc()}\n')
            return {'failed': f'{type(error).__name__}: {" ".join(str(error).split())[:400]}'}

    def _write(self) -> None:
        """Write the JSON and the Markdown."""
        machine = self.platform | describe_machine()
        content = {'platform': self.platform, 'machine': machine, 'rows': self.rows}
        self.file.write_text(json.dumps(content, indent=1), encoding='utf-8')
        lines = ['# GPU report', '', ', '.join(f'{key} {value}' for key, value in machine.items()), '']
        lines += aims_table(self.rows)
        for section in SECTIONS:
            rows = [row for row in self.rows.values() if row['section'] == section]
            columns = list(dict.fromkeys(key for row in rows for key in row if key not in ('section', 'took_s')))
            if rows:
                lines += [f'## {section}', '', f'| {" | ".join(columns)} |', f'|{"---|" * len(columns)}']
                lines += [f'| {" | ".join(_shown(row.get(key, "")) for key in columns)} |' for row in rows] + ['']
        (self.out / 'report.md').write_text('\n'.join(lines), encoding='utf-8')


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raise :class:`_TimeUp` in this block after some seconds; only a process's first thread can be interrupted."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TimeUp

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def _shown(value: Any) -> str:
    text = f'{value:.4g}' if isinstance(value, float) else str(value)
    return text.replace('|', '/').replace('\n', ' ')
