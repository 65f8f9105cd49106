"""What is installed here, and what is wrong with it: ``python -m mmitpn.doctor``.

Nothing but the standard library is imported with it: it is there for the day on which torch or a host is broken.
"""

from .command import diagnose, main
from .found import Diagnosis, Problem

__all__ = ['Diagnosis', 'Problem', 'diagnose', 'main']
