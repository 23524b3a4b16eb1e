"""Which type a quantization gives each tensor, by llama.cpp's rules."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recover._text import printable, quoted, some
from recover.containers.gguf.reader import GGUFModel, Tensor
from recover.containers.gguf.side_scales import folded
from recover.containers.model import GGML_DIMS, Model, StoredTensor
from recover.errors import PlanError
from recover.quantize.imatrix import Imatrix
from recover.quantize.mixes import EMBEDDINGS, Mix, MixTypes
from recover.quants import TILE, FloatType, OpaqueType, ScalarType, TensorType, type_by_name

ANY = re.compile("")
"""The pattern of the rule that holds where no other does."""

# `tensor_allows_quantization`: what is left as it is, small or sensitive.
_LEFT_NAMES = ("position_embd.weight", "token_types.weight")
_LEFT_PARTS = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2")),
    *(f"time_mix_{part}.weight" for part in ("a0", "a1", "a2", "g1", "g2")),
    *(f"time_mix_{part}.weight" for part in ("decay_w1", "decay_w2", "lerp_fused")),
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
_LEFT_PARTS_OF = {
    "glm5-next": (
        "hc_",
        "indexer.attn_q_b",
        "indexer.attn_k",
        "indexer.proj",
        "indexer_compressor_gate",
        "indexer_compressor_ape",
        "ssm_f_a.weight",
        "ssm_f_b.weight",
        "ssm_g_a.weight",
        "ssm_g_b.weight",
        "ssm_beta.weight",
        "attn_kv_a_mqa.weight",
        "attn_k_b.weight",
        "attn_v_b.weight",
    )
}

_LONGEST_ROW = 8 * TILE  # of types whose encoder looks at whole rows


def needs_rows(outtype: TensorType, *, weighted: bool) -> bool:
    """Whether an encoder needs whole rows, perhaps only if it has an importance matrix."""
    weighs = weighted and isinstance(outtype, ScalarType) and outtype.weighs_whole_rows
    return weighs or outtype.is_by_rows


@dataclass(frozen=True)
class TensorDraft:
    """A tensor's plan before it has its place."""

    tensor: StoredTensor
    outtype: TensorType
    uses_imatrix: bool


class Chooser:
    """Decides for one tensor after the other, and remembers what the user should know."""

    def __init__(
        self,
        model: GGUFModel[Tensor],
        rules: Sequence[tuple[re.Pattern[str], TensorType]],
        imatrix: Imatrix | None,
        mix: Mix | None = None,
    ) -> None:
        self.left_names: tuple[str, ...] = _LEFT_NAMES
        self.requantized: list[str] = []
        self._left_parts = _LEFT_PARTS + _LEFT_PARTS_OF.get(model.get("general.architecture"), ())
        self._model = model
        self._rules = rules
        self._unused = [pattern for pattern, _ in rules]
        self._imatrix = imatrix
        self._mix = mix
        self._types: MixTypes | None = None
        self._changed: list[StoredTensor] = []
        self._unweighted: list[str] = []
        self._n_known = 0
        self._fallbacks: defaultdict[tuple[str, str], list[str]] = defaultdict(list)

    def drafts(self) -> Iterator[TensorDraft]:
        """What happens to each tensor; a matrix whose bytes are kept keeps its side tensors."""
        if self._mix is not None:
            weighted = self._imatrix is not None
            self._types = MixTypes(self._mix, self._model, weighted=weighted, skips=self._skips)
        for tensor in self._model.tensors.values():
            yield (draft := self._draft(tensor))
            if draft.outtype is tensor.type:
                yield from map(self._draft, tensor.side_tensors)
            else:
                self._changed.append(tensor)

    def _draft(self, tensor: StoredTensor) -> TensorDraft:
        """What happens to a tensor."""
        outtype = self._outtype(tensor) if self._is_eligible(tensor) else tensor.type
        if outtype is tensor.type:
            return TensorDraft(tensor, outtype, False)
        if not isinstance(tensor.type, FloatType):
            self.requantized.append(f"{quoted(tensor.name)} ({tensor.type.name})")
        weighs = not isinstance(outtype, FloatType) and self._weighs(tensor)
        if needs_rows(outtype, weighted=weighs) and tensor.dims[0] > _LONGEST_ROW:
            always = needs_rows(outtype, weighted=False)
            raise PlanError(
                f"tensor {quoted(tensor.name)}: {'' if always else 'with an importance matrix '}"
                f"{outtype.name} is encoded by whole rows, of at most {_LONGEST_ROW:,} weights, but"
                f" its have {tensor.dims[0]:,}; take another type for it"
                f"{'' if always else ', or no importance matrix'}"
            )
        return TensorDraft(tensor, outtype, weighs)

    def _is_eligible(self, tensor: StoredTensor) -> bool:
        """Mirrors `tensor_allows_quantization`, for tensors that ggml can have."""
        return (
            any(dim > 1 for dim in tensor.dims[1:])
            and len(tensor.dims) <= GGML_DIMS
            and not isinstance(tensor.type, OpaqueType)
            and tensor.name.endswith("weight")
            and tensor.name not in self.left_names
            and not any(part in tensor.name for part in self._left_parts)
        )

    def _rule(self, tensor: StoredTensor) -> tuple[re.Pattern[str], TensorType]:
        """The first that matches."""
        return next(rule for rule in self._rules if rule[0].search(tensor.name))

    def _skips(self, tensor: StoredTensor) -> bool:
        """Whether the rules of a mix do not look at a tensor."""
        return not self._is_eligible(tensor) or self._rule(tensor)[0] is not ANY

    def _outtype(self, tensor: StoredTensor) -> TensorType:
        """The type of the first rule that matches, or what it falls back to."""
        pattern, wanted = self._rule(tensor)
        if self._types is not None and pattern is ANY:
            wanted = type_by_name(self._types[tensor])
        if pattern in self._unused:
            self._unused.remove(pattern)
        row_length, outtype = tensor.dims[0], wanted
        if row_length % outtype.block_size:
            outtype = type_by_name(wanted.fallback)
        if row_length % outtype.block_size:
            outtype = type_by_name("F16")
        if outtype is not wanted:
            self._fallbacks[wanted.name, outtype.name].append(quoted(tensor.name))
        return outtype

    def _weighs(self, tensor: StoredTensor) -> bool:
        """Whether the importance matrix has a say on a tensor."""
        if self._imatrix is None:
            return False
        entry = self._imatrix.entries.get(tensor.name)
        self._n_known += entry is not None
        n_matrices = tensor.dims[2] if len(tensor.dims) > 2 else 1
        if entry is not None and entry.n_values == tensor.dims[0] * n_matrices:
            return True
        if entry is not None and tensor.name not in EMBEDDINGS:
            raise PlanError(
                f"tensor {quoted(tensor.name)} has {n_matrices} x {tensor.dims[0]} columns, but the"
                f" importance matrix has {entry.n_values} values for it: it is of another model"
            )
        self._unweighted.append(quoted(tensor.name))
        return False

    def check_imatrix(self) -> None:
        """Refuse an importance matrix that knows no tensor, when all have been seen.

        Raises
        ------
        PlanError
            If none that it could matter to is in it.
        """
        if self._unweighted and not self._n_known:
            raise PlanError(
                f"the importance matrix knows none of {some(self._unweighted)}: it is of another"
                " model"
            )

    def warnings(self) -> Iterator[str]:
        """What the user should know, when all tensors have been seen."""
        if told := _unknown_architecture(self._model):
            yield told
        for pattern in self._unused:
            if pattern is not ANY:
                yield f"no tensor was given its type by {quoted(pattern.pattern)}"
        for (wanted, outtype), names in self._fallbacks.items():
            yield f"rows are no whole {wanted} blocks, {outtype} is taken instead: {some(names)}"
        if self.requantized:
            yield f"precision is lost a second time, quantized already are {some(self.requantized)}"
        if self._unweighted:
            yield f"the importance matrix does not know {some(self._unweighted)}"
        if sides := folded(self._changed):
            yield sides


def _unknown_architecture(model: Model) -> str | None:
    """What is to be said of a model for which llama.cpp has no rules; None if it has."""
    from gguf import MODEL_ARCH_NAMES  # takes as long to import as all of this package

    architecture = model.get("general.architecture")
    if architecture in (*MODEL_ARCH_NAMES.values(), *_LEFT_PARTS_OF):
        return None
    said = f"the architecture {quoted(str(architecture))}" if architecture else "no architecture"
    return (
        f"{printable(model.path)}: has {said}, and llama.cpp is not known to have rules for it:"
        " which tensors its program wants unquantized is for you to say (--tensor-type REGEX=F16)"
    )
