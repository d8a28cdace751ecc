"""The `torchimplicit` command. What trains is imported only when it is asked for, so that `--help` is quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

import torchimplicit
from torchimplicit.core.status import ImplicitError
from torchimplicit.train.command import catalogue
from torchimplicit.train.command.silence import quiet
from torchimplicit.train.errors import OptionError, UsageError

TRAINING = ("fit", "validate", "test", "predict")

HELP = """\
usage: torchimplicit COMMAND ...

Train models with implicit layers, and look at how their solves go.

  demo                        train on handwritten digits, about a minute
  recipes                     list the recipes that ship
  fit      --config RECIPE    train
  validate --config RECIPE    evaluate on the validation split
  test     --config RECIPE    evaluate on the test split
  predict  --config RECIPE    write predictions for the test split
  predict  CKPT FILE ...      predict from files; says which answers converged
  report   CKPT               diagnose a trained model, as one HTML file
  reconstruct K-SPACE         images of k-space; says whether they converged
  register FIXED MOVING       one image in the place of another; says likewise
  --version                   print the versions of torchimplicit and torch

RECIPE is a name (see recipes) or the path of a YAML file.
What can be changed in one:
  torchimplicit fit --config digits --help
Every setting is an option of the command:
  torchimplicit fit --config digits --model.network.solver Newton
Your own pictures, one folder a class:
  torchimplicit fit --config images --data.path photos
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 after an error of use or data, 2 after an unknown option."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"torchimplicit {torchimplicit.__version__}, torch {torch.__version__}")
        return 0
    commands: dict[str, Callable[[list[str]], None]] = {
        "recipes": _recipes,
        "report": _report,
        "reconstruct": _reconstruct,
        "register": _register,
        "demo": _demo,
        **dict.fromkeys(TRAINING, lambda words: _train(words, own_process=argv is None)),
    }
    if words[0] == "predict" and words[1:] and not words[1].startswith("-"):  # a checkpoint, not a recipe
        commands["predict"] = _predict
    if words[0] not in commands:
        return _fail(f"no command {words[0]!r}; expected one of {', '.join(sorted(commands))}")
    try:
        commands[words[0]](words)
    except OptionError as error:
        return _fail(str(error))
    except (ImplicitError, OSError, ValueError) as error:  # what the user gave, or what the machine refused
        return _fail(str(error), status=1)
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "torchimplicit":
            raise
        return _fail(f"needs the package {error.name}. Try pip install 'torchimplicit[train]'", status=1)
    return 0


def _fail(message: str, status: int = 2) -> int:
    print(f"torchimplicit: {message}", file=sys.stderr)
    return status


def _recipes(words: list[str]) -> None:
    argparse.ArgumentParser("torchimplicit recipes", description="List the recipes that ship.").parse_args(words[1:])
    catalogue.show()


def _report(words: list[str]) -> None:
    parser = argparse.ArgumentParser("torchimplicit report", description="Diagnose a trained model, as one HTML file.")
    parser.add_argument("checkpoint", metavar="CKPT", help="a .ckpt file that fit wrote")
    parser.add_argument(
        "--output", metavar="FILE", help="the HTML file (default: report.html in the folder of the run)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data sets")
    parser.add_argument("--samples", type=int, default=64, help="test samples to diagnose the layers on (default: 64)")
    parser.add_argument(
        "--trust",
        metavar="MODULE",
        action="append",
        default=[],
        help="a module of your own whose classes the checkpoint may build; may be given several times",
    )
    options = parser.parse_args(words[1:])
    with quiet():
        from torchimplicit.train.command.report import write_report

        path = write_report(
            options.checkpoint,
            options.output,
            data_dir=options.data_dir,
            samples=options.samples,
            trust=options.trust,
        )
    print(f"report: {path}")


def _predict(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "torchimplicit predict",
        description="Say what a trained model makes of files, and whether each answer converged; exit status 1 if "
        "something could not be read or did not converge.",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="a .ckpt file that fit wrote")
    parser.add_argument("files", metavar="FILE", nargs="+", help="pictures, texts or tables, or folders of these")
    parser.add_argument("--out", metavar="PLACE", help="a .csv file; for masks a folder (default: the screen)")
    parser.add_argument("--count", type=int, default=100, help="tokens to say after a text (default: 100)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of these; low prefers likely ones (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of these (default: 0)")
    parser.add_argument("--trust", metavar="MODULE", action="append", default=[], help="see torchimplicit report")
    given = vars(parser.parse_args(words[1:]))
    with quiet():
        from pathlib import Path

        from torchimplicit.train.command.predicting.run import Question, predict

        given["out"] = Path(given["out"]) if given["out"] else None
        predict(Question(**given))


def _reconstruct(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "torchimplicit reconstruct",
        description="Make images of k-space, slice by slice; exit status 1 if one of them did not converge.",
    )
    parser.add_argument("kspace", metavar="K-SPACE", help=".npy, .npz, .cfl of BART, or HDF5 of fastMRI or of ISMRMRD")
    parser.add_argument("--maps", metavar="FILE", help="coil sensitivities (default: beside k-space, or estimated)")
    parser.add_argument(
        "--method", default="ridge", help="zero-filled, cg-sense, tv, wavelet, ridge (default), or a .ckpt of fit"
    )
    parser.add_argument("--weight", type=float, help="of the regulariser, in units of the image's largest magnitude")
    parser.add_argument("--rtol", type=float, help="relative tolerance of the solve")
    parser.add_argument("--max-steps", type=int, help="of the solve")
    parser.add_argument("--slices", metavar="FIRST:END", type=_range, default=slice(None), help="(default: all)")
    parser.add_argument(
        "--out", metavar="FILE", action="append", default=[], help=".npy, .nii, .nii.gz or .png; may be given again"
    )
    parser.add_argument("--report", metavar="FILE", help="an HTML file")
    parser.add_argument("--trust", metavar="MODULE", action="append", default=[], help="see torchimplicit report")
    given = parser.parse_args(words[1:])
    with quiet():
        from pathlib import Path

        from torchimplicit.train.command.methods import Choice
        from torchimplicit.train.command.reconstruct import reconstruct

        choice = Choice(given.method, given.weight, given.rtol, given.max_steps, given.trust)
        maps, report = (None if each is None else Path(each) for each in (given.maps, given.report))
        reconstruct(Path(given.kspace), maps, choice, given.slices, [Path(each) for each in given.out], report)


def _register(words: list[str]) -> None:
    given = _registration().parse_args(words[1:])
    with quiet():
        from torchimplicit.train.command.register.order import Order
        from torchimplicit.train.command.register.run import register

        register(Order(**vars(given)))


def _registration() -> argparse.ArgumentParser:
    from pathlib import Path

    parser = argparse.ArgumentParser(
        "torchimplicit register",
        description="Find where a moving image has what a fixed one shows; exit status 1 if that did not converge.",
    )
    parser.add_argument("fixed", metavar="FIXED", type=Path, help="a volume, .nii or .nii.gz, or a picture, .png")
    parser.add_argument("moving", metavar="MOVING", type=Path, help="likewise; its size and place may be others")
    parser.add_argument(
        "--kind",
        default="velocity",
        help="rigid, similarity, affine, demons, bspline, variational, or velocity (default: without folds)",
    )
    parser.add_argument(
        "--similarity",
        help="ncc, lncc, ssd, or mi, which is for images of different kinds (default: the kind's own)",
    )
    parser.add_argument(
        "--initial",
        default="world",
        help="world (default: as the files say), centers, a linear .tfm or .txt of ITK, or a field, .nii or .nii.gz",
    )
    parser.add_argument("--max-steps", type=int, help="of the last solve of every stage")
    for name, words_of_it in (
        ("--fixed-mask", "not zero where the fixed image counts; elsewhere it is not looked at"),
        ("--moving-mask", "not zero where the moving image counts"),
        ("--labels", "integers on the moving image, to be warped with it"),
        ("--fixed-labels", "integers on the fixed image, for Dice"),
        ("--out", "the moving image in the place of the fixed one"),
        ("--out-labels", "its labels there"),
        ("--field", "displacements from fixed to moving places, as ITK and ANTs have them, .nii or .nii.gz"),
        ("--inverse", "those that lead back, on the moving grid, likewise"),
        ("--transform", "of a linear kind: ITK's text, .tfm or .txt"),
        ("--report", "an HTML file"),
    ):
        parser.add_argument(name, metavar="FILE", type=Path, help=words_of_it)
    return parser


def _range(words: str) -> slice:
    """A slice of the form 3:8, or one number."""
    first, colon, end = words.partition(":")
    if not colon:
        return slice(int(first), int(first) + 1)
    return slice(int(first) if first else None, int(end) if end else None)


def _demo(words: list[str]) -> None:
    parser = argparse.ArgumentParser("torchimplicit demo", description="Train on handwritten digits, about a minute.")
    parser.add_argument("--epochs", type=int, help="fewer or more than the recipe says")
    options = parser.parse_args(words[1:])
    with quiet():
        from torchimplicit.train.command.demo import run

        run(options.epochs)


def _train(words: list[str], own_process: bool) -> None:
    given = {word.partition("=")[0] for word in words[1:]}
    if not given & {"-c", "--config", "--model", "-h", "--help"}:
        names = ", ".join(catalogue.shipped())
        raise UsageError(f"{words[0]}: which recipe? Try torchimplicit {words[0]} --config NAME ({names}).")
    with quiet():
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        from torchimplicit.train.command.mistakes import explained
        from torchimplicit.train.command.options import show
        from torchimplicit.train.command.trainer_cli import RecipeCLI

        recipe = catalogue.named(words)
        if recipe and given & {"-h", "--help"}:
            show(recipe, words[0])
            return
        try:
            RecipeCLI(None if own_process else words)
        except OptionError as error:
            raise explained(str(error), words) from error
        except MisconfigurationException as error:
            raise UsageError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
