"""Random combinations of parameters, data, modules and calls.

A case is reproduced from its seed and number alone::

    python -m tests.combinations estimators 7 --first 123 --cases 1

Each call has to return, or to refuse by a ValueError or TypeError with a message; what it returns has to be
finite, and the models, the random numbers and the settings of the process have to be as they were.
"""
