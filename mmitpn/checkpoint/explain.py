"""Why a file does not fit a module: in words, with the weights and the setting that explain it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mmitpn.checkpoint.layouts import FileInfo
from mmitpn.checkpoint.names import FAST, ITPN
from mmitpn.checkpoint.sizes import arch_of, pyramid_of, relative_of

KINDS = {FAST: 'fast', ITPN: 'linear'}  # of the pyramid
DEFAULT_WINDOW = 14  # tokens along the side of the pictures that the networks were pre-trained on


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few names of a list."""
    return ', '.join(names[:count]) + (f', ... ({len(names)} in all)' if len(names) > count else '')


def explain_layout(info: FileInfo) -> str:
    """Why a file of no known layout is not loaded."""
    looks = f'it looks like {info.stranger}' if info.stranger else 'it is of no known layout'
    return (
        f'these are not weights of the iTPN family: {looks} (it holds {info.examples()}). Give a Fast-iTPN, iTPN or '
        "mmitpn checkpoint; if its weights lie below a prefix, name it: prefix='teacher.'"
    )


def explain_family(info: FileInfo, family: str, *, pyramid: bool) -> str:
    """Why a file of one family is not loaded into a module of the other.

    Args:
        info: The file.
        family: The module's family.
        pyramid: Whether the module is the pyramid.
    """
    use = (
        f"set kind='{KINDS[info.family]}' on the neck" if pyramid else f'set {backbone_settings(info)} on the backbone'
    )
    return (
        f'wrong family: this is {info.title} (it holds {info.examples()}). Its blocks are built differently from '
        f"{family}'s and cannot be converted into them: give a {family} checkpoint, or {use}"
    )


def backbone_settings(info: FileInfo) -> str:
    """The backbone's settings for a file, as one writes them into a config."""
    fast = info.family == FAST
    settings = [f"type='mmitpn.{'FastITPN' if fast else 'ITPN'}'"]
    settings += [info.arch.setting] if info.arch else []
    if info.layer_scale is not None and info.layer_scale != fast:
        settings.append(f'layer_scale_init_value={0.1 if info.layer_scale else None}')
    if info.relative_position:
        settings.append(f'relative_position={info.relative_position!r}')
        if info.relative_window != DEFAULT_WINDOW:
            settings.append(f'relative_window={info.relative_window}')
    return ', '.join(settings)


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
    gammas = ('.gamma', '.gamma_1', '.gamma_2')
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
    if info.family == ITPN and info.relative_position and relative_of(own)[0] is None:
        return (
            f'the file has relative positions ({info.relative_position}), the module has none: set '
            f'relative_position={info.relative_position!r} on the backbone'
        )
    if sorted(unexpected) == ['norm.bias', 'norm.weight'] and not missing:
        return (
            "the file's last norm stands before pooling, the module has none there: set final_norm=True on the "
            'backbone and with_norm=False on the head'
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
    if theirs.family != ours.family:
        settings.append(f"kind='{theirs.kind}' on the neck")
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
