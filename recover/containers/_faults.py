"""A handler of SIGBUS: pages of mapped files that cannot be loaded read as zeros, and are noted.

Python's own handlers run after the machine instruction that failed, which never ends here. So this
one is machine code. It looks the address up in a table of mapped files, notes that it was there,
and maps zeros from that page to the end of the file. What lies elsewhere gets the handler that was
there before.
"""

import ctypes
import itertools
import mmap
import signal
import sys
import threading
from typing import Any

import llvmlite.binding as llvm

_N_SLOTS = 1 << 16
_N_WORDS = 3  # of a slot: where the file begins, where it ends, and the first address that failed
# By platform: where siginfo_t has the address, SA_SIGINFO, and MAP_PRIVATE | MAP_FIXED | MAP_ANON.
_PLATFORMS = {"linux": (16, 4, 0x32), "darwin": (24, 0x40, 0x1012)}

# %table is 1 + 3 * n words: the number of slots in use, then the slots.
_CODE = """
define void @on_fault(i32 %number, ptr %info, ptr %context) {{
entry:
  %where = getelementptr i8, ptr %info, i64 {address_offset}
  %address = load i64, ptr %where
  %table = inttoptr i64 {table} to ptr
  %n = load i64, ptr %table
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i1, %other ]
  %more = icmp ult i64 %i, %n
  br i1 %more, label %look, label %foreign
look:
  %first = mul i64 %i, 3
  %begin_at = add i64 %first, 1
  %end_at = add i64 %first, 2
  %fault_at = add i64 %first, 3
  %begin_ptr = getelementptr i64, ptr %table, i64 %begin_at
  %end_ptr = getelementptr i64, ptr %table, i64 %end_at
  %begin = load i64, ptr %begin_ptr
  %end = load i64, ptr %end_ptr
  %above = icmp uge i64 %address, %begin
  %below = icmp ult i64 %address, %end
  %inside = and i1 %above, %below
  br i1 %inside, label %found, label %other
other:
  %i1 = add i64 %i, 1
  br label %next
found:
  %fault_ptr = getelementptr i64, ptr %table, i64 %fault_at
  store volatile i64 %address, ptr %fault_ptr
  %page = and i64 %address, {page_mask}
  %length = sub i64 %end, %page
  %mmap = inttoptr i64 {mmap} to ptr
  %mapped = call i64 %mmap(i64 %page, i64 %length, i32 1, i32 {flags}, i32 -1, i64 0)
  %good = icmp eq i64 %mapped, %page
  br i1 %good, label %done, label %foreign
foreign:
  %sigaction = inttoptr i64 {sigaction} to ptr
  %before = inttoptr i64 {before} to ptr
  %ignored = call i32 %sigaction(i32 %number, ptr %before, ptr null)
  br label %done
done:
  ret void
}}
"""


class _LinuxAction(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class _DarwinAction(ctypes.Structure):
    _fields_ = (("handler", ctypes.c_void_p), ("mask", ctypes.c_uint32), ("flags", ctypes.c_int))


class Guard:
    """Mapped files whose pages may vanish; the handler is there from the first one on."""

    def __init__(self) -> None:
        self._table: Any = None
        self._lock = threading.RLock()  # a file may be given back while another one is added
        self._files: dict[int, tuple[int, Any, int]] = {}  # by slot: number, file, address
        self._numbers = itertools.count()
        self._free: list[int] = []
        self._kept: tuple[Any, ...] = ()

    def add(self, address: int, n_bytes: int, file: Any) -> int:
        """Guard a mapped file; the number of its slot (-1: there is none, or no handler)."""
        with self._lock:
            if self._table is None:
                self._table = (ctypes.c_int64 * (1 + _N_WORDS * _N_SLOTS))()
                self._install()
            slot = self._free.pop() if self._free else int(self._table[0])
            if slot >= _N_SLOTS:
                return -1
            at = 1 + _N_WORDS * slot
            end = address + -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            self._table[at : at + _N_WORDS] = address, end, 0
            self._table[0] = max(self._table[0], slot + 1)
            self._files[slot] = next(self._numbers), file, address
            return slot

    def remove(self, slot: int) -> None:
        """Guard a file no more."""
        with self._lock:
            if self._files.pop(slot, None) is not None:
                at = 1 + _N_WORDS * slot
                self._table[at : at + _N_WORDS] = 0, 0, 0
                self._free.append(slot)

    def faults(self) -> dict[int, tuple[Any, int]]:
        """The files of which a page could not be loaded, and at which position, by number."""
        with self._lock:
            files = self._files.copy()  # a collection of garbage may give files back on the way
            found = [(*of, self._table[3 + _N_WORDS * slot]) for slot, of in files.items()]
        return {number: (file, fault - start) for number, file, start, fault in found if fault}

    def _install(self) -> None:
        """Put the handler in place, where we know how."""
        if sys.platform not in _PLATFORMS or ctypes.sizeof(ctypes.c_void_p) != 8:
            return
        address_offset, siginfo_flag, map_flags = _PLATFORMS[sys.platform]
        libc = ctypes.CDLL(None)
        kind: Any = _LinuxAction if sys.platform == "linux" else _DarwinAction
        before = kind()

        def address_of(function: Any) -> int:
            return ctypes.cast(function, ctypes.c_void_p).value or 0

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        code = _CODE.format(
            address_offset=address_offset,
            table=ctypes.addressof(self._table),
            page_mask=-mmap.PAGESIZE,
            mmap=address_of(libc.mmap),
            flags=map_flags,
            sigaction=address_of(libc.sigaction),
            before=ctypes.addressof(before),
        )
        machine = llvm.Target.from_default_triple().create_target_machine()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(code), machine)
        engine.finalize_object()
        self._kept = engine, before
        libc.sigaction(int(signal.SIGBUS), None, ctypes.byref(before))
        action = kind(handler=engine.get_function_address("on_fault"), flags=siginfo_flag)
        libc.sigaction(int(signal.SIGBUS), ctypes.byref(action), None)
