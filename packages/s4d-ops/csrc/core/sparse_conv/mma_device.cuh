// Matrix instructions of a warp by 32 bytes of depth: 16 rows x 8 columns, 16 halves or 32 codes.
//
// Operands are words of four bytes. With g = lane / 4 and t = lane % 4 a thread holds, of rows g
// and g + 8 of the left and of column g of the right operand, the words t and t + 4 of the depth.
// Which bytes of memory stand for which depth is free as long as both sides agree. Of the result it
// holds columns 2 * t and the next of row g, then of row g + 8.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace s4d::sparse::cuda {

// c += a * b; a: row g word 0, row g + 8 word 0, row g word 1, row g + 8 word 1.
__device__ inline void multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b0));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a2), "r"(a3), "r"(b1));
#endif
}

__device__ inline void multiply(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  const uint32_t a[4] = {a0, a1, a2, a3};
  const uint32_t b[2] = {b0, b1};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
        : "+r"(c[i % 2 * 2]), "+r"(c[i % 2 * 2 + 1])
        : "r"(a[i]), "r"(b[i / 2]));
  }
#endif
}

// Words from global memory, or zeros without reading. Straight into their registers: written as a
// branch, the compiler loads into other registers and waits for them at once to move them.
__device__ inline void load_words(uint32_t (&to)[4], const void* from, bool there) {
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %5, 0;\n mov.b32 %0, 0;\n mov.b32 %1, 0;\n"
               " mov.b32 %2, 0;\n mov.b32 %3, 0;\n"
               " @p ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
               : "=&r"(to[0]), "=&r"(to[1]), "=&r"(to[2]), "=&r"(to[3])
               : "l"(from), "r"(static_cast<int>(there)));
}
__device__ inline void load_words(uint32_t (&to)[2], const void* from, bool there) {
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %3, 0;\n mov.b32 %0, 0;\n mov.b32 %1, 0;\n"
               " @p ld.global.nc.v2.b32 {%0, %1}, [%2];\n}"
               : "=&r"(to[0]), "=&r"(to[1])
               : "l"(from), "r"(static_cast<int>(there)));
}

// 16 bytes from global to shared memory, in the background where the device can.
__device__ inline void copy_16(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
#else
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
#endif
}

__device__ inline void copy_4(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(at), "l"(from) : "memory");
#else
  *static_cast<int*>(to) = *static_cast<const int*>(from);
#endif
}

__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most kPending groups of this thread's copies are under way.
template <int kPending>
__device__ inline void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Barrier of the whole block that warps may reach from different places in the code.
__device__ inline void meet() { asm volatile("bar.sync 0;" ::: "memory"); }

}  // namespace s4d::sparse::cuda
