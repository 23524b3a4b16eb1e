"""Types that models carry but that are no weights to estimate: integers and double precision."""

from recover.quants.base import OpaqueType

I8 = OpaqueType(name="I8", type_id=24, block_size=1, type_size=1)
I16 = OpaqueType(name="I16", type_id=25, block_size=1, type_size=2)
I32 = OpaqueType(name="I32", type_id=26, block_size=1, type_size=4)
I64 = OpaqueType(name="I64", type_id=27, block_size=1, type_size=8)
F64 = OpaqueType(name="F64", type_id=28, block_size=1, type_size=8, exponent=0x7FF0000000000000)
