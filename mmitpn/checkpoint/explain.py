"""Why a file does not fit a module: in words, with the weights and the setting that explain it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mmitpn.checkpoint.layouts import FOREIGN, FileInfo, arch_of, pyramid_of


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few names of a list."""
    return ', '.join(names[:count]) + (f', ... ({len(names)} in all)' if len(names) > count else '')


def explain_layout(info: FileInfo) -> str:
    """Why a file of another family is not loaded."""
    if info.layout == FOREIGN:
        looks = f'it looks like {info.stranger}' if info.stranger else 'it is of no known layout'
        return (
            f'these are not weights of a Fast-iTPN: {looks} (it holds {info.examples()}). Give a Fast-iTPN or mmitpn '
            "checkpoint; if its weights lie below a prefix, name it: prefix='teacher.'"
        )
    return (
        f'wrong family: this is {info.title} (it holds {info.examples()}). Its blocks are built differently from '
        "Fast-iTPN's and cannot be converted into them: give a Fast-iTPN checkpoint"
    )


def explain_backbone(info: FileInfo, own: Mapping[str, Tensor], missing: list[str], unexpected: list[str]) -> str:
    """Why a backbone was not completely loaded; empty if it was.

    Args:
        info: The file.
        own: State dict of the module.
        missing: Weights of the module without a value.
        unexpected: Weights of the file without a place.
    """
    if not missing and not unexpected:
        return ''
    if info.arch is None:
        return f'there is no backbone in the file, or it is cut off (it holds {info.examples()})'
    arch = arch_of(own)
    if arch is not None and info.arch != arch:
        cut = '' if info.arch.name else ', or the file is cut off'
        return (
            f'the file looks like {info.arch}, the module is {arch}: set {info.arch.setting} on the backbone{cut} '
            f'(first names that do not fit: {some(missing + unexpected, 2)})'
        )
    gammas = ('.gamma_1', '.gamma_2')
    scaled = any(name.endswith(gammas) for name in own)
    if info.layer_scale and not scaled:
        names = [name for name in unexpected if name.endswith(gammas)]
        return (
            f'the file has layer scale ({some(names, 2)}), the module has none because of layer_scale_init_value=None: '
            'set layer_scale_init_value=0.1 on the backbone'
        )
    if scaled and not info.layer_scale:
        names = [name for name in missing if name.endswith(gammas)]
        return (
            f'the module has layer scale ({some(names, 2)}), the file has none: '
            'set layer_scale_init_value=None on the backbone'
        )
    return _rest('backbone', own, missing, unexpected)


def explain_pyramid(info: FileInfo, own: Mapping[str, Tensor], missing: list[str], unexpected: list[str]) -> str:
    """Why a pyramid was not completely loaded, though there is one in the file; arguments as for the backbone."""
    if not missing and not unexpected:
        return ''
    theirs, ours = info.pyramid, pyramid_of(own)
    if theirs is None or ours is None:
        return _rest('pyramid', own, missing, unexpected)
    settings = []
    if theirs.embed_dim != ours.embed_dim:
        channels = tuple(theirs.embed_dim // part for part in (4, 2, 1))
        settings.append(f"in_channels={channels} on the neck (and the backbone's arch that goes with it)")
    # The hidden width follows from the channels unless it is set.
    names = ('out_channels', 'depth') if theirs.out_channels != ours.out_channels else ('depth', 'hidden_channels')
    settings += [
        f'{name}={getattr(theirs, name)} on the neck' for name in names if getattr(theirs, name) != getattr(ours, name)
    ]
    if not settings:
        return _rest('pyramid', own, missing, unexpected)
    return (
        f'the pyramid in the file has {theirs} for a backbone of {theirs.embed_dim} channels, the module has {ours} '
        f'for {ours.embed_dim}: set {", ".join(settings)} '
        f'(first names that do not fit: {some(missing + unexpected, 2)})'
    )


def _rest(what: str, own: Mapping[str, Tensor], missing: list[str], unexpected: list[str]) -> str:
    reasons = []
    if missing:
        reasons.append(
            f'{len(missing)} of the {len(own)} weights of the {what} are not in the file ({some(missing)}): it is cut '
            'off or comes from another network'
        )
    if unexpected:
        reasons.append(f'the file has {what} weights that the module has no place for ({some(unexpected)})')
    return '; '.join(reasons)
