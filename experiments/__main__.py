"""`python -m experiments NAME` runs the experiment in the file of that name."""

import importlib
import pkgutil
import sys

import experiments


def main(words: list[str]) -> int:
    """Runs the experiment that the first word names, with the other words as its arguments.

    Returns:
      The exit status: the experiment's own, 0 where it has none; 2 for a user's mistake, with one line on standard
      error.
    """
    names = [module.name for module in pkgutil.iter_modules(experiments.__path__) if not module.name.startswith("_")]
    names = [name for name in names if not name.endswith("_test")]
    if words[:1] in (["-h"], ["--help"]):
        print(
            f"usage: python -m experiments NAME ...\n\nNAME is one of {', '.join(names)}; NAME --help lists its flags."
        )
        return 0
    if not words or words[0] not in names:
        asked = f"there is no experiment {words[0]!r}; " if words else ""
        print(f"{asked}known: {', '.join(names)}", file=sys.stderr)
        return 2
    try:
        status: int | None = importlib.import_module(f"experiments.{words[0]}").main(words[1:])
    except ValueError as error:
        # by its name: neither package is to be imported here, as memory and start-up are measured from here
        if not any(kind.__name__ == "UserError" for kind in type(error).__mro__):
            raise
        print(f"experiments: {error}", file=sys.stderr)
        return 2
    return status or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
