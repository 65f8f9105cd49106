"""Names of MaskDINO's weights as its authors released them (IDEA-Research/MaskDINO, on detectron2), and ours."""

from __future__ import annotations

import re

PIXEL_DECODER, PREDICTOR = 'sem_seg_head.pixel_decoder.', 'sem_seg_head.predictor.'
# Where the released files keep it, and no module of ours needs it: the class weights of the softmax loss.
IGNORED = ('criterion.empty_weight',)

# Beginnings of released names to ours; the first that fits counts. One box head and one norm are there several times.
_RULES = (
    (r'sem_seg_head\.pixel_decoder\.transformer\.(level_embed|encoder\.)', r'pixel_decoder.\1'),
    (r'sem_seg_head\.pixel_decoder\.adapter_1\.norm\.', r'pixel_decoder.lateral.gn.'),
    (r'sem_seg_head\.pixel_decoder\.adapter_1\.', r'pixel_decoder.lateral.conv.'),
    (r'sem_seg_head\.pixel_decoder\.layer_1\.norm\.', r'pixel_decoder.output.gn.'),
    (r'sem_seg_head\.pixel_decoder\.layer_1\.', r'pixel_decoder.output.conv.'),
    (r'sem_seg_head\.pixel_decoder\.', r'pixel_decoder.'),
    (r'sem_seg_head\.predictor\.(_bbox_embed|(decoder\.)?bbox_embed\.\d+)\.', r'predictor.box_embed.'),
    (r'sem_seg_head\.predictor\.decoder_norm\.', r'predictor.decoder.norm.'),
    (r'sem_seg_head\.predictor\.enc_output_norm\.', r'predictor.memory_norm.'),
    (r'sem_seg_head\.predictor\.enc_output\.', r'predictor.memory_proj.'),
    (r'sem_seg_head\.predictor\.label_enc\.', r'predictor.label_embed.'),
    (r'sem_seg_head\.predictor\.query_feat\.', r'predictor.query_content.'),
    (r'sem_seg_head\.predictor\.query_embed\.', r'predictor.query_boxes.'),
    (r'sem_seg_head\.predictor\.', r'predictor.'),
)
# Inside a layer; the released decoder numbers its norms by what they were in another model.
_FEED_FORWARD = ((r'\.linear1\.', '.ffn.layers.0.0.'), (r'\.linear2\.', '.ffn.layers.1.'))
_ENCODER = (*_FEED_FORWARD, (r'\.norm1\.', '.norms.0.'), (r'\.norm2\.', '.norms.1.'))
_DECODER = (
    *_FEED_FORWARD,
    (r'\.norm2\.', '.norms.0.'),
    (r'\.norm1\.', '.norms.1.'),
    (r'\.norm3\.', '.norms.2.'),
    (r'\.self_attn\.', '.self_attn.attn.'),
)


def our_name(released: str) -> str | None:
    """Our name of a weight, below the head's own; None for what is no part of the head."""
    for pattern, replacement in _RULES:
        ours, found = re.subn('^' + pattern, replacement, released)
        if found:
            break
    else:
        return None
    for start, rules in (('pixel_decoder.encoder.layers.', _ENCODER), ('predictor.decoder.layers.', _DECODER)):
        if ours.startswith(start):
            for pattern, replacement in rules:
                ours, found = re.subn(pattern, replacement, ours, count=1)
    return ours


# detectron2's ResNet to mmdet's; stages are counted in `resnet_name`.
_RESNET = (
    (r'stem\.conv1\.norm\.(\w+)', r'bn1.\1'),
    (r'stem\.conv1\.(\w+)', r'conv1.\1'),
    (r'(res\d\.\d+)\.conv(\d)\.norm\.(\w+)', r'\1.bn\2.\3'),
    (r'(res\d\.\d+)\.conv(\d)\.(\w+)', r'\1.conv\2.\3'),
    (r'(res\d\.\d+)\.shortcut\.norm\.(\w+)', r'\1.downsample.1.\2'),
    (r'(res\d\.\d+)\.shortcut\.(\w+)', r'\1.downsample.0.\2'),
)


def resnet_name(released: str) -> str | None:
    """Name in mmdet of a weight of detectron2's ResNet, both below the backbone's own; None for what is none."""
    for pattern, replacement in _RESNET:
        name, found = re.subn(f'^{pattern}$', replacement, released)
        if found:
            stage = re.match(r'res(\d)\.', name)
            return f'layer{int(stage[1]) - 1}.{name[len(stage[0]) :]}' if stage else name
    return None
