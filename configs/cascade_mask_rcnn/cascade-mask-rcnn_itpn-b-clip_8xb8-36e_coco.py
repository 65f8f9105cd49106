# The authors' 3x recipe for iTPN-B with CLIP supervision.
_base_ = './cascade-mask-rcnn_itpn-b-pixel_8xb8-36e_coco.py'

model = dict(backbone=dict(layer_scale_init_value=0.1, relative_position='decomposed'))
