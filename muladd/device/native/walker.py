"""The native half of the CPU device, in LLVM's language: one call from Python walks a program.

Why like this: a hand-off between Python threads costs 40 µs and a ctypes call half of one, while
here an empty call costs 0.1 µs and a barrier 0.2, with the interpreter lock free all the while.
A step is a few words (layout.py, table.py): the walker gathers the addresses of a launch, asks
for its grid, and shares its chunks between the threads (threads.py).
"""
from __future__ import annotations

import functools
import sys

from muladd.device.native import layout, threads

COPY_CHUNK = 1 << 18  # a copy longer than this is shared between the workers

_WALK = """
; a number known at the call: registers[i] * factor (the register after the variables holds 1)
define internal i64 @quantity(ptr %pc, ptr %registers) alwaysinline {{
  %i = load i64, ptr %pc
  %p1 = getelementptr i64, ptr %pc, i64 1
  %factor = load i64, ptr %p1
  %r = getelementptr i64, ptr %registers, i64 %i
  %value = load i64, ptr %r
  %product = mul i64 %value, %factor
  ret i64 %product
}}

; an address: slots[slot] + offset + sum of registers[i] * registers[j] * factor
define internal {{i64, ptr}} @address(ptr %pc, ptr %slots, ptr %registers) alwaysinline {{
start:
  %p1 = getelementptr i64, ptr %pc, i64 1
  %p2 = getelementptr i64, ptr %pc, i64 2
  %p3 = getelementptr i64, ptr %pc, i64 3
  %slot = load i64, ptr %pc
  %offset = load i64, ptr %p1
  %terms = load i64, ptr %p2
  %s = getelementptr i64, ptr %slots, i64 %slot
  %base = load i64, ptr %s
  %first = add i64 %base, %offset
  br label %more
more:
  %at = phi ptr [%p3, %start], [%next, %term]
  %left = phi i64 [%terms, %start], [%left1, %term]
  %sum = phi i64 [%first, %start], [%sum1, %term]
  %over = icmp eq i64 %left, 0
  br i1 %over, label %end, label %term
term:
  %a = load i64, ptr %at
  %at1 = getelementptr i64, ptr %at, i64 1
  %ra = getelementptr i64, ptr %registers, i64 %a
  %va = load i64, ptr %ra
  %vb = call i64 @quantity(ptr %at1, ptr %registers)
  %product = mul i64 %va, %vb
  %sum1 = add i64 %sum, %product
  %next = getelementptr i64, ptr %at, i64 3
  %left1 = sub i64 %left, 1
  br label %more
end:
  %r0 = insertvalue {{i64, ptr}} undef, i64 %sum, 0
  %r1 = insertvalue {{i64, ptr}} %r0, ptr %at, 1
  ret {{i64, ptr}} %r1
}}

; every `period` nanoseconds one thread asks Python: a result other than 0 ends the walk
define internal i64 @tick(ptr %pool) {{
start:
  {tick}
  {next_tick}
  {period}
  %time = call i64 @now()
  %due = load atomic i64, ptr %next_tick monotonic, align 8
  %early = icmp slt i64 %time, %due
  br i1 %early, label %no, label %claim
claim:
  %p = load i64, ptr %period
  %later = add i64 %time, %p
  %pair = cmpxchg ptr %next_tick, i64 %due, i64 %later monotonic monotonic
  %mine = extractvalue {{i64, i1}} %pair, 1
  %function = load ptr, ptr %tick
  %exists = icmp ne ptr %function, null
  %go = and i1 %mine, %exists
  br i1 %go, label %ask, label %no
ask:
  %answer = call i64 %function()
  ret i64 %answer
no:
  ret i64 0
}}

define i64 @muladd_run(ptr %program, ptr %slots, ptr %variables) {{
start:
  %pool = load ptr, ptr %program
  %h1 = getelementptr i64, ptr %program, i64 {P_TIMES}
  %h2 = getelementptr i64, ptr %program, i64 {P_VARIABLES}
  %h3 = getelementptr i64, ptr %program, i64 {P_ARGS}
  %h4 = getelementptr i64, ptr %program, i64 {P_SCRATCH}
  %h5 = getelementptr i64, ptr %program, i64 {P_DEPTH}
  %code = getelementptr i64, ptr %program, i64 {P_CODE}
  %times = load ptr, ptr %h1
  %n = load i64, ptr %h2
  %most = load i64, ptr %h3
  %bytes = load i64, ptr %h4
  %depth = load i64, ptr %h5
  %timed = icmp ne ptr %times, null
  %count = add i64 %n, %depth
  %count1 = add i64 %count, 1
  %registers = alloca i64, i64 %count1
  %left = alloca i64, i64 %depth
  %args = alloca i64, i64 %most
  %vbytes = shl i64 %n, 3
  call void @llvm.memmove.p0.p0.i64(ptr %registers, ptr %variables, i64 %vbytes, i1 false)
  %unit = getelementptr i64, ptr %registers, i64 %n
  store i64 1, ptr %unit
  %loops = getelementptr i64, ptr %unit, i64 1
  br label %begin
begin:
  ; the pool is taken for the whole walk; who comes second computes alone, with its own scratch
  %own = alloca [{worker_words} x i64]
  call void @llvm.memset.p0.i64(ptr %own, i8 0, i64 {worker_bytes}, i1 false)
  {first}
  {launches}
  %got = call i64 @muladd_try_lock(ptr %pool)
  %guest = icmp eq i64 %got, 0
  %worker = select i1 %guest, ptr null, ptr %first
  %scratcher = select i1 %guest, ptr %own, ptr %first
  %scratch = call ptr @scratch_of(ptr %scratcher, i64 %bytes)
  %wanted = icmp ne i64 %bytes, 0
  %nothing = icmp eq ptr %scratch, null
  %lost = and i1 %wanted, %nothing
  br i1 %lost, label %poor, label %fetch
poor:
  br label %leave
fetch:
  %pc = phi ptr [%code, %begin], [%lpast, %lend], [%rpc, %rgo], [%rend, %rskip],
                [%npast, %nout], [%nbody, %nagain]
  %kind = load i64, ptr %pc
  %q1 = getelementptr i64, ptr %pc, i64 1
  %q2 = getelementptr i64, ptr %pc, i64 2
  %q3 = getelementptr i64, ptr %pc, i64 3
  %q4 = getelementptr i64, ptr %pc, i64 4
  %q5 = getelementptr i64, ptr %pc, i64 5
  %q6 = getelementptr i64, ptr %pc, i64 6
  %q7 = getelementptr i64, ptr %pc, i64 7
  switch i64 %kind, label %success [i64 {LAUNCH}, label %do_launch i64 {COPY}, label %do_copy
                                    i64 {REPEAT}, label %do_repeat i64 {NEXT}, label %do_next]

; [LAUNCH, number, kernel, grid function, grid i, grid factor, args, address...]
do_launch:
  %gridf = load ptr, ptr %q3
  %nargs = load i64, ptr %q6
  br label %gather
gather:
  %k = phi i64 [0, %do_launch], [%k1, %gathered]
  %at = phi ptr [%q7, %do_launch], [%atnext, %gathered]
  %complete = icmp eq i64 %k, %nargs
  br i1 %complete, label %sized, label %gathered
gathered:
  %pair = call {{i64, ptr}} @address(ptr %at, ptr %slots, ptr %registers)
  %addr = extractvalue {{i64, ptr}} %pair, 0
  %atnext = extractvalue {{i64, ptr}} %pair, 1
  %place = getelementptr i64, ptr %args, i64 %k
  store i64 %addr, ptr %place
  %k1 = add i64 %k, 1
  br label %gather
sized:
  %fixed = icmp eq ptr %gridf, null
  br i1 %fixed, label %gridconst, label %gridask
gridconst:
  %g0 = call i64 @quantity(ptr %q4, ptr %registers)
  br label %lkernel
gridask:
  %g1 = call i64 %gridf(ptr %registers)
  br label %lkernel
lkernel:
  %grid0 = phi i64 [%g0, %gridconst], [%g1, %gridask]
  %kernel0 = load ptr, ptr %q2
  br label %timing

; [COPY, number, bytes i, bytes factor, to, source]
do_copy:
  %cbytes = call i64 @quantity(ptr %q2, ptr %registers)
  %cto = call {{i64, ptr}} @address(ptr %q4, ptr %slots, ptr %registers)
  %cto0 = extractvalue {{i64, ptr}} %cto, 0
  %cto1 = extractvalue {{i64, ptr}} %cto, 1
  %cfrom = call {{i64, ptr}} @address(ptr %cto1, ptr %slots, ptr %registers)
  %cfrom0 = extractvalue {{i64, ptr}} %cfrom, 0
  %cpast = extractvalue {{i64, ptr}} %cfrom, 1
  %ca1 = getelementptr i64, ptr %args, i64 1
  %ca2 = getelementptr i64, ptr %args, i64 2
  store i64 %cto0, ptr %args
  store i64 %cfrom0, ptr %ca1
  store i64 %cbytes, ptr %ca2
  %ahead = sub i64 %cto0, %cfrom0
  %distance = call i64 @llvm.abs.i64(i64 %ahead, i1 false)
  %apart = icmp uge i64 %distance, %cbytes
  %cround = add i64 %cbytes, {copy_chunk_less_1}
  %cchunks = sdiv i64 %cround, {copy_chunk}
  %same = icmp eq i64 %ahead, 0
  br i1 %same, label %copynone, label %copysome
copynone:
  br label %timing
copysome:
  br i1 %apart, label %copyapart, label %copyover
copyapart:
  br label %timing
copyover:
  ; overlapping: one memmove, in one thread
  %ct = inttoptr i64 %cto0 to ptr
  %cf = inttoptr i64 %cfrom0 to ptr
  call void @llvm.memmove.p0.p0.i64(ptr %ct, ptr %cf, i64 %cbytes, i1 false)
  br label %timing

timing:
  %lpast = phi ptr [%at, %lkernel], [%cpast, %copynone], [%cpast, %copyapart],
                   [%cpast, %copyover]
  %grid = phi i64 [%grid0, %lkernel], [0, %copynone], [%cchunks, %copyapart], [0, %copyover]
  %kernel = phi ptr [%kernel0, %lkernel], [@copy_chunks, %copynone], [@copy_chunks, %copyapart],
                    [@copy_chunks, %copyover]
  br i1 %timed, label %slow, label %quick
quick:
  call void @launch(ptr %pool, ptr %kernel, ptr %args, ptr %registers, i64 %grid, ptr %worker,
                    ptr %scratch, i64 %bytes)
  br label %launched
slow:
  %t0 = call i64 @now()
  call void @launch(ptr %pool, ptr %kernel, ptr %args, ptr %registers, i64 %grid, ptr %worker,
                    ptr %scratch, i64 %bytes)
  %t1 = call i64 @now()
  %number = load i64, ptr %q1
  %twice = shl i64 %number, 1
  %slot_ns = getelementptr i64, ptr %times, i64 %twice
  %slot_n = getelementptr i64, ptr %slot_ns, i64 1
  %spent = sub i64 %t1, %t0
  %ns = load i64, ptr %slot_ns
  %ns1 = add i64 %ns, %spent
  store i64 %ns1, ptr %slot_ns
  %calls = load i64, ptr %slot_n
  %calls1 = add i64 %calls, 1
  store i64 %calls1, ptr %slot_n
  br label %launched
launched:
  %serial = load atomic i64, ptr %launches monotonic, align 8
  %serial1 = add i64 %serial, 1
  store atomic i64 %serial1, ptr %launches monotonic, align 8
  ; work that was shared may have taken long: look at the clock; else after each eighth launch
  %eighth = and i64 %serial1, 7
  %turned = icmp eq i64 %eighth, 0
  %shared = icmp sgt i64 %grid, 1
  %look = or i1 %turned, %shared
  br i1 %look, label %ask, label %lend
ask:
  %asked = call i64 @tick(ptr %pool)
  %halt = icmp ne i64 %asked, 0
  br i1 %halt, label %cancel, label %lend
lend:
  br label %fetch

; [REPEAT, depth, count i, count factor, index variable or -1, reverse, end (words ahead)]
do_repeat:
  %rdepth = load i64, ptr %q1
  %rcount = call i64 @quantity(ptr %q2, ptr %registers)
  %rvar = load i64, ptr %q4
  %rrev = load i64, ptr %q5
  %rahead = load i64, ptr %q6
  %rend = getelementptr i64, ptr %pc, i64 %rahead
  %rnone = icmp sle i64 %rcount, 0
  br i1 %rnone, label %rskip, label %rgo0
rskip:
  br label %fetch
rgo0:
  %backwards = icmp ne i64 %rrev, 0
  %rlast = sub i64 %rcount, 1
  %rfirst = select i1 %backwards, i64 %rlast, i64 0
  %rreg = getelementptr i64, ptr %loops, i64 %rdepth
  store i64 %rfirst, ptr %rreg
  %rleft = getelementptr i64, ptr %left, i64 %rdepth
  store i64 %rcount, ptr %rleft
  %rpc = getelementptr i64, ptr %pc, i64 7
  %rwrites = icmp sge i64 %rvar, 0
  br i1 %rwrites, label %rwrite, label %rgo
rwrite:
  %rv = getelementptr i64, ptr %registers, i64 %rvar
  store i64 %rfirst, ptr %rv
  br label %rgo
rgo:
  br label %fetch

; [NEXT, depth, index variable or -1, step, body (words ahead, negative)]
do_next:
  %ndepth = load i64, ptr %q1
  %nvar = load i64, ptr %q2
  %nstep = load i64, ptr %q3
  %nahead = load i64, ptr %q4
  %npast = getelementptr i64, ptr %pc, i64 5
  %nbody = getelementptr i64, ptr %pc, i64 %nahead
  %nleft = getelementptr i64, ptr %left, i64 %ndepth
  %nl = load i64, ptr %nleft
  %nl1 = sub i64 %nl, 1
  store i64 %nl1, ptr %nleft
  %nover = icmp eq i64 %nl1, 0
  br i1 %nover, label %nout, label %nmore
nout:
  br label %fetch
nmore:
  %nreg = getelementptr i64, ptr %loops, i64 %ndepth
  %ni = load i64, ptr %nreg
  %ni1 = add i64 %ni, %nstep
  store i64 %ni1, ptr %nreg
  %nwrites = icmp sge i64 %nvar, 0
  br i1 %nwrites, label %nwrite, label %nagain
nwrite:
  %nv = getelementptr i64, ptr %registers, i64 %nvar
  store i64 %ni1, ptr %nv
  br label %nagain
nagain:
  br label %fetch

cancel:
  br label %leave
success:
  {failed}
  %flag = load atomic i64, ptr %failed monotonic, align 8
  %bad = icmp ne i64 %flag, 0
  %blame = select i1 %guest, i1 false, i1 %bad
  br i1 %blame, label %starved, label %fine
starved:
  store atomic i64 0, ptr %failed monotonic, align 8
  br label %leave
fine:
  br label %leave
leave:
  %status = phi i64 [{NO_MEMORY}, %poor], [{CANCELLED}, %cancel], [{NO_MEMORY}, %starved],
                    [{OK}, %fine]
  br i1 %guest, label %release_own, label %release_pool
release_own:
  %mine = load ptr, ptr %own
  call void @free(ptr %mine)
  ret i64 %status
release_pool:
  call void @muladd_unlock(ptr %pool)
  ret i64 %status
}}
declare i64 @llvm.abs.i64(i64, i1)
"""

# The door from Python: a builtin function of one argument costs a fifth of a ctypes call. It gives
# the interpreter lock away for the walk. `self` is the program's address, `packed` the bytes of
# its slots and variables. What is not plain success is left to a Python function.
_DOOR = """
declare ptr @PyLong_AsVoidPtr(ptr)
declare ptr @PyLong_FromLongLong(i64)
declare ptr @PyBytes_AsString(ptr)
declare i64 @PyBytes_Size(ptr)
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare ptr @PyObject_CallFunctionObjArgs(ptr, ...)
declare void @Py_IncRef(ptr)
declare void @Py_DecRef(ptr)
@_Py_NoneStruct = external global i8

define ptr @muladd_call(ptr %self, ptr %packed) {{
start:
  %program = call ptr @PyLong_AsVoidPtr(ptr %self)
  %slots = call ptr @PyBytes_AsString(ptr %packed)
  %wrong = icmp eq ptr %slots, null
  br i1 %wrong, label %raised, label %sizes
raised:
  ret ptr null
sizes:
  %h1 = getelementptr i64, ptr %program, i64 {P_SLOTS}
  %h2 = getelementptr i64, ptr %program, i64 {P_VARIABLES}
  %h3 = getelementptr i64, ptr %program, i64 {P_TROUBLE}
  %n = load i64, ptr %h1
  %m = load i64, ptr %h2
  %trouble = load ptr, ptr %h3
  %words = add i64 %n, %m
  %expected = shl i64 %words, 3
  %size = call i64 @PyBytes_Size(ptr %packed)
  %fits = icmp eq i64 %size, %expected
  br i1 %fits, label %pools, label %odd
pools:
  %pool = load ptr, ptr %program
  {ready}
  %up = load atomic i64, ptr %ready monotonic, align 8
  %unready = icmp eq i64 %up, 0
  br i1 %unready, label %odd, label %walk
walk:
  %variables = getelementptr i64, ptr %slots, i64 %n
  %thread = call ptr @PyEval_SaveThread()
  %walked = call i64 @muladd_run(ptr %program, ptr %slots, ptr %variables)
  call void @PyEval_RestoreThread(ptr %thread)
  %good = icmp eq i64 %walked, {OK}
  br i1 %good, label %done, label %odd
done:
  call void @Py_IncRef(ptr @_Py_NoneStruct)
  ret ptr @_Py_NoneStruct
odd:
  %status = phi i64 [{MISFIT}, %sizes], [{NOT_READY}, %pools], [%walked, %walk]
  %number = call ptr @PyLong_FromLongLong(i64 %status)
  %answer = call ptr (ptr, ...) @PyObject_CallFunctionObjArgs(ptr %trouble, ptr %number,
                                                              ptr %packed, ptr null)
  call void @Py_DecRef(ptr %number)
  ret ptr %answer
}}
"""


@functools.cache
def source(triple: str, futex: bool = True) -> str:
    """The runtime as LLVM IR for this triple; without futex, idle workers poll."""
    architecture = "aarch64" if triple.startswith(("aarch64", "arm64")) else "x86_64"
    futex = futex and sys.platform == "linux"
    number, gettid = threads.SYSCALLS[architecture]
    fields = {
        **{name: _word("pool", name, index) for name, index in layout.POOL.items()},
        **{name: _word("worker", name, index) for name, index in layout.WORKER.items()},
    }
    text = threads.FUTEX if futex else threads.POLL
    text += threads.CLOCK + threads.WORK + threads.LAUNCH + _WALK + _DOOR
    return f'target triple = "{triple}"\n' + text.format(
        futex=number, gettid=gettid, clock=1 if sys.platform == "linux" else 6,
        pause_declared=threads.PAUSE[architecture][0], pause=threads.PAUSE[architecture][1],
        copy_chunk=COPY_CHUNK, copy_chunk_less_1=COPY_CHUNK - 1,
        worker_words=layout.WORKER_WORDS, worker_bytes=layout.WORKER_WORDS * 8,
        first_worker=layout.FIRST_WORKER, **layout.NUMBERS, **fields,
    )  # fmt: skip


def _word(base: str, name: str, index: int) -> str:
    """The IR that computes the address of one word."""
    return f"%{name} = getelementptr i64, ptr %{base}, i64 {index}"
