"""The native half of the CPU device, in LLVM's language: walk a program, share chunks with workers.

Why like this: a call from Python costs 0.2 µs and a barrier between native threads about as much,
while one hand-off between Python threads costs 40 µs. So a whole program is one native call, and
the interpreter lock is free all the while.

How chunks are shared. `ticket` holds (epoch << 32 | chunks not yet claimed). One compare-and-swap
lowers the count, and whoever succeeds owns those chunks: the launch cannot end before they are
done, so its description stays put while it is read. A worker that wakes late finds a count of
zero or loses its swap; it can do no harm, and nobody waits for it. A launch is over when all its
chunks are finished, not when all workers have joined. The launching thread takes part, and does
everything itself if no worker comes.

Claims are a fixed share of what is left (a 4*threads-th), so that few claims balance many chunks.

Everything shared lives in one block of 64-bit words, the pool, whose layout is below.
"""
from __future__ import annotations

import functools
import sys

# The pool, in words. What different threads write at once is 128 bytes apart.
TICKET, DONE, SLEEPERS, LOCK = 0, 16, 32, 48
JOB_KERNEL, JOB_ARGS, JOB_VARIABLES, JOB_GRID, JOB_SCRATCH, JOB_SHARE = range(64, 70)
THREADS, SPIN, STOP, FAILED, TICK, NEXT_TICK, FREE_CPU, PINNED, PERIOD = range(80, 89)
FIRST_WORKER, WORKER_WORDS, MOST_THREADS = 96, 16, 256
POOL_WORDS = FIRST_WORKER + WORKER_WORDS * MOST_THREADS
# One worker, in words from its start.
W_SCRATCH, W_SCRATCH_BYTES, W_THREAD_ID, W_CPU, W_POOL = range(5)

# A program: its header, then steps, each beginning with its kind. See native/table.py.
P_POOL, P_TIMES, P_VARIABLES, P_ARGS, P_SCRATCH, P_DEPTH, P_CODE = range(7)
END, LAUNCH, COPY, REPEAT, NEXT = range(5)

# What a walk returns.
OK, NO_MEMORY, CANCELLED = range(3)

COPY_CHUNK = 1 << 18  # a copy longer than this is shared between the workers

_SYSCALLS = {"x86_64": (202, 186), "aarch64": (98, 178)}  # futex, gettid
_PAUSE = {  # declared, and called: tell the processor that this is a waiting loop
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.isb(i32)", "call void @llvm.aarch64.isb(i32 15)"),
}

_FUTEX = """
declare i64 @syscall(i64, ...)
define internal i64 @sleep(ptr %word, i64 %expected) {{
  %short = trunc i64 %expected to i32
  %r = call i64 (i64, ...) @syscall(i64 {futex}, ptr %word, i64 128, i32 %short, ptr null)
  ret i64 %r
}}
define internal i64 @wake(ptr %word, i64 %count) {{
  %r = call i64 (i64, ...) @syscall(i64 {futex}, ptr %word, i64 129, i64 %count)
  ret i64 %r
}}
define internal i64 @thread_id() {{
  %r = call i64 (i64, ...) @syscall(i64 {gettid})
  ret i64 %r
}}
declare i32 @sched_setaffinity(i32, i64, ptr)
declare i32 @sched_getcpu()
"""

# Where no futex is known, an idle worker looks again every 200 µs. A sleep always reports that it
# ended by itself, so the count of sleepers stays right.
_POLL = """
declare i32 @usleep(i32)
define internal i64 @sleep(ptr %word, i64 %expected) {{
  %r = call i32 @usleep(i32 200)
  ret i64 -1
}}
define internal i64 @wake(ptr %word, i64 %count) {{
  ret i64 0
}}
define internal i64 @thread_id() {{
  ret i64 1
}}
define internal i32 @sched_setaffinity(i32 %t, i64 %n, ptr %m) {{
  ret i32 0
}}
define internal i32 @sched_getcpu() {{
  ret i32 -1
}}
"""


def _word(base: str, name: str, index: int | str) -> str:
    return f"%{name} = getelementptr i64, ptr %{base}, i64 {index}"


_CLOCK = """
declare i32 @clock_gettime(i32, ptr)
declare i32 @sched_yield()
declare i32 @posix_memalign(ptr, i64, i64)
declare void @free(ptr)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare void @llvm.memmove.p0.p0.i64(ptr, ptr, i64, i1)

define internal i64 @now() {{
  %time = alloca [2 x i64]
  %r = call i32 @clock_gettime(i32 {clock}, ptr %time)
  %seconds = load i64, ptr %time
  %rest = getelementptr i64, ptr %time, i64 1
  %nanoseconds = load i64, ptr %rest
  %scaled = mul i64 %seconds, 1000000000
  %sum = add i64 %scaled, %nanoseconds
  ret i64 %sum
}}
{pause_declared}
define internal void @pause() alwaysinline {{
  {pause}
  ret void
}}
define i64 @muladd_try_lock(ptr %pool) {{
  {lock}
  %pair = cmpxchg ptr %lock, i64 0, i64 1 acquire monotonic
  %got = extractvalue {{i64, i1}} %pair, 1
  %word = zext i1 %got to i64
  ret i64 %word
}}
define void @muladd_unlock(ptr %pool) {{
  {lock}
  store atomic i64 0, ptr %lock release, align 8
  ret void
}}
"""

_WORK = """
; the worker's own scratch memory, at least `bytes` long; null if there is none to be had
define internal ptr @scratch_of(ptr %worker, i64 %bytes) {{
start:
  {w_scratch}
  {w_bytes}
  %have = load i64, ptr %w_bytes
  %enough = icmp uge i64 %have, %bytes
  br i1 %enough, label %ready, label %grow
ready:
  %old = load ptr, ptr %w_scratch
  ret ptr %old
grow:
  %stale = load ptr, ptr %w_scratch
  call void @free(ptr %stale)
  store ptr null, ptr %w_scratch
  store i64 0, ptr %w_bytes
  %failed = call i32 @posix_memalign(ptr %w_scratch, i64 4096, i64 %bytes)
  %good = icmp eq i32 %failed, 0
  br i1 %good, label %grown, label %missing
grown:
  store i64 %bytes, ptr %w_bytes
  %new = load ptr, ptr %w_scratch
  ret ptr %new
missing:
  store ptr null, ptr %w_scratch
  ret ptr null
}}

; claim chunks and run them until none is left
define internal void @work(ptr %pool, ptr %worker) {{
start:
  {job_kernel}
  {job_args}
  {job_variables}
  {job_grid}
  {job_scratch}
  {job_share}
  {done}
  {failed}
  br label %look
look:
  %ticket = load atomic i64, ptr %pool acquire, align 8
  %left = and i64 %ticket, 4294967295
  %over = icmp eq i64 %left, 0
  br i1 %over, label %finished, label %claim
claim:
  %share = load atomic i64, ptr %job_share monotonic, align 8
  %left32 = trunc i64 %left to i32
  %share32 = trunc i64 %share to i32
  %part32 = udiv i32 %left32, %share32
  %part = zext i32 %part32 to i64
  %none = icmp eq i64 %part, 0
  %take = select i1 %none, i64 1, i64 %part
  %rest = sub i64 %ticket, %take
  %pair = cmpxchg ptr %pool, i64 %ticket, i64 %rest acq_rel monotonic
  %mine = extractvalue {{i64, i1}} %pair, 1
  br i1 %mine, label %run, label %look
run:
  %kernel = load ptr, ptr %job_kernel
  %args = load ptr, ptr %job_args
  %variables = load ptr, ptr %job_variables
  %grid = load i64, ptr %job_grid
  %bytes = load i64, ptr %job_scratch
  %low = sub i64 %grid, %left
  %high = add i64 %low, %take
  %scratch = call ptr @scratch_of(ptr %worker, i64 %bytes)
  %wanted = icmp ne i64 %bytes, 0
  %nothing = icmp eq ptr %scratch, null
  %lost = and i1 %wanted, %nothing
  br i1 %lost, label %fail, label %compute
fail:
  store atomic i64 1, ptr %failed monotonic, align 8
  br label %count
compute:
  call void %kernel(ptr %args, ptr %variables, i64 %low, i64 %high, ptr %scratch)
  br label %count
count:
  %before = atomicrmw add ptr %done, i64 %take release
  br label %look
finished:
  ret void
}}

; let this worker run only on its own processor
define internal void @pin(ptr %worker) {{
  %mask = alloca [16 x i64]
  call void @llvm.memset.p0.i64(ptr %mask, i8 0, i64 128, i1 false)
  {w_cpu}
  {w_thread}
  %cpu = load i64, ptr %w_cpu
  %thread = load i64, ptr %w_thread
  %thread32 = trunc i64 %thread to i32
  %wordindex = lshr i64 %cpu, 6
  %bit = and i64 %cpu, 63
  %safe = and i64 %wordindex, 15
  %place = getelementptr i64, ptr %mask, i64 %safe
  %one = shl i64 1, %bit
  store i64 %one, ptr %place
  %r = call i32 @sched_setaffinity(i32 %thread32, i64 128, ptr %mask)
  ret void
}}

; a worker's whole life: work, wait busily for a while, sleep
define ptr @muladd_worker(ptr %worker) {{
start:
  {w_pool}
  {w_thread}
  %pool = load ptr, ptr %w_pool
  {sleepers}
  {stop}
  {spin}
  %id = call i64 @thread_id()
  store atomic i64 %id, ptr %w_thread release, align 8
  %epoch = getelementptr i8, ptr %pool, i64 4
  br label %work
work:
  call void @work(ptr %pool, ptr %worker)
  %since = call i64 @now()
  br label %busy
busy:
  %turn = phi i64 [0, %work], [%turn1, %still], [0, %again]
  %ticket = load atomic i64, ptr %pool monotonic, align 8
  %left = and i64 %ticket, 4294967295
  %some = icmp ne i64 %left, 0
  br i1 %some, label %work, label %idle
idle:
  call void @pause()
  %turn1 = add i64 %turn, 1
  %long = icmp ugt i64 %turn1, 64
  br i1 %long, label %clock, label %still
still:
  br label %busy
clock:
  %time = call i64 @now()
  %waited = sub i64 %time, %since
  %limit = load atomic i64, ptr %spin monotonic, align 8
  %tired = icmp sgt i64 %waited, %limit
  br i1 %tired, label %rest, label %again
again:
  br label %busy
rest:
  %o1 = atomicrmw add ptr %sleepers, i64 1 seq_cst
  %last = load atomic i64, ptr %pool seq_cst, align 8
  %stopping = load atomic i64, ptr %stop seq_cst, align 8
  %leave = icmp ne i64 %stopping, 0
  br i1 %leave, label %quit, label %check
quit:
  %o2 = atomicrmw sub ptr %sleepers, i64 1 seq_cst
  ret ptr null
check:
  %lastleft = and i64 %last, 4294967295
  %new = icmp ne i64 %lastleft, 0
  br i1 %new, label %awake, label %doze
doze:
  %expected = lshr i64 %last, 32
  %woken = call i64 @sleep(ptr %epoch, i64 %expected)
  %counted = icmp eq i64 %woken, 0
  br i1 %counted, label %work, label %awake
awake:
  %o3 = atomicrmw sub ptr %sleepers, i64 1 seq_cst
  br label %work
}}
"""

_LAUNCH = """
; wake sleepers. One whose processor the caller stands on is first moved to the free one, else it
; would wait there until the scheduler moves the caller (milliseconds).
define internal void @rouse(ptr %pool, i64 %count) noinline {{
start:
  {sleepers}
  {pinned}
  {free_cpu}
  {threads}
  %pins = load i64, ptr %pinned
  %off = icmp eq i64 %pins, 0
  br i1 %off, label %call, label %where
where:
  %here32 = call i32 @sched_getcpu()
  %here = sext i32 %here32 to i64
  %n = load i64, ptr %threads
  br label %each
each:
  %w = phi i64 [1, %where], [%w1, %next]
  %past = icmp sge i64 %w, %n
  br i1 %past, label %call, label %test
test:
  %skip = mul i64 %w, {worker_words}
  %index = add i64 %skip, {first_worker}
  %worker = getelementptr i64, ptr %pool, i64 %index
  {w_cpu}
  %cpu = load i64, ptr %w_cpu
  %clash = icmp eq i64 %cpu, %here
  br i1 %clash, label %move, label %next
next:
  %w1 = add i64 %w, 1
  br label %each
move:
  %free = load i64, ptr %free_cpu
  %known = icmp sge i64 %free, 0
  br i1 %known, label %swap, label %call
swap:
  store i64 %free, ptr %w_cpu
  store i64 %here, ptr %free_cpu
  call void @pin(ptr %worker)
  br label %call
call:
  %epoch = getelementptr i8, ptr %pool, i64 4
  %woken = call i64 @wake(ptr %epoch, i64 %count)
  %o = atomicrmw sub ptr %sleepers, i64 %woken seq_cst
  ret void
}}
define void @muladd_stop(ptr %pool) {{
  {stop}
  store atomic i64 1, ptr %stop seq_cst, align 8
  %o = atomicrmw add ptr %pool, i64 4294967296 seq_cst
  {sleepers}
  %epoch = getelementptr i8, ptr %pool, i64 4
  %woken = call i64 @wake(ptr %epoch, i64 2147483647)
  %o2 = atomicrmw sub ptr %sleepers, i64 %woken seq_cst
  ret void
}}

; run one kernel over chunks 0 <= c < grid; `worker` is null if the pool is not ours
define internal void @launch(ptr %pool, ptr %kernel, ptr %args, ptr %variables, i64 %grid,
                             ptr %worker, ptr %scratch, i64 %bytes) {{
start:
  %single = icmp sle i64 %grid, 1
  %guest = icmp eq ptr %worker, null
  %alone = or i1 %single, %guest
  br i1 %alone, label %here, label %many
here:
  %empty = icmp sle i64 %grid, 0
  br i1 %empty, label %end, label %direct
direct:
  call void %kernel(ptr %args, ptr %variables, i64 0, i64 %grid, ptr %scratch)
  ret void
many:
  {threads}
  %n = load i64, ptr %threads
  %one = icmp sle i64 %n, 1
  %huge = icmp sgt i64 %grid, 2147483647
  %serial = or i1 %one, %huge
  br i1 %serial, label %direct, label %share
share:
  {job_kernel}
  {job_args}
  {job_variables}
  {job_grid}
  {job_scratch}
  {job_share}
  {done}
  {sleepers}
  %claims = shl i64 %n, 2
  store ptr %kernel, ptr %job_kernel
  store ptr %args, ptr %job_args
  store ptr %variables, ptr %job_variables
  store i64 %grid, ptr %job_grid
  store i64 %bytes, ptr %job_scratch
  store atomic i64 %claims, ptr %job_share monotonic, align 8
  store atomic i64 0, ptr %done monotonic, align 8
  %old = load atomic i64, ptr %pool monotonic, align 8
  %epoch0 = lshr i64 %old, 32
  %epoch1 = add i64 %epoch0, 1
  %high = shl i64 %epoch1, 32
  %ticket = or i64 %high, %grid
  store atomic i64 %ticket, ptr %pool seq_cst, align 8
  %asleep = load atomic i64, ptr %sleepers seq_cst, align 8
  %any = icmp sgt i64 %asleep, 0
  br i1 %any, label %call, label %join
call:
  %others = sub i64 %grid, 1
  call void @rouse(ptr %pool, i64 %others)
  br label %join
join:
  call void @work(ptr %pool, ptr %worker)
  br label %wait
wait:
  %turn = phi i64 [0, %join], [%turn1, %spin], [%turn2, %yield]
  %finished = load atomic i64, ptr %done acquire, align 8
  %all = icmp eq i64 %finished, %grid
  br i1 %all, label %end, label %spin0
spin0:
  %patient = icmp ult i64 %turn, 4000
  br i1 %patient, label %spin, label %yield
spin:
  call void @pause()
  %turn1 = add i64 %turn, 1
  br label %wait
yield:
  ; somebody else may be on the worker's processor: let it have ours
  %y = call i32 @sched_yield()
  %turn2 = sub i64 %turn, 64
  br label %wait
end:
  ret void
}}
define internal void @copy_chunks(ptr %args, ptr %variables, i64 %low, i64 %high, ptr %scratch) {{
  %a1 = getelementptr i64, ptr %args, i64 1
  %a2 = getelementptr i64, ptr %args, i64 2
  %to = load ptr, ptr %args
  %source = load ptr, ptr %a1
  %bytes = load i64, ptr %a2
  %first = mul i64 %low, {copy_chunk}
  %past0 = mul i64 %high, {copy_chunk}
  %beyond = icmp ugt i64 %past0, %bytes
  %past = select i1 %beyond, i64 %bytes, i64 %past0
  %n = sub i64 %past, %first
  %t = getelementptr i8, ptr %to, i64 %first
  %s = getelementptr i8, ptr %source, i64 %first
  call void @llvm.memmove.p0.p0.i64(ptr %t, ptr %s, i64 %n, i1 false)
  ret void
}}
"""

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
  %asked0 = call i64 @tick(ptr %pool)
  %stop0 = icmp ne i64 %asked0, 0
  br i1 %stop0, label %refused, label %begin
refused:
  ret i64 {CANCELLED}
begin:
  ; the pool is taken for the whole walk; who comes second computes alone, with its own scratch
  %own = alloca [{worker_words} x i64]
  call void @llvm.memset.p0.i64(ptr %own, i8 0, i64 {worker_bytes}, i1 false)
  {first}
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
  %serial = phi i64 [0, %begin], [%serial1, %lend], [%serial, %rgo], [%serial, %rskip],
                    [%serial, %nout], [%serial, %nagain]
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
  %serial1 = add i64 %serial, 1
  %low2 = and i64 %serial1, 3
  %look = icmp eq i64 %low2, 0
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


@functools.cache
def source(triple: str, futex: bool = True) -> str:
    """The runtime as LLVM IR for this triple; without futex, idle workers poll."""
    architecture = "aarch64" if triple.startswith(("aarch64", "arm64")) else "x86_64"
    futex = futex and sys.platform == "linux"
    number, gettid = _SYSCALLS[architecture]
    pool = {
        "lock": LOCK, "done": DONE, "sleepers": SLEEPERS, "failed": FAILED, "stop": STOP,
        "spin": SPIN, "threads": THREADS, "pinned": PINNED, "free_cpu": FREE_CPU, "tick": TICK,
        "next_tick": NEXT_TICK, "period": PERIOD, "job_kernel": JOB_KERNEL, "job_args": JOB_ARGS,
        "job_variables": JOB_VARIABLES, "job_grid": JOB_GRID, "job_scratch": JOB_SCRATCH,
        "job_share": JOB_SHARE, "first": FIRST_WORKER,
    }  # fmt: skip
    worker = {
        "w_scratch": W_SCRATCH, "w_bytes": W_SCRATCH_BYTES, "w_thread": W_THREAD_ID,
        "w_cpu": W_CPU, "w_pool": W_POOL,
    }  # fmt: skip
    fields = {name: _word("pool", name, index) for name, index in pool.items()}
    fields |= {name: _word("worker", name, index) for name, index in worker.items()}
    text = _FUTEX if futex else _POLL
    text += _CLOCK + _WORK + _LAUNCH + _WALK
    return f'target triple = "{triple}"\n' + text.format(
        futex=number, gettid=gettid, clock=1 if sys.platform == "linux" else 6,
        pause_declared=_PAUSE[architecture][0],
        pause=_PAUSE[architecture][1], worker_words=WORKER_WORDS, worker_bytes=WORKER_WORDS * 8,
        first_worker=FIRST_WORKER, copy_chunk=COPY_CHUNK, copy_chunk_less_1=COPY_CHUNK - 1,
        P_TIMES=P_TIMES, P_VARIABLES=P_VARIABLES, P_ARGS=P_ARGS, P_SCRATCH=P_SCRATCH,
        P_DEPTH=P_DEPTH, P_CODE=P_CODE, LAUNCH=LAUNCH, COPY=COPY, REPEAT=REPEAT, NEXT=NEXT,
        OK=OK, NO_MEMORY=NO_MEMORY, CANCELLED=CANCELLED, **fields,
    )  # fmt: skip
