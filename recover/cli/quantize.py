"""``recover quantize``."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from recover.cli._arguments import add_json, add_output
from recover.cli._parser import choose, did_you_mean
from recover.cli._sharing import add_sharing_arguments, carry_out
from recover.errors import QuantError

if TYPE_CHECKING:
    from recover.quantize.execute import QuantizeResult
    from recover.quantize.plan import QuantizePlan, TensorPlan

NAME = "quantize"
SUMMARY = "Quantize a file, byte for byte as llama.cpp does"

_QUANTIZERS = ("llama.cpp", "k-lsq", "q4_0-rmse")


class Types:
    """Names of the types that files are made of; they are loaded when somebody asks for them.

    Parameters
    ----------
    mixes : bool
        Whether the names of mixes are among them.
    """

    def __init__(self, *, mixes: bool) -> None:
        self._mixes = mixes

    def __contains__(self, name: object) -> bool:
        from recover.quantize.mixes import MIXES
        from recover.quants import makes_files, type_by_name

        if self._mixes and name in MIXES:
            return True
        try:  # those of other packages are looked at only for a name that is none of ours
            return makes_files(type_by_name(str(name)))
        except QuantError:
            return False

    def __iter__(self) -> Iterator[str]:
        """As GGUF numbers them; floats last, the smallest first; then the mixes."""
        from recover.quantize.mixes import MIXES
        from recover.quants import FloatType, all_types, makes_files

        kinds = sorted(all_types(), key=lambda each: isinstance(each, FloatType) and each.type_size)
        names = [kind.name for kind in kinds if makes_files(kind)]
        mixes = [name for name in MIXES if name not in names] if self._mixes else []
        return iter([*names, *mixes])


_TYPES, _NAMES = Types(mixes=False), Types(mixes=True)


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("input", metavar="INPUT", type=Path, help="GGUF file")
    parser.add_argument(
        "type",
        metavar="TYPE",
        type=_type_or_mix,
        choices=_NAMES,
        help="a type, or a mix by llama.cpp's name: %(choices)s",
    )
    add_output(parser, "OUT", "GGUF file")
    parser.add_argument(
        "--mix",
        action="store_true",
        help="take the mix where TYPE is both a type and a mix (Q2_K, Q6_K, IQ4_XS)",
    )
    parser.add_argument(
        "--imatrix", metavar="FILE", type=Path, help="importance matrix (GGUF, or the older format)"
    )
    parser.add_argument(
        "--tensor-type",
        metavar="REGEX=TYPE",
        type=_tensor_type,
        action="append",
        default=[],
        help="another type for tensors in whose name REGEX is found; may be repeated, the first"
        " that matches counts",
    )
    parser.add_argument(
        "--allow-requantize",
        action="store_true",
        help="encode tensors that are quantized already, which loses precision",
    )
    parser.add_argument(
        "--leave-output-tensor", action="store_true", help="leave output.weight as it is"
    )
    parser.add_argument(
        "--quantizer",
        choices=_QUANTIZERS,
        default=_QUANTIZERS[0],
        help="encoder of TYPE: llama.cpp (default), q4_0-rmse (for Q4_0: least squared error per"
        " block), k-lsq (for Q4_K and Q5_K: least-squares scales)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    add_sharing_arguments(parser)
    add_json(parser)


def _type_name(text: str, known: Types = _TYPES) -> str:
    from recover.quants import all_types

    name = text.upper()
    if name in known:
        return name
    names = {each for kind in all_types() for each in (kind.name, *kind.file_types.values())}
    told = f"{text!r} is unknown{did_you_mean(name, known)}"
    if name in names:
        told = f"{name} is read, not written"
    raise ArgumentTypeError(choose(told, known))


def _type_or_mix(text: str) -> str:
    return _type_name(text, _NAMES)


def _tensor_type(text: str) -> tuple[str, str]:
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern:
        raise ArgumentTypeError(f"{text!r} is not REGEX=TYPE")
    return pattern, _type_name(name)


def run(args: Namespace) -> int:
    """Do the work; the exit status."""
    from recover.cli._console import print_json, warn
    from recover.quantize.execute import execute_quantize, execute_quantize_part
    from recover.quantize.plan import plan_quantize

    plan = plan_quantize(
        args.input,
        args.output,
        args.type,
        imatrix=args.imatrix,
        tensor_types=args.tensor_type,
        allow_requantize=args.allow_requantize,
        leave_output_tensor=args.leave_output_tensor,
        quantizer=args.quantizer,
        mix=args.mix,
    )
    warn(args, plan.warnings)
    if args.dry_run:
        print_json(plan.to_json()) if args.json else _print_plan(plan)
        return 0
    result = carry_out(args, "quantizing", plan, execute_quantize, execute_quantize_part)
    if result is None:
        return 0
    print_json(result.to_json()) if args.json else _print_result(result, verbose=args.verbose)
    return 0


def _print_plan(plan: "QuantizePlan") -> None:
    from recover.cli._console import count, print_table, size

    rows = [
        (
            tensor.name,
            "x".join(map(str, tensor.dims)),
            tensor.action,
            tensor.type,
            tensor.outtype,
            "yes" if tensor.uses_imatrix else "no",
            count(tensor.n_weights),
            f"{tensor.position:,}",
        )
        for tensor in plan.tensors
    ]
    columns = ("tensor:", "shape:", "action:", "input:", "output:", "imatrix:", "weights")
    title = f"Plan for {plan.output} ({size(plan.n_bytes)}, {plan.outtype})"
    print_table(title, (*columns, "position"), rows)


def _print_result(result: "QuantizeResult", *, verbose: bool) -> None:
    from recover.cli._console import print_table, print_written
    from recover.cli._streams import say

    plan = result.plan
    columns = ("action:", "input:", "output:", "imatrix:", "tensors", "weights")
    if verbose:
        rows = [(tensor.name, *_row([tensor])) for tensor in plan.tensors]
        print_table("", ("tensor:", *columns), rows)
    groups: defaultdict[tuple[str, str, str, bool], list[TensorPlan]] = defaultdict(list)
    for tensor in plan.tensors:
        groups[tensor.action, tensor.type, tensor.outtype, tensor.uses_imatrix].append(tensor)
    rows = [_row(tensors) for _, tensors in sorted(groups.items(), reverse=True)]
    print_table(f"{plan.model.path.name} ({plan.outtype})", columns, rows)
    say(f"{plan.bits_per_weight:.2f} bits per weight")
    print_written(plan.output, plan.n_bytes, plan.n_weights, result.seconds)


def _row(tensors: "list[TensorPlan]") -> tuple[str, ...]:
    """One line for tensors that are treated alike."""
    from recover.cli._console import count

    first = tensors[0]
    return (
        first.action,
        first.type,
        first.outtype,
        "yes" if first.uses_imatrix else "no",
        str(len(tensors)),
        count(sum(tensor.n_weights for tensor in tensors)),
    )
