"""Arguments that several commands have."""

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path


def add_inputs(parser: ArgumentParser, name: str = "inputs", metavar: str = "INPUT") -> None:
    """Declare one or more models."""
    parser.add_argument(
        name,
        nargs="+",
        metavar=metavar,
        type=Path,
        help="GGUF file, its URL (https://..., hf://OWNER/REPO/FILE), or Hugging Face folder",
    )


def add_truth(parser: ArgumentParser) -> None:
    """Declare the original."""
    parser.add_argument(
        "--truth",
        required=True,
        metavar="TRUTH",
        type=Path,
        help="GGUF file or folder of the original",
    )


def add_output(parser: ArgumentParser, metavar: str, what: str) -> None:
    """Declare what is written."""
    parser.add_argument(
        "-o", "--output", required=True, metavar=metavar, type=Path, help=f"{what} to write"
    )


def add_json(parser: ArgumentParser) -> None:
    """Declare that a document is wanted, and no table."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def add_folder_arguments(parser: ArgumentParser) -> None:
    """Declare what is asked of every folder that is written."""
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        type=n_bytes,
        help="most bytes of weights in a file of a folder, like 500MB or 5GB (default: 5GB)",
    )
    parser.add_argument(
        "--config",
        metavar="FOLDER",
        type=Path,
        help="take a folder's config.json and the tokenizer's files from here (default: make them"
        " of the metadata)",
    )


def n_bytes(text: str) -> int:
    """A size like ``500MB``; for argparse."""
    from recover.containers.gguf.parts import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
