"""Sharing a launch between threads, in LLVM's language: claims, workers, waking, waiting.

Each worker has a home: an equal part of a launch's chunks, those beside each other, and of equal
launches (with a chunk for each worker) the same; so it meets in its caches what it left there. Its
ticket holds (epoch << 32 | chunks of its home not yet claimed). One compare-and-swap lowers the
count, and whoever succeeds owns those chunks: the launch cannot end before they are done, so its
description stays put while it is read. Who has nothing left at home claims from the others. A
worker that wakes late finds counts of zero or loses its swap; it can do no harm, and nobody waits
for it. A launch is over when all its chunks are finished, not when all workers have joined. The
launching thread takes part, and does everything itself if no worker comes.

Claims are a fourth of what is left of a home, so that few claims balance many chunks. They begin at
a home's first chunk; but where all claims are of one chunk, at the last: under a causal mask the
later rows have more to do, and whose home has the longest is done the sooner if it begins so.

Braces are doubled because the texts go through str.format; {name} computes the address of the
word with that name in layout.py.
"""
from __future__ import annotations

SYSCALLS = {"x86_64": (202, 186), "aarch64": (98, 178)}  # futex, gettid
PAUSE = {  # declared, and called: tell the processor that this is a waiting loop
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.isb(i32)", "call void @llvm.aarch64.isb(i32 15)"),
}

FUTEX = """
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
POLL = """
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


CLOCK = """
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

WORK = """
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

; claim chunks and run them until none is left; gives the epoch as it was before the first look
define internal i64 @work(ptr %pool, ptr %worker) {{
start:
  {job_kernel}
  {job_args}
  {job_variables}
  {job_homes}
  {job_way}
  {job_scratch}
  {done}
  {failed}
  {w_number}
  %epoch = load atomic i64, ptr %pool acquire, align 8
  %homes = load atomic i64, ptr %job_homes monotonic, align 8
  %number = load i64, ptr %w_number
  %own = urem i64 %number, %homes
  br label %visit
visit:
  %home = phi i64 [%own, %start], [%other, %leave]
  %visits = phi i64 [1, %start], [%visits1, %leave]
  %skip = mul i64 %home, {worker_words}
  %index = add i64 %skip, {first_worker}
  %host = getelementptr i64, ptr %pool, i64 %index
  %ticket = getelementptr i64, ptr %host, i64 {W_TICKET}
  %border = getelementptr i64, ptr %host, i64 {W_BORDER}
  br label %look
look:
  %seen = load atomic i64, ptr %ticket acquire, align 8
  %left = and i64 %seen, 4294967295
  %over = icmp eq i64 %left, 0
  br i1 %over, label %leave, label %claim
claim:
  %part = lshr i64 %left, 2
  %none = icmp eq i64 %part, 0
  %take = select i1 %none, i64 1, i64 %part
  %rest = sub i64 %seen, %take
  %pair = cmpxchg ptr %ticket, i64 %seen, i64 %rest acq_rel monotonic
  %mine = extractvalue {{i64, i1}} %pair, 1
  br i1 %mine, label %run, label %look
run:
  %kernel = load ptr, ptr %job_kernel
  %args = load ptr, ptr %job_args
  %variables = load ptr, ptr %job_variables
  %base = load i64, ptr %border
  %way = load i64, ptr %job_way
  %bytes = load i64, ptr %job_scratch
  %far = mul i64 %way, %left
  %low = add i64 %base, %far
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
leave:
  %next = add i64 %home, 1
  %other = urem i64 %next, %homes
  %visits1 = add i64 %visits, 1
  %all = icmp ugt i64 %visits1, %homes
  br i1 %all, label %finished, label %visit
finished:
  ret i64 %epoch
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
  br label %work
work:
  %known = call i64 @work(ptr %pool, ptr %worker)
  %since = call i64 @now()
  br label %busy
busy:
  %turn = phi i64 [0, %work], [%turn1, %still], [0, %again]
  %epoch = load atomic i64, ptr %pool monotonic, align 8
  %some = icmp ne i64 %epoch, %known
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
  %new = icmp ne i64 %last, %known
  br i1 %new, label %awake, label %doze
doze:
  %woken = call i64 @sleep(ptr %pool, i64 %known)
  %counted = icmp eq i64 %woken, 0
  br i1 %counted, label %work, label %awake
awake:
  %o3 = atomicrmw sub ptr %sleepers, i64 1 seq_cst
  br label %work
}}
"""

LAUNCH = """
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
  %woken = call i64 @wake(ptr %pool, i64 %count)
  %o = atomicrmw sub ptr %sleepers, i64 %woken seq_cst
  ret void
}}
define void @muladd_stop(ptr %pool) {{
  {stop}
  store atomic i64 1, ptr %stop seq_cst, align 8
  %o = atomicrmw add ptr %pool, i64 1 seq_cst
  {sleepers}
  %woken = call i64 @wake(ptr %pool, i64 2147483647)
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
  {job_homes}
  {job_way}
  {job_scratch}
  {done}
  {sleepers}
  store ptr %kernel, ptr %job_kernel
  store ptr %args, ptr %job_args
  store ptr %variables, ptr %job_variables
  store i64 %bytes, ptr %job_scratch
  store atomic i64 0, ptr %done monotonic, align 8
  %few = icmp slt i64 %grid, %n
  %homes = select i1 %few, i64 %grid, i64 %n
  store atomic i64 %homes, ptr %job_homes monotonic, align 8
  %singles = shl i64 %homes, 2
  %last_first = icmp sle i64 %grid, %singles
  %way = select i1 %last_first, i64 1, i64 -1
  store i64 %way, ptr %job_way
  %old = load atomic i64, ptr %pool monotonic, align 8
  %epoch = add i64 %old, 1
  %high = shl i64 %epoch, 32
  br label %home
home:
  %h = phi i64 [0, %share], [%h1, %home]
  %first = phi i64 [0, %share], [%past, %home]
  %h1 = add i64 %h, 1
  %most = mul i64 %grid, %h1
  %past = udiv i64 %most, %homes
  %size = sub i64 %past, %first
  %skip = mul i64 %h, {worker_words}
  %index = add i64 %skip, {first_worker}
  %host = getelementptr i64, ptr %pool, i64 %index
  %ticket = getelementptr i64, ptr %host, i64 {W_TICKET}
  %border = getelementptr i64, ptr %host, i64 {W_BORDER}
  %before = sub i64 %first, 1
  %from = select i1 %last_first, i64 %before, i64 %past
  store i64 %from, ptr %border
  %value = or i64 %high, %size
  store atomic i64 %value, ptr %ticket release, align 8
  %more = icmp slt i64 %h1, %homes
  br i1 %more, label %home, label %publish
publish:
  store atomic i64 %epoch, ptr %pool seq_cst, align 8
  %asleep = load atomic i64, ptr %sleepers seq_cst, align 8
  %any = icmp sgt i64 %asleep, 0
  br i1 %any, label %call, label %join
call:
  %others = sub i64 %grid, 1
  call void @rouse(ptr %pool, i64 %others)
  br label %join
join:
  %known = call i64 @work(ptr %pool, ptr %worker)
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
