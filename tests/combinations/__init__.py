"""Random combinations of parameters, data, modules and calls.

A case is made again from its seed and number alone::

    python -m tests.combinations estimators 7 --first 123 --cases 1

Each call has to answer, or to refuse by a ValueError or TypeError that says something; what it answers has to be
finite, and the models, the random numbers and the settings of the process have to be as they were.
"""
