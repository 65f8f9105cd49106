# The authors' 1x recipe for iTPN-L with CLIP supervision.
_base_ = './mask-rcnn_itpn-l-pixel_8xb8-12e_coco.py'

model = dict(backbone=dict(layer_scale_init_value=0.1, relative_position='decomposed'))
