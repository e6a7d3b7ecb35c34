"""Faults to be planted in a world, one at a time: what is planted → a function that spoils the world and returns
the kinds that the checkers must report, all of them, in the words of `dev/check`."""

PLANTED = {}


def spoil(name):
    def register(function):
        assert name not in PLANTED, name
        PLANTED[name] = function
        return function

    return register


def first_row_with(world, column):
    return next(row for row in world.rows if row[column] is not None)


from . import days, dead_letters, files, ledger, rows  # noqa: E402, F401
