"""The teacher: from a run, a file, a name or a config to frozen networks that were checked and placed.

`networks` reads them, `frozen` makes of them what the steps take, `check` measures it before a step is spent.
"""

from big_distill.teacher.frozen import abstract, freeze, load, plain
from big_distill.teacher.networks import announced, class_names, identity, paths_of, read

__all__ = ["abstract", "announced", "class_names", "freeze", "identity", "load", "paths_of", "plain", "read"]
