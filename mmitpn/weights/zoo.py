"""The table of weights that have a name: what the authors of Fast-iTPN and iTPN released, and what comes with mmitpn.

The authors published pre-trained and classification weights, on Google Drive and Baidu; no detector and no segmentor.
Their repository has no LICENSE file, so that their files are named here and redistributed nowhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

SCHEME = 'mmitpn://'
AUTHORS_LICENSE = "the authors' repository has no LICENSE file; headers of its sources say MIT"
THIRD_PARTY = "a third party's record"


@dataclass(frozen=True, kw_only=True)
class WeightsEntry:
    """Weights that have a name. None stands for what is unknown.

    Attributes:
        name: The name.
        class_name: Class of the backbone, ``'FastITPN'`` or ``'ITPN'``.
        arch: Its ``arch``.
        params: Parameters in millions, as published; of the whole model for a complete one.
        pretraining: What the weights were trained on and how.
        license: Remark on the license.
        file: Name of the file; None: the authors' is unknown, and the file is kept as ``NAME.pth``.
        model: Name of the model in the authors' code.
        native_size: Side of the input images in pixels.
        top1: Accuracy on ImageNet-1K in percent after fine-tuning, as published.
        top1_size: Side of the images for it, where it is not the native size.
        google: Id of the file on Google Drive.
        baidu: Id of the file on Baidu.
        baidu_password: Its password there.
        bytes: Exact size of the file.
        about_bytes: Approximate size, where the exact one is unknown.
        sha256: SHA-256 of the file.
        recorded_by: Whose record ``bytes`` and ``sha256`` are.
        remark: Further facts.
        config: Config of a complete model, below the folder of the configs; None for backbone and pyramid only.
        shipped: Path of a file that comes with mmitpn, below the folder of the configs.
    """

    name: str
    class_name: Literal['FastITPN', 'ITPN']
    arch: str
    pretraining: str
    license: str = AUTHORS_LICENSE
    params: float | None = None
    file: str | None = None
    model: str | None = None
    native_size: int | None = None
    top1: float | None = None
    top1_size: int | None = None
    google: str | None = None
    baidu: str | None = None
    baidu_password: str | None = None
    bytes: int | None = None
    about_bytes: int | None = None
    sha256: str | None = None
    recorded_by: str | None = None
    remark: str = ''
    config: str | None = None
    shipped: str | None = None

    @property
    def family(self) -> str:
        """``'Fast-iTPN'`` or ``'iTPN'``, as of :class:`mmitpn.checkpoint.FileInfo`."""
        return {'FastITPN': 'Fast-iTPN', 'ITPN': 'iTPN'}[self.class_name]

    @property
    def local_file(self) -> str:
        """Name of the file on this machine."""
        return self.file or f'{self.name}.pth'

    @property
    def sources(self) -> list[str]:
        """Where people get the file."""
        found = [f'https://drive.google.com/file/d/{self.google}'] if self.google else []
        if self.baidu:
            found.append(f'https://pan.baidu.com/s/{self.baidu} (password {self.baidu_password})')
        return found

    @property
    def address(self) -> str | None:
        """Where the file is downloaded from; None where only a browser gets it."""
        return f'https://drive.google.com/uc?id={self.google}' if self.google else None


# --- the table -------------------------------------------------------------------------------------------------------


def _fast_itpn() -> Iterator[WeightsEntry]:
    common = {
        'class_name': 'FastITPN',
        'pretraining': 'ImageNet-1K, CLIP-L teacher, 1600 epochs',
        'native_size': 224,
        'baidu_password': 'itpn',
    }
    yield WeightsEntry(
        name='fast-itpn-t',
        arch='tiny',
        file='fast_itpn_tiny_1600e_1k.pt',
        model='fast_itpn_tiny_1112_patch16_224',
        params=24,
        top1=85.1,
        google='1Ze9RkJggxxi58Dl7sqWrf2TNOSnRK4Wi',
        baidu='1H6vYLmG2pUAvL7uD7plxTQ',
        sha256='5f144a02627d08230e5e336f431a1a27fe6dbe94d5172400a30f5232ce84790a',
        recorded_by=THIRD_PARTY,
        remark='top-1 at 384 pixels: 86.2, at 512: 86.5, not released',
        **common,
    )
    yield WeightsEntry(
        name='fast-itpn-s',
        arch='small',
        file='fast_itpn_small_1600e_1k.pt',
        model='fast_itpn_small_2220_patch16_224',
        params=40,
        top1=86.4,
        google='1Wvk5kQSh8fWQCUwzAp7eaVpmOi3D5_H4',
        baidu='1aovyWpsQqB-V5M3OXoVCMA',
        remark='top-1 at 384 pixels: 86.95, at 512: 87.8',
        **common,
    )
    yield WeightsEntry(
        name='fast-itpn-b',
        arch='base',
        file='fast_itpn_base_clipl_e1600.pt',
        model='fast_itpn_base_3324_patch16_224',
        params=85,
        top1=87.4,
        google='1ADXPV95XpWb1ROMCih1n3AD52fGdr8C_',
        baidu='1R-FfMAx-wmIUSJR-JUVnVw',
        bytes=180_830_695,
        sha256='626fd426dd89b2681d8b3942fa00e05fffb467af111c7bbd6a0a4b8bc0afc388',
        recorded_by=THIRD_PARTY,
        remark='fp16; top-1 at 512 pixels: 88.5',
        **common,
    )
    yield WeightsEntry(
        name='fast-itpn-b-in21k',
        arch='base',
        model='fast_itpn_base_3324_patch16_224',
        params=85,
        top1=88.75,
        google='1ddGbBm46FiUdNs9HPSepokhuOKhEnBdV',
        baidu='1kkX2E5Z4VwQ4joYvLyebnQ',
        **{**common, 'native_size': 512, 'pretraining': f'{common["pretraining"]} + fine-tuned on ImageNet-21K'},
    )
    yield WeightsEntry(
        name='fast-itpn-l',
        arch='large',
        file='fast_itpn_large_1600e_1k.pt',
        model='fast_itpn_large_2240_patch16_256',
        params=312,
        top1=89.5,
        google='16uybbJ23Fp7lnGNYL5I198glHGhwn_y2',
        baidu='1wbnbBkjHIUgHS_1okxMHCg',
        about_bytes=1_500_000_000,
        top1_size=640,
        **{**common, 'native_size': 256, 'pretraining': 'ImageNet-1K'},
    )


def _itpn() -> Iterator[WeightsEntry]:
    base = {'class_name': 'ITPN', 'arch': 'base', 'params': 79, 'baidu_password': 'abcd'}
    large = {'class_name': 'ITPN', 'arch': 'large', 'params': 288, 'baidu_password': 'abcd'}
    yield WeightsEntry(
        name='itpn-b-pixel',
        pretraining='pixels, 1600 epochs',
        top1=85.5,
        google='1HxW37BOEhIE9UNgHq0zblK0fTy2-IyzM',
        baidu='1DjT2qtwGX5Kg1sU5kKlfEw',
        remark='Mask R-CNN 1x, box / mask AP: 53.0 / 46.5',
        **base,
    )
    yield WeightsEntry(
        name='itpn-b-clip',
        pretraining='CLIP',
        top1=86.2,
        google='1H51Zusrvlj8RjcWA7yuUyeqaVhmndSeN',
        baidu='1__LnTBBYzpvVEmGZFt7nFw',
        remark='Mask R-CNN 1x, box / mask AP: 53.2 / 46.6',
        **base,
    )
    yield WeightsEntry(
        name='itpn-l-pixel',
        pretraining='pixels',
        google='1TYCaepVflm0xMrQefG5Sj4ityXYbJLFt',
        baidu='1zy__QWtAhRyUHqKlTjKBGw',
        remark='Mask R-CNN 1x, box / mask AP: 55.6 / 48.6',
        **large,
    )
    yield WeightsEntry(
        name='itpn-l-clip',
        pretraining='CLIP',
        google='1gyyjcdMvAQsz2xC7ei-rEd7G4po2spy4',
        baidu='1Gu-I3Z-25GFsfB31MQ_xZg',
        remark='Mask R-CNN 1x, box / mask AP: 55.2 / 48.2',
        **large,
    )
    large['baidu_password'] = 'itpn'
    yield WeightsEntry(
        name='itpn-l-clip-in21k', pretraining='CLIP, ImageNet-21K', baidu='1JF0_PRLth4SkiOeSjiKk2Q', **large
    )
    yield WeightsEntry(
        name='itpn-l-clip-in21k-1k',
        pretraining='CLIP, ImageNet-21K, ImageNet-1K',
        native_size=384,
        top1=89.2,
        baidu='1TtV4kuW4nao7O1osNUxKhw',
        **large,
    )


def _ours() -> Iterator[WeightsEntry]:
    yield WeightsEntry(
        name='nano-shapes',
        class_name='FastITPN',
        arch='nano',
        pretraining='complete DINO detector, trained on 2000 generated images of 5 shapes',
        license='that of mmitpn (Apache-2.0)',
        params=3.7,
        native_size=128,
        file='nano-shapes.pth',
        remark='finds circles, squares, triangles, stars and rings in generated images, nothing else; box AP 0.711 on'
        ' held-out ones',
        config='quickstart/dino_fast-itpn-nano_shapes.py',
        shipped='quickstart/nano-shapes.pth',
    )


WEIGHTS: dict[str, WeightsEntry] = {entry.name: entry for entry in (*_fast_itpn(), *_itpn(), *_ours())}


# --- search ----------------------------------------------------------------------------------------------------------


def find_weights(name: str) -> WeightsEntry:
    """Find weights by their name.

    Args:
        name: A name of ``WEIGHTS``, with or without ``mmitpn://``, or the authors' name of the file
            (``fast_itpn_base_clipl_e1600.pt``).

    Raises:
        ValueError: If nothing has that name; the message has the nearest ones.
    """
    wanted = name.removeprefix(SCHEME)
    if wanted in WEIGHTS:
        return WEIGHTS[wanted]
    by_file = {entry.file: entry for entry in WEIGHTS.values() if entry.file}
    if wanted in by_file:
        return by_file[wanted]
    near = nearest_names(wanted)
    advice = f'the nearest are {", ".join(near)}' if near else f'known: {", ".join(WEIGHTS)}'
    raise ValueError(f'no weights are called {wanted!r}; {advice} (mmitpn weights list --all shows them)')


def nearest_names(name: str) -> list[str]:
    """The names that look like a wrong one, best first; at most five."""
    plain = name.lower().replace('_', '-').replace('fastitpn', 'fast-itpn')
    return difflib.get_close_matches(plain, WEIGHTS, n=5)


def advise_on_missing(path: str) -> str:
    """What to do about a file that does not exist, where its name looks like weights that have one; '' otherwise.

    Args:
        path: The path as the user gave it.
    """
    file = PurePath(path).name
    named = next((entry.name for entry in WEIGHTS.values() if entry.file == file and not entry.shipped), None)
    if named is not None:
        return f'; give {SCHEME}{named} to download it'
    near = nearest_names(path) if not PurePath(path).suffix and file == path else []
    return f'; weights by name: {", ".join(near)}' if near else ''
