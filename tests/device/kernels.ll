; Tiny kernels for test_cpu.py, which says for which machine they are compiled.
declare ptr @memset(ptr, i32, i64)
declare i32 @usleep(i32)

; x[c] += 1 for each chunk c
define void @count(ptr %args, ptr %vars, i64 %low, i64 %high, ptr %scratch) {
start:
  %x = load ptr, ptr %args
  br label %loop
loop:
  %c = phi i64 [%low, %start], [%next, %loop]
  %p = getelementptr i64, ptr %x, i64 %c
  %old = load i64, ptr %p
  %new = add i64 %old, 1
  store i64 %new, ptr %p
  %next = add i64 %c, 1
  %more = icmp slt i64 %next, %high
  br i1 %more, label %loop, label %end
end:
  ret void
}

; x[0] = x[0] * 10 + vars[0]; order matters, so it tells what ran when
define void @append(ptr %args, ptr %vars, i64 %low, i64 %high, ptr %scratch) {
  %x = load ptr, ptr %args
  %v = load i64, ptr %vars
  %old = load i64, ptr %x
  %ten = mul i64 %old, 10
  %new = add i64 %ten, %v
  store i64 %new, ptr %x
  ret void
}

; to[0] += from[0]; its grid is vars[0]
define void @add(ptr %args, ptr %vars, i64 %low, i64 %high, ptr %scratch) {
  %q = getelementptr ptr, ptr %args, i64 1
  %to = load ptr, ptr %args
  %from = load ptr, ptr %q
  %a = load i64, ptr %to
  %b = load i64, ptr %from
  %n = sub i64 %high, %low
  %many = mul i64 %b, %n
  %sum = add i64 %a, %many
  store i64 %sum, ptr %to
  ret void
}
define i64 @add_grid(ptr %vars) {
  %n = load i64, ptr %vars
  ret i64 %n
}

; fills vars[0] bytes of scratch, then x[c] = a byte of scratch + alignment of scratch
define void @scratch(ptr %args, ptr %vars, i64 %low, i64 %high, ptr %scratch) {
start:
  %x = load ptr, ptr %args
  %n = load i64, ptr %vars
  %byte = trunc i64 %low to i32
  %r = call ptr @memset(ptr %scratch, i32 %byte, i64 %n)
  %address = ptrtoint ptr %scratch to i64
  %off = and i64 %address, 63
  %last = sub i64 %n, 1
  %q = getelementptr i8, ptr %scratch, i64 %last
  %got = load i8, ptr %q
  %wide = zext i8 %got to i64
  %clean = add i64 %wide, %off
  br label %loop
loop:
  %c = phi i64 [%low, %start], [%next, %loop]
  %d = sub i64 %c, %low
  %v = add i64 %clean, %d
  %p = getelementptr i64, ptr %x, i64 %c
  store i64 %v, ptr %p
  %next = add i64 %c, 1
  %more = icmp slt i64 %next, %high
  br i1 %more, label %loop, label %end
end:
  ret void
}

; sleeps vars[0] microseconds
define void @sleep(ptr %args, ptr %vars, i64 %low, i64 %high, ptr %scratch) {
  %n = load i64, ptr %vars
  %short = trunc i64 %n to i32
  %r = call i32 @usleep(i32 %short)
  ret void
}
