"""What must fit together in a DINO, said before it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

# The detector works these out itself.
_HEAD_SETTINGS = ('share_pred_layer', 'num_pred_layer', 'as_two_stage')
_DN_SETTINGS = ('num_classes', 'num_queries', 'hidden_dim', 'embed_dims', 'num_matching_queries')


def check_count(name: str, value: Any) -> None:
    """Raise unless ``value`` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f'{name} is {value!r}; give a whole number of at least 1')


def check_head(bbox_head: Mapping, *, num_queries: int, test_cfg: Mapping | None) -> None:
    """Check the head's settings against the detector's.

    Raises:
        ValueError: If the head has settings the detector makes, or fewer candidates than ``max_per_img`` asks for.
    """
    given = [name for name in _HEAD_SETTINGS if name in bbox_head]
    if given:
        raise ValueError(f'bbox_head sets {", ".join(given)}; mmitpn.DINO sets these itself: leave them out')
    if 'num_classes' not in bbox_head:
        raise ValueError('bbox_head has no num_classes; give the number of categories of the data')
    check_count('num_classes of bbox_head', bbox_head['num_classes'])
    candidates = num_queries * bbox_head['num_classes']
    wanted = (test_cfg or {}).get('max_per_img', num_queries)
    if wanted > candidates:
        raise ValueError(
            f'test_cfg.max_per_img is {wanted}, but {num_queries} queries of {bbox_head["num_classes"]} classes give'
            f' {candidates} candidates: set max_per_img to at most {candidates}, or raise num_queries'
        )


def check_denoising(dn_cfg: Mapping) -> None:
    """Check the settings of the denoising queries.

    Raises:
        ValueError: If a setting is one the detector makes, a noise is not above zero, or a count not at least 1.
    """
    given = [name for name in _DN_SETTINGS if name in dn_cfg]
    if given:
        raise ValueError(f'dn_cfg sets {", ".join(given)}; mmitpn.DINO sets these itself: leave them out')
    for name in ('label_noise_scale', 'box_noise_scale'):
        if not dn_cfg.get(name, 1.0) > 0:
            raise ValueError(f'dn_cfg.{name} is {dn_cfg[name]!r}; give a number above 0 (DINO: 0.5 labels, 1.0 boxes)')
    groups = dn_cfg.get('group_cfg') or {}
    name, default = ('num_dn_queries', 100) if groups.get('dynamic', True) else ('num_groups', None)
    check_count(f'dn_cfg.group_cfg.{name}', groups.get(name, default))


def check_levels(name: str, attention: Mapping, num_feature_levels: int) -> None:
    """Raise unless a deformable attention is set for ``num_feature_levels`` levels (its own default is 4)."""
    if attention.get('num_levels', 4) != num_feature_levels:
        raise ValueError(
            f'{name}.num_levels is {attention.get("num_levels", "4 (by default)")}, but num_feature_levels is'
            f' {num_feature_levels}: set both to the number of maps the neck gives'
        )


def check_widths(widths: Mapping[str, int]) -> None:
    """Raise unless all parts are equally wide; ``widths`` names the setting of each."""
    if len(set(widths.values())) > 1:
        seen = ', '.join(f'{name} = {width}' for name, width in widths.items())
        raise ValueError(f'the parts of DINO differ in width: {seen}; set all to the same number')


def check_neck(neck: nn.Module, neck_cfg: Mapping, *, embed_dims: int, num_feature_levels: int) -> None:
    """Check what the neck says of itself, or its config does; what neither says is seen at the first picture.

    Raises:
        ValueError: If its width is not ``embed_dims`` or its number of maps not ``num_feature_levels``.
    """
    told = neck_cfg if isinstance(neck_cfg, Mapping) else {}
    width = getattr(neck, 'out_channels', told.get('out_channels'))
    maps = getattr(neck, 'num_outs', told.get('num_outs'))
    _check_maps(
        width if isinstance(width, int) else embed_dims,
        maps if isinstance(maps, int) else num_feature_levels,
        embed_dims=embed_dims,
        num_feature_levels=num_feature_levels,
    )


def check_features(maps: Sequence[Tensor], *, embed_dims: int, num_feature_levels: int) -> None:
    """Check the neck's maps ``(B, C, H, W)``.

    Raises:
        ValueError: If their number or channels differ from the transformer's.
    """
    for level in maps:
        _check_maps(level.shape[1], len(maps), embed_dims=embed_dims, num_feature_levels=num_feature_levels)


def _check_maps(width: int, maps: int, *, embed_dims: int, num_feature_levels: int) -> None:
    if width != embed_dims:
        raise ValueError(
            f"the neck gives {width} channels, but the transformer is {embed_dims} wide: set the neck's out_channels"
            f' to {embed_dims}, or embed_dims of encoder, decoder and bbox_head to {width}'
        )
    if maps != num_feature_levels:
        raise ValueError(
            f"the neck gives {maps} maps, but num_feature_levels is {num_feature_levels}: set the neck's num_outs to"
            f' {num_feature_levels}, or num_feature_levels and num_levels of encoder and decoder to {maps}'
        )
