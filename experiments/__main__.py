"""`python -m experiments NAME` runs the experiment or makes the figure in the file of that name.

python -m experiments --list          # what there is
python -m experiments all --quick     # every figure, from short trainings on digits
python -m experiments convergence     # one figure, from trainings on MNIST
"""

import importlib
import sys

from experiments import modules


def main(words: list[str]) -> int:
    """Runs the experiment that the first word names, with the other words as its arguments.

    Returns:
      The exit status: the experiment's own, 0 where it has none; 2 for a user's mistake, with one line on standard
      error.
    """
    names, figures = modules("experiments"), modules("experiments.figures")
    names.remove("figures")
    if words[:1] in (["-h"], ["--help"]):
        print(
            f"usage: python -m experiments NAME ...\n\nNAME is one of {', '.join(names)};\n"
            f"or a figure: all, {', '.join(figures)}.\nNAME --help lists its flags; --list says what each figure shows."
        )
        return 0
    if words == ["--list"]:
        print(*importlib.import_module("experiments.figures._framework").listed(), sep="\n")
        return 0
    if not words or words[0] not in (*names, "all", *figures):
        asked = f"there is no experiment {words[0]!r}; " if words else ""
        print(f"{asked}known: {', '.join(names)}, all, {', '.join(figures)}", file=sys.stderr)
        return 2
    try:
        if words[0] in names:
            status: int | None = importlib.import_module(f"experiments.{words[0]}").main(words[1:])
        else:
            status = importlib.import_module("experiments.figures._framework").main(words[0], words[1:])
    except ValueError as error:
        # by its name: neither package is to be imported here, as memory and start-up are measured from here
        if not any(kind.__name__ == "UserError" for kind in type(error).__mro__):
            raise
        print(f"experiments: {error}", file=sys.stderr)
        return 2
    return status or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
