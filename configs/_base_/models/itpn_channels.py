# Channels of the maps at strides 4, 8, 16 (C/4, C/2, C) of every size, of Fast-iTPN and iTPN alike: what a neck takes.
channels = dict(
    nano=(48, 96, 192),
    tiny=(96, 192, 384),
    small=(96, 192, 384),
    base=(128, 256, 512),
    large=(192, 384, 768),
)
