"""Networks of mmitpn. Importing this package registers all that the installed hosts allow."""

from . import backbones, detectors, necks

__all__ = ['backbones', 'detectors', 'necks']
