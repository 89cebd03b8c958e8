"""Makes the teacher: reads networks from a run, a file, a name or a config, freezes, checks and places them.

`networks` reads them, `frozen` makes the `Teacher` that the steps take, and `check` measures it before the first step.
"""

from big_distill.teacher.frozen import abstract, freeze, load, plain
from big_distill.teacher.networks import announced, class_names, identity, paths_of, read

__all__ = ["abstract", "announced", "class_names", "freeze", "identity", "load", "paths_of", "plain", "read"]
