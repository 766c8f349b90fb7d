"""What the scripts beside this folder share: a script describes a figure or a table, and `Study.main` runs it.

`study` (the description, the options and the run), `table` (finished cells in a csv file), `images` (data sets),
`verdict` (the paper's claims against the results).

Data flow: options -> cells -> run(data, **settings) -> csv -> rows -> figure (png) and verdict (json).
"""

from .images import Images
from .study import Study
from .verdict import Verdict, mean_and_error

__all__ = ["Images", "Study", "Verdict", "mean_and_error"]
