"""ID-Selection and its peers: visual token selection for vision-language models.

All public names are here; each is loaded when it is first used, so that the selection alone needs torch alone.
"""

import lazy_loader

# The names stand in __init__.pyi, where type checkers and editors read them too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
