"""What the scripts beside this folder share: a script describes a figure or a table, and `Study.main` runs it.

`study` (the description, the options and the run), `table` (finished cells in a csv file), `images` (data sets),
`verdict` (the paper's claims against the results).

There are no studies on data that no registry of the fetchers has: [JR] figure 5 and table V (ImageNet), the LaRED
columns of table II, and the ImageNet row of table VI.

Data flow: options -> cells -> run(data, **settings) -> csv -> rows -> figure (png) and verdict (json).
"""

from .images import Images
from .study import Study
from .verdict import Verdict, mean_and_error

__all__ = ["Images", "Study", "Verdict", "mean_and_error"]
