"""How the words of the pool, of a program and of its steps lie: what Python and native code share.

Everything is 64-bit words. The pool is what all threads share; a program is a header and steps.
"""
from __future__ import annotations

# The pool. What different threads write at once is 128 bytes apart.
EPOCH, DONE, SLEEPERS, LOCK = 0, 16, 32, 48
LAUNCHES = 49  # by anybody, roughly: tells when to look at the clock
JOB_KERNEL, JOB_ARGS, JOB_VARIABLES, JOB_SCRATCH, JOB_HOMES, JOB_WAY = range(64, 70)
THREADS, SPIN, STOP, FAILED, TICK, NEXT_TICK, FREE_CPU, PINNED, PERIOD, READY = range(80, 90)
FIRST_WORKER, WORKER_WORDS, MOST_THREADS = 96, 32, 256
POOL_WORDS = FIRST_WORKER + WORKER_WORDS * MOST_THREADS
# One worker, from its start. Worker 0 is whoever holds the lock.
W_SCRATCH, W_SCRATCH_BYTES, W_THREAD_ID, W_CPU, W_POOL, W_NUMBER = range(6)
W_TICKET, W_BORDER = 16, 17  # that others claim from; a border: the first chunk, or past the last

# A program: its header, then steps, each beginning with its kind. See table.py.
(P_POOL, P_TIMES, P_VARIABLES, P_ARGS, P_SCRATCH, P_DEPTH, P_SLOTS, P_TROUBLE,
 P_CODE) = range(9)  # fmt: skip
END, LAUNCH, COPY, REPEAT, NEXT = range(5)

# How a walk ended.
OK, NO_MEMORY, CANCELLED, NOT_READY, MISFIT = range(5)

# The names under which the IR texts speak of all this.
POOL = {
    "lock": LOCK, "done": DONE, "sleepers": SLEEPERS, "launches": LAUNCHES, "failed": FAILED,
    "stop": STOP, "spin": SPIN, "threads": THREADS, "pinned": PINNED, "free_cpu": FREE_CPU,
    "tick": TICK, "next_tick": NEXT_TICK, "period": PERIOD, "ready": READY,
    "job_kernel": JOB_KERNEL, "job_args": JOB_ARGS, "job_variables": JOB_VARIABLES,
    "job_scratch": JOB_SCRATCH, "job_homes": JOB_HOMES, "job_way": JOB_WAY,
    "first": FIRST_WORKER,
}  # fmt: skip
WORKER = {
    "w_scratch": W_SCRATCH, "w_bytes": W_SCRATCH_BYTES, "w_thread": W_THREAD_ID, "w_cpu": W_CPU,
    "w_pool": W_POOL, "w_number": W_NUMBER,
}  # fmt: skip
NUMBERS = {
    "W_TICKET": W_TICKET, "W_BORDER": W_BORDER,
    "P_TIMES": P_TIMES, "P_VARIABLES": P_VARIABLES, "P_ARGS": P_ARGS, "P_SCRATCH": P_SCRATCH,
    "P_DEPTH": P_DEPTH, "P_SLOTS": P_SLOTS, "P_TROUBLE": P_TROUBLE, "P_CODE": P_CODE,
    "LAUNCH": LAUNCH, "COPY": COPY, "REPEAT": REPEAT, "NEXT": NEXT, "OK": OK,
    "NO_MEMORY": NO_MEMORY, "CANCELLED": CANCELLED, "NOT_READY": NOT_READY, "MISFIT": MISFIT,
}  # fmt: skip
