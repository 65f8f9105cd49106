"""MaskDINO's head with the weights and settings of a case of reference outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmitpn.checkpoint import read_checkpoint
from mmitpn.checkpoint.mask_dino_keys import load_mask_dino_checkpoint
from mmitpn.models.heads import MaskDINOHead
from mmitpn.models.mask_dino.core import CROSS_ENTROPY
from mmitpn.models.mask_dino_postprocess import LayerOutputs


class MaskDINOCase(nn.Module):
    """A head that returns the stages of a case by name.

    Args:
        head: The head.
        names: Names of its input maps, finest first.
    """

    def __init__(self, head: MaskDINOHead, names: list[str]) -> None:
        super().__init__()
        self.head = head
        self.names = names

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Any]:
        """Compute every stage.

        Args:
            features: Maps by name (``res2`` ...), ``(B, C, H, W)``.

        Returns:
            As in the reference: ``pixel_decoder`` (``mask_features``, ``multi_scale``), ``decoder_levels``, ``outputs``
            (``final``, ``aux0`` ... , ``interm``, each with ``pred_logits``, ``pred_boxes`` and ``pred_masks``),
            ``token_scores``, ``topk`` and ``topk_scores`` (with query selection), ``refpoint_init_sigmoid`` and
            ``references`` (boxes that each layer starts from, by the layer's number as a string).
        """
        mask_features, levels = self.head.pixel_decoder([features[name] for name in self.names])
        decoded = self.head.predictor(mask_features, levels)
        outputs = {f'aux{i}': _as_dict(decoded.layers.layer(i)) for i in range(len(decoded.layers.logits) - 1)}
        outputs['final'] = _as_dict(decoded.last)
        stages: dict[str, Any] = {
            'pixel_decoder': {'mask_features': mask_features, 'multi_scale': levels},
            'decoder_levels': [tuple(level.shape[-2:]) for level in levels[::-1]],
            'outputs': outputs,
            'refpoint_init_sigmoid': decoded.references[0],
            'references': {str(i): boxes for i, boxes in enumerate(decoded.references)},
        }
        if decoded.selected is not None:
            outputs['interm'] = _as_dict(decoded.encoder)
            scores, index = decoded.selected.scores, decoded.selected.index
            stages['token_scores'] = scores
            stages['topk'], stages['topk_scores'] = index, scores.gather(1, index)
        return stages


def _as_dict(outputs: LayerOutputs) -> dict[str, Tensor]:
    return {'pred_logits': outputs.logits, 'pred_boxes': outputs.boxes, 'pred_masks': outputs.masks()}


def build_mask_dino_case(case: Mapping[str, Any], checkpoint: str | os.PathLike | Mapping[str, Any]) -> MaskDINOCase:
    """Build MaskDINO's head with the settings and weights of a case of reference outputs.

    Args:
        case: ``constructor`` of the released modules: ``encoder`` and ``decoder``, their keyword arguments.
        checkpoint: Weights in the released layout: a dict of tensors, wrapped or raw, or a file.

    Returns:
        The network, in evaluation mode and fp32, with the behavior of the released code (``released=True``).

    Raises:
        ValueError: If a setting is not supported, or the weights do not match the head.
    """
    encoder, decoder = case['constructor']['encoder'], case['constructor']['decoder']
    shapes = encoder['input_shape']
    names = sorted(shapes, key=lambda name: shapes[name]['stride'])
    softmax = decoder.get('semantic_ce_loss', False)
    head = MaskDINOHead(
        [shapes[name]['channels'] for name in names],
        [shapes[name]['stride'] for name in names],
        num_things_classes=decoder['num_classes'],
        feat_channels=encoder['conv_dim'],
        out_channels=encoder['mask_dim'],
        num_queries=decoder['num_queries'],
        two_stage=decoder['two_stage'],
        learn_queries=decoder['learn_tgt'],
        box_start=decoder['initialize_box_type'],
        denoising={'kind': decoder['dn'], 'num_queries': decoder['dn_num'], 'noise_scale': decoder['noise_scale']},
        released=True,
        pixel_decoder={
            'num_inputs': len(encoder['transformer_in_features']),
            'num_levels': encoder['total_num_feature_levels'],
            'num_layers': encoder['transformer_enc_layers'],
            'num_heads': encoder['transformer_nheads'],
            'feedforward_channels': encoder['transformer_dim_feedforward'],
            'order': encoder['feature_order'],
        },
        decoder={'num_layers': decoder['dec_layers'], 'feedforward_channels': decoder['dim_feedforward']},
        **({'loss_cls': CROSS_ENTROPY} if softmax else {}),
    )
    load_mask_dino_checkpoint(head, checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint))
    return MaskDINOCase(head, names).float().eval()
