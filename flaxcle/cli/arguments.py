"""What can be written after `flaxcle`, and the help that teaches it."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any

from flaxcle.cli import commands

_ABOUT = """\
Rescales the channels of a trained network so that it survives int8, without changing what it
computes. Works on checkpoints: an orbax directory, or a .safetensors file.

A typical session:

  flaxcle spec model.safetensors --model mynet:network --output spec.json
  flaxcle equalize model.safetensors equalized.safetensors --spec spec.json --power-of-two
  flaxcle verify model.safetensors equalized.safetensors --model mynet:network
  flaxcle report equalized.safetensors
  flaxcle equalize equalized.safetensors restored.safetensors --undo
"""
_CODES = """\
exit codes:
  0  done; for verify: both compute the same
  1  verify found a difference that rounding does not explain
  2  bad usage or input: a file, a name or an option; the message says what to do
  3  unexpected: the model's code or flaxcle raised, with a traceback
  130  interrupted
"""
_CHECKPOINT = "orbax directory or .safetensors file"
_MODEL = """\
MODULE:FUNCTION of the network. The function is called without arguments and returns
(fn, inputs): fn(params, *inputs) is the network, params the tree in the checkpoint, inputs a tuple
of arrays; or fn alone, when fn(params) needs no inputs. The module is looked for in the working
directory first"""
_EXAMPLE = """\
mynet.py, for --model mynet:network:

  def network():
      def fn(params, x):
          return MyNet().apply(params, x)
      return fn, (np.load("images.npy"),)
"""
_SPEC = """\
  flaxcle spec checkpoints/100/default --model mynet:network
      finds every scale that may move and says why the others may not

  flaxcle spec model.safetensors --model mynet:network --output spec.json
      keeps it as text that can be read, diffed and edited

  flaxcle spec model.safetensors --model mynet:network --spec spec.json
      checks an edited spec: against the shapes, and against what the network computes

  flaxcle spec equalized.safetensors
      shows the spec that was stored with the checkpoint
"""
_EQUALIZE = """\
  flaxcle equalize model.safetensors equalized.safetensors --spec spec.json
  flaxcle equalize checkpoints/100/default equalized --model mynet:network --power-of-two
      writes an orbax directory; the outputs are the same bit for bit

  flaxcle equalize model.safetensors model.safetensors --spec spec.json --force
      in place; the old file stays whole until the new one is, even if the process is killed

  flaxcle equalize equalized.safetensors restored.safetensors --undo
      divides by the stored scales: the old weights to rounding, bit for bit with --power-of-two

Spec and scales are stored in the output. Fold BatchNorms before (flaxcle.fold_batch_norm).
"""
_VERIFY = """\
  flaxcle verify model.safetensors equalized.safetensors --model mynet:network
      runs the network with both on the same inputs

  flaxcle verify model.safetensors equalized.safetensors
      without the network: are the weights those of the other, times the stored scales?
"""
_REPORT = """\
  flaxcle report equalized.safetensors
      before and after, from the scales that are stored in it

  flaxcle report model.safetensors --spec spec.json
      what equalize would do

  flaxcle report equalized.safetensors --model mynet:network --html report.html
      runs the network, too: int8 before and after, layer by layer, with what to do next

  flaxcle report equalized.safetensors --json > report.json

columns of the first table, each before and after:
  max |w|  the largest weight, which sets the step of a per-tensor int8 quantizer
  spread   the range of the widest channel over that of the median one; 1 is best
  dB       signal to quantization noise of a channel in int8 with one scale for the tensor, the
           mean of the channels; 6 dB are one bit
"""


def parser() -> ArgumentParser:
    """The whole command line."""
    top = _Parser(prog="flaxcle", description=_ABOUT, epilog=_CODES)
    added = top.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    _add_show_spec(added)
    _add_equalize(added)
    _add_verify(added)
    _add_report(added)
    return top


class _Parser(ArgumentParser):
    """Keeps the lines of descriptions and examples."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=RawDescriptionHelpFormatter, **options)


def _add_show_spec(added: Any) -> None:
    command = _command(added, "spec", commands.show_spec, "find, check or show a spec", _SPEC)
    command.add_argument("checkpoint", help=_CHECKPOINT)
    _add_spec(command)
    command.add_argument("--output", metavar="FILE", help="write the spec there as JSON")
    _add_force(command)


def _add_equalize(added: Any) -> None:
    about = "balance the channels, or undo it"
    command = _command(added, "equalize", commands.equalize, about, _EQUALIZE)
    command.add_argument("checkpoint", help=_CHECKPOINT)
    command.add_argument("output", help="where to write: a .safetensors file, or a directory")
    _add_spec(command)
    exact = "scales are powers of two: nothing is rounded, and --undo restores every bit"
    command.add_argument("--power-of-two", action="store_true", help=exact)
    undo = "divide by the scales that are stored in the checkpoint"
    command.add_argument("--undo", action="store_true", help=undo)
    _add_force(command)


def _add_verify(added: Any) -> None:
    command = _command(added, "verify", commands.verify, "compare two checkpoints", _VERIFY)
    command.add_argument("before", help=_CHECKPOINT)
    command.add_argument("after", help="the same network, equalized")
    command.add_argument("--model", metavar="MODULE:FUNCTION", help=_MODEL)


def _add_report(added: Any) -> None:
    command = _command(added, "report", commands.report, "ranges before and after", _REPORT)
    command.add_argument("checkpoint", help=_CHECKPOINT)
    _add_spec(command)
    html = "write a page on the whole network there (needs --model and the extra 'report')"
    command.add_argument("--html", metavar="FILE", help=html)
    _add_force(command)
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _command(added: Any, name: str, run: Any, text: str, examples: str) -> ArgumentParser:
    epilog = f"examples:\n{examples}\n{_EXAMPLE}\n{_CODES}"
    about = f"{text[0].upper()}{text[1:]}."
    command = added.add_parser(name, help=text, description=about, epilog=epilog)
    command.set_defaults(run=run)
    return command


def _add_spec(command: ArgumentParser) -> None:
    file = "a spec as JSON (flaxcle spec --output, Spec.to_json); default: the stored one"
    command.add_argument("--spec", metavar="FILE", help=file)
    model = f"{_MODEL}; finds the spec, or with --spec checks it"
    command.add_argument("--model", metavar="MODULE:FUNCTION", help=model)


def _add_force(command: ArgumentParser) -> None:
    command.add_argument("--force", action="store_true", help="replace what is there")
