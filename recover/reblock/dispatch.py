"""Which kind of source a path is."""

from dataclasses import replace
from pathlib import Path

from recover._text import printable
from recover.containers.safetensors.reader import open_safetensors
from recover.errors import PlanError
from recover.reblock.float_source import open_float_original
from recover.reblock.grok import is_checkpoint, open_grok
from recover.reblock.integers import Request
from recover.reblock.metadata import with_metadata_of, with_vocabulary
from recover.reblock.quantized_safetensors import holds_integers, open_integers
from recover.reblock.source import Original


def open_original(
    path: Path,
    request: Request,
    *,
    second_hand: bool = False,
    arch: str | None = None,
    hparams: Path | None = None,
    float_type: str | None = None,
    like: Path | None = None,
    n_threads: int | None = None,
) -> Original:
    """Open whatever can be re-blocked.

    Parameters
    ----------
    path : Path
        A Grok-1 checkpoint folder, a safetensors file or model folder, or a GGUF file.
    request : Request
        What the user wants.
    second_hand : bool
        `path` is a GGUF Q8_0 that was made from an integer original.
    arch : str, optional
        Architecture whose names and metadata the output gets, for integers in safetensors.
    hparams : Path, optional
        Hyper-parameters, for Grok-1.
    float_type : str, optional
        Type of the embedding, for Grok-1.
    like : Path, optional
        GGUF file that the output gets its metadata and vocabulary from.
    n_threads : int, optional
        For the search for integers in floats; default: the cores that this process may use.

    Returns
    -------
    Original

    Raises
    ------
    RecoverError
        If the source cannot be read, has no exact type, or an option does not belong to it.
    """
    asked = {
        "path": str(path.absolute()),
        "outtype": request.outtype,
        "allow_inexact": request.allow_inexact,
        "second_hand": second_hand,
        "arch": arch,
        "hparams": None if hparams is None else str(hparams.absolute()),
        "float_type": float_type,
        "like": None if like is None else str(like.absolute()),
    }
    source = _opened(path, request, second_hand, arch, hparams, float_type, n_threads)
    if like is not None:
        source = with_metadata_of(source, like)
    is_gguf = second_hand or not (path.is_dir() or path.suffix == ".safetensors")
    return replace(source if is_gguf else with_vocabulary(source), asked=asked)


def _opened(
    path: Path,
    request: Request,
    second_hand: bool,
    arch: str | None,
    hparams: Path | None,
    float_type: str | None,
    n_threads: int | None,
) -> Original:
    """The source with metadata of its own."""
    if not path.exists():
        raise PlanError(f"{printable(path)}: there is no such file or folder")
    is_grok = is_checkpoint(path) and not second_hand
    if not is_grok:
        for option, value in (("--hparams", hparams), ("--float-type", float_type)):
            if value is not None:
                raise PlanError(
                    f"{printable(path)}: is no Grok-1 checkpoint, which {option} is for"
                )
    if is_grok and arch not in (None, "grok"):
        raise PlanError(f"{printable(path)}: is a Grok-1 checkpoint, whose architecture is grok")
    if is_grok:
        return open_grok(path, request, hparams=hparams, float_type=float_type or "F32")
    if not second_hand and (path.is_dir() or path.suffix == ".safetensors"):
        model = open_safetensors(path)
        if arch is not None:
            return open_integers(model, request, arch, n_threads)
        from recover.reblock.architectures import names_kept

        source = (
            open_integers(model, request, None, n_threads)
            if holds_integers(model)
            else open_float_original(path, request, n_threads=n_threads)
        )
        return replace(source, warnings=(*source.warnings, *names_kept(model.config)))
    if arch is not None:
        raise PlanError(f"{printable(path)}: is no model in safetensors, which --arch is for")
    if second_hand:
        from recover.reblock.second_hand import open_second_hand

        return open_second_hand(path, request.outtype, n_threads=n_threads)
    return open_float_original(path, request, n_threads=n_threads)
