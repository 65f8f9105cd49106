# The authors' 1x recipe for iTPN-B with CLIP supervision.
_base_ = './mask-rcnn_itpn-b-pixel_8xb8-12e_coco.py'

model = dict(backbone=dict(drop_path_rate=0.1, layer_scale_init_value=0.1, relative_position='decomposed'))
